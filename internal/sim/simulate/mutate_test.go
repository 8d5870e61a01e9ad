//go:build mutate

package main

import (
	"strings"
	"testing"
)

// mutationSeedsMax is within how many seeds the simulator must find a defect.
const mutationSeedsMax = 40

// found are the deliberate defects that the simulation of whole pools must find
// by itself, beside the tests of the packages that have them. only, if any, are
// the kinds of faults that come: what brings the defect to light.
var found = []struct{ name, only string }{
	{"ack-at-one", ""},
	{"ack-before-received", "kill,isolate"},
	{"lose-zero", "takeover,kill"},
	{"skip-crc", "disk-rot,disk-lost-write"},
}

// TestMutationsAreCaught plays seeds with one defect built in until one shows.
func TestMutationsAreCaught(t *testing.T) {
	bin := build(t, "mutate")
	for _, m := range found {
		t.Run(m.name, func(t *testing.T) {
			for seed := uint64(1); seed <= mutationSeedsMax; seed++ {
				if r, _ := play(bin, seed, "GABION_MUTATE="+m.name, "-only", m.only); r.Violation != "" {
					// What the seed shows without the defect is not the defect's.
					if r, _ := play(bin, seed, "GABION_MUTATE=", "-only", m.only); r.Violation != "" {
						t.Fatalf("seed %d without a defect: %s", seed, r.Violation)
					}
					line, _, _ := strings.Cut(r.Violation, "\n")
					t.Logf("%s: found by seed %d: %s", m.name, seed, line)
					return
				}
			}
			t.Errorf("%s: not found within %d seeds", m.name, mutationSeedsMax)
		})
	}
}
