//go:build mutate

package quorum

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// catchers are the tests that must fail for each mutation, every one of them.
var catchers = map[string][]string{
	"below-target":    {"TestRemoveKeepsWhatIsAskedFor"},
	"earlier-life":    {"TestEarlierLifeIsNotReplayed"},
	"own-disk-inline": {"TestHazardHungDiskIsOneVoteLess"},
	"stay-forever":    {"TestReplacedMemberThatWasAwayLeaves"},
	"swap-early":      {"TestChangeWaitsUntilItCanBeChosen"},
	"timid-force":     {"TestForcedConfigurationOutlivesItsRivals"},
}

// TestMutationsAreCaught is the test of the tests: each runs in a process of its
// own with one deliberate defect, and must fail.
//
//	go test -tags mutate -run TestMutationsAreCaught ./quorum
func TestMutationsAreCaught(t *testing.T) {
	if len(catchers) != len(mutations) {
		t.Errorf("%d mutations, tests for %d", len(mutations), len(catchers))
	}
	for _, m := range mutations {
		for _, name := range catchers[m] {
			t.Run(m+"/"+name, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v", "-test.timeout=1m", "-test.count=1")
				cmd.Env = append(os.Environ(), "GABION_MUTATE="+m, "GABION_TEST_PATIENCE=5s")
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "FAIL: "+name+" ") && !strings.Contains(string(out), "panic: test timed out") {
					t.Errorf("not caught: %v\n%s", err, out)
				}
			})
		}
	}
}
