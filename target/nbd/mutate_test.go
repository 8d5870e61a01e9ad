//go:build mutate

package nbd_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// catchers are the tests that must fail for each mutation.
var catchers = map[string]string{
	"lose-fua":       "TestRandomRequestsFitTheModel",
	"shift-hole":     "TestHolesAreSentAsHoles",
	"ignore-one":     "TestBlockStatus",
	"vague-error":    "TestErrorsNameTheirPlace",
	"stale-contexts": "TestContextsBelongToTheirExport",
	"keep-style":     "TestStartTLSIsOnceAndForgets",
	"early-words":    "TestPlainWordsBehindStartTLSEndTheConnection",
	"talkative":      "TestPlainClientsLearnNothing",
	"write-anyway":   "TestRulesLimitClients",
}

// TestMutationsAreCaught is the test of the tests: each runs in a process of its
// own with one deliberate defect, and must fail; without any it must pass.
func TestMutationsAreCaught(t *testing.T) {
	for m, name := range catchers {
		for _, defect := range []string{m, ""} {
			t.Run(name+"/"+defect, func(t *testing.T) {
				cmd := exec.Command(os.Args[0], "-test.run=^"+name+"$", "-test.v", "-test.timeout=2m", "-test.count=1")
				cmd.Env = append(os.Environ(), "GABION_MUTATE="+defect)
				out, err := cmd.CombinedOutput()
				if failed := strings.Contains(string(out), "--- FAIL: "+name+" "); failed != (defect != "") {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}
