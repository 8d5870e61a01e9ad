//go:build mutate

package paxos_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/quorum/paxos"
	"github.com/gabion-storage/gabion/quorum/paxos/paxossim"
)

// mutationSeedsMax is within how many seeds a built-in defect must be found.
const mutationSeedsMax = 5000

// catchers are the tests that find what the simulation meets too seldom.
var catchers = map[string]string{
	"removed-votes": "TestHazardRemovedMemberVotes",
	"retire-late":   "TestHazardLateWordToLeave",
	"one-copy":      "TestHazardOneCopyAndAWitness",
}

func caughtBy(t *testing.T, test, mutation string) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), "GABION_MUTATE="+mutation)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: "+test+" ") {
		t.Errorf("not caught: %v\n%s", err, out)
	}
}

// TestMutationsAreCaught is the test of the simulation: each known defect, or
// the one that GABION_MUTATE names, must fail some seed.
//
//	go test -tags mutate -run TestMutationsAreCaught ./quorum/paxos
func TestMutationsAreCaught(t *testing.T) {
	only := os.Getenv("GABION_MUTATE")
	defer paxos.SetMutation(only)
	for _, name := range paxos.MutationNames() {
		if only != "" && name != only {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if test := catchers[name]; test != "" {
				caughtBy(t, test, name)
				return
			}
			paxos.SetMutation(name)
			for seed := uint64(1); seed <= mutationSeedsMax; seed++ {
				if _, err := paxossim.Run(seed, paxossim.Options{}); err != nil {
					t.Logf("caught by seed %d: %v", seed, err)
					return
				}
			}
			t.Fatalf("not caught within %d seeds", mutationSeedsMax)
		})
	}
}
