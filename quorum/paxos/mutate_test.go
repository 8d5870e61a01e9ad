//go:build mutate

package paxos_test

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/internal/mutant/catch"
	"github.com/gabion-storage/gabion/quorum/paxos/paxossim"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "quorum/paxos") }

// mutationSeedsMax is within how many seeds a defect must be found.
const mutationSeedsMax = 5000

// TestSimulationCatchesMutations is the test of the simulation. It plays the seed
// that once found a defect, or else looks for another.
func TestSimulationCatchesMutations(t *testing.T) {
	defer mutant.Set("")
	for _, m := range mutant.All {
		if m.Core == 0 {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			mutant.Set(m.Name)
			for seed := 0; seed <= mutationSeedsMax; seed++ {
				play := seed
				if seed == 0 {
					play = m.Core
				}
				if _, err := paxossim.Run(uint64(play), paxossim.Options{}); err != nil {
					t.Logf("%s: found by seed %d: %v", m.Name, play, err)
					return
				}
			}
			t.Fatalf("%s: not found within %d seeds", m.Name, mutationSeedsMax)
		})
	}
}
