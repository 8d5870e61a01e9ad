//go:build mutate

package dht

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// catchers are the tests that must fail for each mutation.
var catchers = [][2]string{
	{"accept-unverified", "TestReadFallsOverFromDamagedLocalCopyAndRepairsIt"},
	{"majority-of-one", "TestPutSurvivesMinorityDown"},
	{"hedge-unbounded", "TestHedgedReadsAreFew"},
	{"wait-for-slow", "TestPutsPassAHungDisk"},
}

// TestMutationsAreCaught runs tests, each in a process of its own with one
// deliberate defect, and demands that they fail, and pass without it.
//
//	go test -tags mutate -run TestMutationsAreCaught ./dht
func TestMutationsAreCaught(t *testing.T) {
	sound := map[string]bool{}
	for _, c := range catchers {
		mutation, name := c[0], c[1]
		t.Run(mutation+"/"+name, func(t *testing.T) {
			if out, err := runAlone(name, mutation); err == nil || !strings.Contains(out, "--- FAIL: "+name+" ") {
				t.Errorf("not caught: %v\n%s", err, out)
			}
		})
		sound[name] = true
	}
	for name := range sound {
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
