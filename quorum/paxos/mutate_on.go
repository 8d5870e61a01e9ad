//go:build mutate

package paxos

import "os"

// mutation is the defect under test, by its name in GABION_MUTATE. Only tests
// build with the tag mutate.
var mutation = mutationNamed(os.Getenv("GABION_MUTATE"))

func mutationNamed(name string) mutationID {
	for i, n := range mutationNames {
		if n == name {
			return mutationID(i)
		}
	}
	panic("paxos: no mutation is called " + name)
}

// SetMutation selects a defect for the tests that follow.
func SetMutation(name string) { mutation = mutationNamed(name) }
