// Package mutant is the registry of deliberate defects, the test of the tests: a
// build with the tag mutate has one of them if GABION_MUTATE names it, and the
// tests that the registry names must then fail. In every other build On is
// constantly false and the compiler removes what depends on it.
//
// docs/TESTING.md shows the registry; internal/lint keeps both and the places
// where defects are built in the same.
package mutant

// Env is the variable that names the defects of a process, with commas between.
const Env = "GABION_MUTATE"

// Mutation is one deliberate defect.
type Mutation struct {
	Name   string
	In     string // the folder of the code that has it
	Breaks string
	// Tests must fail with it and pass without: TestName of the same folder, or
	// FOLDER.TestName.
	Tests []string
	// Core is the seed that finds it first when paxossim plays seeds from 1 on, 0
	// if it is not looked for there.
	Core int
	// Whole is how many seeds internal/sim/whole needs, 0 if it is not looked for
	// there. Only are the kinds of faults that come then, with commas between.
	Whole int
	Only  string
}
