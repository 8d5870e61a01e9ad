//go:build !mutate

package nbd

// mutated is compiled to nothing: see mutate_on.go.
func mutated(string) bool { return false }
