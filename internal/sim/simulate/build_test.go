//go:build sim

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The random numbers of the runtime choose among ready cases of a select and
// where a walk over a map begins. The program is built with a runtime that
// draws them from a fixed start, one stream for the whole process, so that a
// seed gives one schedule. Each change must fit exactly once or twice, as told.
var derandomize = []struct {
	old, new string
	times    int
}{
	{"if len(startupRand) >= 16 &&\n", "if true {\n\t\tseed[0] = 1\n\t} else if len(startupRand) >= 16 &&\n", 1},
	{"mp := getg().m\n", "mp := &m0\n", 2},
}

// build builds the simulator with the clock that jumps, and with the tags.
func build(t *testing.T, tags string) string {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	name := filepath.Join(strings.TrimSpace(string(root)), "src", "runtime", "rand.go")
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text := string(src)
	for _, c := range derandomize {
		if n := strings.Count(text, c.old); n != c.times {
			t.Fatalf("%s has %q %d times, not %d: this Go has another runtime; see how it seeds itself now", name, c.old, n, c.times)
		}
		text = strings.ReplaceAll(text, c.old, c.new)
	}
	changed, overlay, bin := filepath.Join(dir, "rand.go.txt"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "simulate")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {name: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string][]byte{changed: []byte(text), overlay: list} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-tags", "faketime "+tags, "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}
