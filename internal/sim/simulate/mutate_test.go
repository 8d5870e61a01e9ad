//go:build mutate

package main

import (
	"runtime"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// mutationSeedsMax is within how many seeds the simulator must find a defect.
const mutationSeedsMax = 40

// mutationSpan is for how long faults come while it looks for one.
const mutationSpan = "-for=1m"

// TestMutationsAreCaught plays seeds with one defect built in until one shows: the
// seed that once found it first.
func TestMutationsAreCaught(t *testing.T) {
	bin := build(t, "mutate")
	busy := make(chan bool, runtime.NumCPU())
	for _, m := range mutant.All {
		if m.Whole == 0 {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			busy <- true
			defer func() { <-busy }()
			for n := 0; n <= mutationSeedsMax; n++ {
				seed := uint64(n)
				if n == 0 {
					seed = uint64(m.Whole)
				}
				if r, _ := play(bin, seed, mutant.Env+"="+m.Name, mutationSpan, "-only", m.Only); r.Violation != "" {
					// What the seed shows without the defect is not the defect's.
					if r, _ := play(bin, seed, mutant.Env+"=", mutationSpan, "-only", m.Only); r.Violation != "" {
						t.Fatalf("seed %d without a defect: %s", seed, r.Violation)
					}
					line, _, _ := strings.Cut(r.Violation, "\n")
					t.Logf("%s: found by seed %d: %s", m.Name, seed, line)
					return
				}
			}
			t.Errorf("%s: not found within %d seeds", m.Name, mutationSeedsMax)
		})
	}
}
