// Command tally reads the output of one or more runs of go test -json from
// standard input, prints it the way go test does, and ends with one line that
// counts: "N passed, N failed, N skipped". It fails when a test, a package or
// a build failed, when nothing ran, and, with CI=true, when anything was
// skipped.
//
// usage: go test -json ./... | tally [-show REGEXP]
//
// Of packages that match REGEXP all output is printed, of others only that of
// failed and skipped tests.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// event is one line of go test -json (cmd/internal/test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// lineMax bounds one line of input, in bytes.
const lineMax = 8 << 20

type tally struct {
	out                     io.Writer
	show                    *regexp.Regexp
	passed, failed, skipped int
	output                  map[string]*strings.Builder // of tests that have not ended
	ran                     map[string]int              // tests of a package
	builds                  strings.Builder
	slow                    []string
}

// slowMin is from when on a test is listed at the end, in seconds.
const slowMin = 20

func main() {
	show := flag.String("show", "^$", "packages whose whole output is printed")
	flag.Parse()
	t := &tally{out: os.Stdout, show: regexp.MustCompile(*show), output: map[string]*strings.Builder{}, ran: map[string]int{}}
	began := time.Now()
	s := bufio.NewScanner(os.Stdin)
	s.Buffer(nil, lineMax)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(t.out, s.Text()) // not of go test: let it through
			continue
		}
		t.add(e)
	}
	if err := s.Err(); err != nil {
		fmt.Fprintln(t.out, "tally:", err)
		t.failed++
	}
	os.Exit(t.end(time.Since(began), os.Getenv("CI") == "true"))
}

func (t *tally) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		t.builds.WriteString(e.Output)
	case "build-fail":
		fmt.Fprint(t.out, t.builds.String())
		t.builds.Reset()
	case "output":
		if e.Test == "" || t.show.MatchString(e.Package) {
			if e.Test != "" || noteworthy(e.Output) {
				fmt.Fprint(t.out, e.Output)
			}
			return
		}
		if t.output[key] == nil {
			t.output[key] = &strings.Builder{}
		}
		t.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		t.result(e, key)
	}
}

// noteworthy leaves out what result says better about a package.
func noteworthy(line string) bool {
	return !strings.HasPrefix(line, "PASS") && !strings.HasPrefix(line, "ok  \t") &&
		!strings.HasPrefix(line, "FAIL") && !strings.HasPrefix(line, "?   \t")
}

func (t *tally) result(e event, key string) {
	if e.Test == "" {
		t.packageResult(e)
		return
	}
	t.ran[e.Package]++
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
	case "skip":
		t.skipped++
	}
	if e.Elapsed >= slowMin && !strings.Contains(e.Test, "/") {
		t.slow = append(t.slow, fmt.Sprintf("%6.1fs  %s  %s", e.Elapsed, e.Package, e.Test))
	}
	if b := t.output[key]; b != nil {
		if e.Action != "pass" {
			fmt.Fprint(t.out, b.String())
		}
		delete(t.output, key)
	}
}

func (t *tally) packageResult(e event) {
	switch {
	case e.Action == "fail":
		fmt.Fprintf(t.out, "FAIL\t%s\t%.3fs\n", e.Package, e.Elapsed)
		t.failed++ // beside its tests: it may have none, or have died outside them
		t.unfinished(e.Package)
	case t.ran[e.Package] > 0:
		fmt.Fprintf(t.out, "ok  \t%s\t%.3fs\t%d tests\n", e.Package, e.Elapsed, t.ran[e.Package])
	}
}

// unfinished prints what tests had to say that were running when the package
// died.
func (t *tally) unfinished(pkg string) {
	for key, b := range t.output {
		if strings.HasPrefix(key, pkg+" ") {
			fmt.Fprint(t.out, b.String())
			delete(t.output, key)
		}
	}
}

func (t *tally) end(took time.Duration, ci bool) int {
	if len(t.slow) > 0 {
		fmt.Fprintf(t.out, "\nslow tests:\n%s\n", strings.Join(t.slow, "\n"))
	}
	fmt.Fprintf(t.out, "\ntests took %v\n%d passed, %d failed, %d skipped\n", took.Round(time.Second), t.passed, t.failed, t.skipped)
	switch {
	case t.failed > 0:
		return 1
	case t.passed == 0:
		fmt.Fprintln(os.Stderr, "tally: no test ran")
		return 1
	case ci && t.skipped > 0:
		fmt.Fprintln(os.Stderr, "tally: a skipped test is a failure when CI=true")
		return 1
	}
	return 0
}
