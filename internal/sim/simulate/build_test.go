//go:build sim || mutate

package main

import (
	"cmp"
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
// begin at a fixed place, and with contexts that end their children in the order
// in which those began, not in that of a map of their addresses: so that a seed
// gives one schedule, whatever else is allocated, logged or asserted. Each change
// must fit as often as told.
var derandomize = []struct {
	file     string // below GOROOT/src
	old, new string
	times    int
}{
	{"runtime/rand.go", "if len(startupRand) >= 16 &&\n", "if true {\n\t\tseed[0] = 1\n\t} else if len(startupRand) >= 16 &&\n", 1},
	{"runtime/rand.go", "mp := getg().m\n", "mp := &m0\n", 2},
	{"runtime/rand.go", "func maps_rand() uint64 {\n\treturn rand()\n", "func maps_rand() uint64 {\n\treturn 0x9e3779b97f4a7c15\n", 1},
	{"runtime/rand.go", "\tmp.cheaprand = rand()\n", "\tmp.cheaprand = seed[0]\n", 1}, // threads come and go
	{"runtime/rand.go", "// cheaprand64 is ", selectRand + "\n// cheaprand64 is ", 1},
	// A thread of the runtime that looks on in real time preempts what seems to
	// have run for long: after a jump of the clock, anything. No such thread.
	{"runtime/proc.go", `const haveSysmon = GOARCH != "wasm"`, `const haveSysmon = GOARCH == ""`, 1},
	// What the runtime does in the background, and how often, depends on where the
	// memory lies.
	{"runtime/proc.go", "if pp.schedtick%61 == 0 &&", "if false &&", 1},
	{"runtime/mgcscavenge.go", "released, workTime := scavenger.run()", "released, workTime := uintptr(0), float64(0)", 1},
	{"runtime/select.go", "j := cheaprandn(", "j := selectRandn(", 1},
	{"context/context.go", "\tchildren map[canceler]struct{} ", "\torder    []canceler // those of children, and some that have left\n\tchildren map[canceler]struct{} ", 1},
	{"context/context.go", "p.children[child] = struct{}{}\n", "p.children[child] = struct{}{}\n\t\t\tp.order = append(p.order, child)\n", 1},
	{"context/context.go", "delete(p.children, child)\n", "delete(p.children, child)\n" + forget, 1},
	{"context/context.go", "for child := range c.children {\n", "for _, child := range c.order {\n\t\tif _, in := c.children[child]; !in {\n\t\t\tcontinue\n\t\t}\n", 1},
}

// forget bounds what a parent remembers of children that have left.
const forget = `		if len(p.order) > 2*len(p.children)+8 {
			kept := p.order[:0]
			for _, c := range p.order {
				if _, in := p.children[c]; in {
					kept = append(kept, c)
				}
			}
			clear(p.order[len(kept):])
			p.order = kept
		}
`

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
		name := filepath.Join(strings.TrimSpace(string(root)), "src", c.file)
		if texts[name] == "" {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			texts[name], replace[name] = string(src), filepath.Join(dir, strings.ReplaceAll(c.file, "/", "-")+".txt")
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

// build builds the simulator with the clock that jumps, and with the tags. It is kept
// where GABION_SIM_KEEP says, for a debugger; GABION_SIM_BIN is one that was built before.
func build(t *testing.T, tags string) string {
	t.Helper()
	if bin := os.Getenv("GABION_SIM_BIN"); bin != "" && tags == "" {
		return bin
	}
	dir := t.TempDir()
	bin := cmp.Or(os.Getenv("GABION_SIM_KEEP"), filepath.Join(dir, "simulate"))
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", runtimeOverlay(t, dir), "-tags", "faketime "+tags, "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}
