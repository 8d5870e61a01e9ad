package lint

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// on is where a defect is built in.
var on = regexp.MustCompile(`mutant\.On\("([^"]*)"\)`)

// TestMutationsAreRegistered: each defect of the registry is built into its folder,
// only registered ones are, and something must find each.
func TestMutationsAreRegistered(t *testing.T) {
	built := map[string][]string{}
	for _, f := range files {
		for _, m := range on.FindAllSubmatch(f.src, -1) {
			if f.dir != "internal/lint" && !isFree(f.dir) {
				built[string(m[1])] = append(built[string(m[1])], f.dir)
			}
		}
	}
	seen := map[string]bool{}
	for _, m := range mutant.All {
		if seen[m.Name] {
			t.Errorf("two mutations are called %s", m.Name)
		}
		seen[m.Name] = true
		if !slices.Contains(built[m.Name], m.In) {
			t.Errorf("%s is not built into %s", m.Name, m.In)
		}
		if len(m.Tests) == 0 && m.Core == 0 && m.Whole == 0 {
			t.Errorf("nothing must find %s", m.Name)
		}
		for _, at := range m.Tests {
			dir, test, ok := strings.Cut(at, ".")
			if !ok {
				dir, test = m.In, at
			}
			if !declares(dir, test) {
				t.Errorf("%s: %s has no %s", m.Name, dir, test)
			}
		}
	}
	for name, dirs := range built {
		if !seen[name] {
			t.Errorf("%s, built into %v, is not in the registry", name, dirs)
		}
	}
}

// declares tells whether a test file of a folder declares the test.
func declares(dir, test string) bool {
	return slices.ContainsFunc(files, func(f *file) bool {
		return f.dir == dir && f.test && strings.Contains(string(f.src), "\nfunc "+test+"(")
	})
}

const testingPage = root + "/docs/TESTING.md"

// TestMutationsAreDocumented: docs/TESTING.md ends with the registry. GABION_WRITE=1
// writes it there.
func TestMutationsAreDocumented(t *testing.T) {
	b, err := os.ReadFile(testingPage)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| defect | in | what it breaks | found by |\n|---|---|---|---|\n"
	text, old, ok := strings.Cut(string(b), head)
	if !ok {
		t.Fatalf("docs/TESTING.md has no table that begins with %q", head)
	}
	var want strings.Builder
	for _, m := range mutant.All {
		var by []string
		for _, at := range m.Tests {
			_, test, ok := strings.Cut(at, ".")
			if !ok {
				test = at
			}
			by = append(by, test)
		}
		if m.Core > 0 {
			by = append(by, fmt.Sprintf("core, seed %d", m.Core))
		}
		if m.Whole > 0 {
			w := fmt.Sprintf("**pools, seed %d**", m.Whole)
			if m.Only != "" {
				w += " of " + strings.ReplaceAll(m.Only, ",", ", ")
			}
			by = append(by, w)
		}
		fmt.Fprintf(&want, "| %s | `%s` | %s | %s |\n", m.Name, m.In, m.Breaks, strings.Join(by, "; "))
	}
	if old == want.String() {
		return
	}
	if os.Getenv("GABION_WRITE") == "" {
		t.Fatal("the table of mutations in docs/TESTING.md is not that of internal/mutant: GABION_WRITE=1 go test ./internal/lint")
	}
	if err := os.WriteFile(testingPage, []byte(text+head+want.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
