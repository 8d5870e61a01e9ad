//go:build mutate

package blockdev

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// catchers are the tests that must fail for each mutation, every one of them.
var catchers = map[string][]string{
	"ack-before-received":   {"TestAnswersComeWithTheirWatermark"},
	"dirty-read":            {"TestReadsShowNoWriteThatCanBeLost"},
	"dirty-without-tail":    {"TestDirtyMapSeesTheTail"},
	"forget-tail":           {"TestExtentsOfTheLogSurviveTheirHolder"},
	"free-before-commit":    {"TestNothingIsFreedBeforeTheCheckpointIsChosen"},
	"free-snapshot-block":   {"TestSnapshotsMatchArrays", "TestDeletedSnapshotEndsItsSessions"},
	"lease-ignored":         {"TestReadsNeedALease"},
	"lose-zero":             {"TestVolumeMatchesFlatArray", "TestZeroingSurvivesTheHolder"},
	"no-relief":             {"TestTrimMakesRoomOnFullBricks"},
	"reuse-extent-number":   {"TestVolumeMatchesFlatArray", "TestExtentsOfTheLogSurviveTheirHolder"},
	"skip-crc":              {"TestDamagedBlocksAreNotServed"},
	"snapshot-without-tail": {"TestSnapshotsMatchArrays", "TestSnapshotOfATailOnly"},
	"spend-reserve":         {"TestSmallCheckpointsLeaveTheReserve"},
	"stale-map":             {"TestReadLooksAgainWhenItsExtentIsFreed", "TestPartialWriteKeepsWhatCameMeanwhile"},
}

// TestMutationsAreCaught is the test of the tests: each runs in a process of its
// own with one deliberate defect, and must fail; without any it must pass.
//
//	go test -tags mutate -run TestMutationsAreCaught ./blockdev
func TestMutationsAreCaught(t *testing.T) {
	if len(catchers) != len(mutations) {
		t.Errorf("%d mutations, tests for %d", len(mutations), len(catchers))
	}
	all := map[string]bool{}
	for _, m := range mutations {
		if len(catchers[m]) == 0 {
			t.Errorf("no test is named for %s", m)
		}
		for _, name := range catchers[m] {
			all[name] = true
			t.Run(m+"/"+name, func(t *testing.T) {
				out, err := runAlone(name, m)
				if err == nil || !strings.Contains(out, "--- FAIL: "+name+" ") {
					t.Errorf("not caught: %v\n%s", err, out)
				}
			})
		}
	}
	for name := range all {
		t.Run("none/"+name, func(t *testing.T) {
			if out, err := runAlone(name, ""); err != nil || !strings.Contains(out, "--- PASS: "+name+" ") {
				t.Errorf("fails without a defect: %v\n%s", err, out)
			}
		})
	}
}

// runAlone runs one test of this binary with a mutation.
func runAlone(test, mutation string) (string, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=2m", "-test.count=1")
	cmd.Env = append(os.Environ(), "GABION_MUTATE="+mutation)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
