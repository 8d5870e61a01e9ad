//go:build mutate

package sim

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMutationsAreCaught runs tests of whole pools, each in a process of its own
// with a deliberate defect of a layer below, and demands that they fail.
//
//	go test -tags mutate -run TestMutationsAreCaught ./internal/sim
func TestMutationsAreCaught(t *testing.T) {
	const takeover, survive = "TestTakeoverFromAnIsolatedHolder", "TestAnsweredWritesSurviveTheirHolder"
	for _, c := range [][2]string{
		{"ack-before-received", takeover},
		{"lease-ignored", takeover},
		{"stable-wrong-sum", "TestPitfallFlippedBitInStableState"},
		{"scrub-skips-journal", "TestPitfallFlippedBitInTheJournal"},
		{"scrub-trusts-cache", "TestPitfallLyingDisk"},
		{"", takeover}, {"", survive},
	} {
		mutation, name := c[0], c[1]
		fails := mutation != ""
		t.Run(mutation+"/"+name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v", "-test.timeout=3m", "-test.count=1")
			cmd.Env = append(os.Environ(), "GABION_MUTATE="+mutation, "GABION_SIM_SECONDS=", "GABION_SIM_SEED=")
			out, err := cmd.CombinedOutput()
			want := "--- PASS: " + name + " "
			if fails {
				want = "--- FAIL: " + name + " "
			}
			if (err != nil) != fails || !strings.Contains(string(out), want) {
				t.Errorf("%v, without %q in\n%s", err, want, out)
			}
		})
	}
}
