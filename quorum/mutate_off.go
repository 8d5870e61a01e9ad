//go:build !mutate

package quorum

// mutated tells whether a deliberate defect is built in: never, in every real
// build. The compiler removes what depends on it.
func mutated(string) bool { return false }
