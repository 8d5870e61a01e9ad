//go:build sim || mutate

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
// where a walk over a map begins. The program is built with a runtime whose
// selects draw from a stream of their own with a fixed start and whose walks
// begin at a fixed place, so that a seed gives one schedule, whatever else is
// allocated, logged or asserted. Each change must fit as often as told.
var derandomize = []struct {
	file     string // of the runtime
	old, new string
	times    int
}{
	{"rand.go", "if len(startupRand) >= 16 &&\n", "if true {\n\t\tseed[0] = 1\n\t} else if len(startupRand) >= 16 &&\n", 1},
	{"rand.go", "mp := getg().m\n", "mp := &m0\n", 2},
	{"rand.go", "func maps_rand() uint64 {\n\treturn rand()\n", "func maps_rand() uint64 {\n\treturn 0x9e3779b97f4a7c15\n", 1},
	{"rand.go", "\tmp.cheaprand = rand()\n", "\tmp.cheaprand = seed[0]\n", 1}, // threads come and go
	{"rand.go", "// cheaprand64 is ", selectRand + "\n// cheaprand64 is ", 1},
	// A thread of the runtime that looks on in real time preempts what seems to
	// have run for long: after a jump of the clock, anything. No such thread.
	{"proc.go", `const haveSysmon = GOARCH != "wasm"`, `const haveSysmon = GOARCH == ""`, 1},
	{"select.go", "j := cheaprandn(", "j := selectRandn(", 1},
}

const selectRand = `var selectState uint64

func selectRandn(n uint32) uint32 {
	selectState = selectState*6364136223846793005 + 1442695040888963407
	return uint32((selectState >> 32 * uint64(n)) >> 32)
}
`

// runtimeOverlay writes the changed files of the runtime and the list of them
// that go build wants.
func runtimeOverlay(t *testing.T, dir string) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	texts, replace := map[string]string{}, map[string]string{}
	for _, c := range derandomize {
		name := filepath.Join(strings.TrimSpace(string(root)), "src", "runtime", c.file)
		if texts[name] == "" {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			texts[name], replace[name] = string(src), filepath.Join(dir, c.file+".txt")
		}
		if n := strings.Count(texts[name], c.old); n != c.times {
			t.Fatalf("%s has %q %d times, not %d: this Go has another runtime; see how it draws random numbers now", name, c.old, n, c.times)
		}
		texts[name] = strings.ReplaceAll(texts[name], c.old, c.new)
	}
	for name, text := range texts {
		if err := os.WriteFile(replace[name], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// build builds the simulator with the clock that jumps, and with the tags.
func build(t *testing.T, tags string) string {
	t.Helper()
	if bin := os.Getenv("GABION_SIM_BIN"); bin != "" && tags == "" {
		return bin
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "simulate")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", runtimeOverlay(t, dir), "-tags", "faketime "+tags, "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}
