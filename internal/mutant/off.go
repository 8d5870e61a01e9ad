//go:build !mutate

package mutant

// On tells whether the defect is built in: never, in every real build.
func On(string) bool { return false }

// None tells that no defect is built in.
func None() bool { return true }
