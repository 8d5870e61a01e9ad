// Package catch demands of a folder's tests that they find the defects for which
// package mutant names them.
package catch

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// All runs each test of the folder dir that the registry names, in a process of its
// own: once with each defect that it must find, and once without any.
func All(t *testing.T, dir string) {
	sound := map[string]bool{}
	n := 0
	for _, m := range mutant.All {
		for _, at := range m.Tests {
			in, test, ok := strings.Cut(at, ".")
			if !ok {
				in, test = m.In, at
			}
			if in != dir {
				continue
			}
			n++
			if !sound[test] {
				sound[test] = true
				t.Run("none/"+test, func(t *testing.T) { alone(t, test, "") })
			}
			t.Run(m.Name+"/"+test, func(t *testing.T) {
				t.Parallel() // a defect often shows as a test that waits
				alone(t, test, m.Name)
			})
		}
	}
	if n == 0 {
		t.Errorf("no mutation is for the tests of %s", dir)
	}
}

// alone runs one test of this binary. A defect may also show as a test that does
// not end.
func alone(t *testing.T, test, mutation string) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v", "-test.timeout=2m", "-test.count=1")
	cmd.Env = append(os.Environ(), mutant.Env+"="+mutation)
	if mutation != "" {
		cmd.Env = append(cmd.Env, "GABION_TEST_PATIENCE=5s")
	}
	b, err := cmd.CombinedOutput()
	out := string(b)
	switch {
	case mutation == "":
		if err != nil || !strings.Contains(out, "--- PASS: "+test+" ") {
			t.Errorf("fails without a defect: %v\n%s", err, out)
		}
	case err == nil || !strings.Contains(out, "--- FAIL: "+test+" ") && !strings.Contains(out, "panic: test timed out"):
		t.Errorf("not caught: %v\n%s", err, out)
	}
}
