//go:build mutate

package iscsi

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// catchers are the tests that must fail for each mutation, every one of them.
var catchers = map[string][]string{
	"any-sequence":      {"TestDataOutOfSequenceEndTheCommand"},
	"digest-blind":      {"TestDamagedDataEndTheCommandOrTheSession"},
	"memory-unbounded":  {"TestNoMemoryIsTaskSetFull"},
	"reinstate-at-once": {"TestReinstatementWaitsForWhatIsUnderWay"},
	"window-open":       {"TestCommandsOutsideOfTheWindowAreIgnored"},
}

// TestMutationsAreCaught is the test of the tests: each runs in a process of its
// own with one deliberate defect, and must fail; without any it must pass.
//
//	go test -tags mutate -run TestMutationsAreCaught ./target/iscsi
func TestMutationsAreCaught(t *testing.T) {
	if len(catchers) != len(mutations) {
		t.Errorf("%d mutations, tests for %d", len(mutations), len(catchers))
	}
	for _, m := range mutations {
		if len(catchers[m]) == 0 {
			t.Errorf("no test is named for %s", m)
		}
		for _, name := range catchers[m] {
			t.Run(m+"/"+name, func(t *testing.T) {
				if out, err := runAlone(name, ""); err != nil || !strings.Contains(out, "--- PASS: "+name+" ") {
					t.Errorf("fails without a defect: %v\n%s", err, out)
				}
				out, err := runAlone(name, m)
				if err == nil || !strings.Contains(out, "--- FAIL: "+name+" ") {
					t.Errorf("not caught: %v\n%s", err, out)
				}
			})
		}
	}
}

// runAlone runs one test of this binary with a mutation.
func runAlone(test, mutation string) (string, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=2m", "-test.count=1")
	cmd.Env = append(os.Environ(), "GABION_MUTATE="+mutation)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
