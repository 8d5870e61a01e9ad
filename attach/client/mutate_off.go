//go:build !mutate

package client

// mutated is compiled to nothing: see mutate_on.go.
func mutated(string) bool { return false }
