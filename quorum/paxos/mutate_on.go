//go:build mutate

package paxos

import (
	"os"
	"slices"
)

// mutation is the defect under test, by its name in GABION_MUTATE. Only tests
// build with the tag mutate. A name of another package's defect is none here.
var mutation = mutationNamed(os.Getenv("GABION_MUTATE"))

func mutationNamed(name string) mutationID {
	return mutationID(max(0, slices.Index(mutationNames[:], name)))
}

// SetMutation selects a defect for the tests that follow.
func SetMutation(name string) {
	if !slices.Contains(mutationNames[:], name) {
		panic("paxos: no mutation is called " + name)
	}
	mutation = mutationNamed(name)
}
