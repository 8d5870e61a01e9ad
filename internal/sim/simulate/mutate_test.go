//go:build mutate

package main

import (
	"fmt"
	"strings"
	"testing"
)

// mutationSeedsMax is within how many seeds the simulator must find a defect.
const mutationSeedsMax = 40

// found are the deliberate defects that the simulation of whole pools must find
// by itself, beside the tests of the packages that have them. faults, if any, is
// the only kind that need come.
var found = []string{
	"ack-at-one",
}

// TestMutationsAreCaught plays seeds with one defect built in until one shows.
func TestMutationsAreCaught(t *testing.T) {
	bin := build(t, "mutate")
	for _, name := range found {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= mutationSeedsMax; seed++ {
				if r, _ := play(bin, seed, "GABION_MUTATE="+name); r.Violation != "" {
					line, _, _ := strings.Cut(r.Violation, "\n")
					t.Logf("%s: found by seed %d: %s", name, seed, line)
					return
				}
			}
			t.Errorf("%s: not found within %d seeds", name, mutationSeedsMax)
		})
	}
	t.Run("none", func(t *testing.T) {
		if r, _ := play(bin, 1, "GABION_MUTATE="); r.Violation != "" {
			t.Error(fmt.Sprint("without a defect: ", r.Violation))
		}
	})
}
