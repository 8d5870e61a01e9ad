package conform

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

const (
	// suiteTimeout bounds one test of libiscsi's suite, which runs in a process of its own.
	suiteTimeout = 45 * time.Second
	// passMin is how many tests gabion passed when this was written: fewer means
	// that one began to skip.
	passMin = 189
)

// brokenInSuite are tests of libiscsi 1.19.0 that no target can pass: the name, and
// what shows in the output that the target did its part.
var brokenInSuite = map[string]string{
	// It asserts that the response to the reset has come right behind the line that queues
	// the request (mended upstream in 5553d6b).
	"ALL.iSCSITMF.LUNResetSimpleAsync": "LU RESET completed",
}

// onWholeBlocks are tests that only make sense with one logical block in each
// physical one, as a volume with blocks of 4096 bytes has them: this one asks about
// block n+1 and expects to be told of the one a physical block behind n.
var onWholeBlocks = []string{"ALL.GetLBAStatus.UnmapSingle"}

// outcome of one test of the suite.
type outcome struct {
	result string // PASS, FAIL, SKIP, BROKEN
	output string
}

var (
	suiteName = regexp.MustCompile(`(?m)^ALL\.\w+\.[\w-]+$`)
	// suiteTests is CUnit's line "tests total ran passed failed inactive".
	suiteTests = regexp.MustCompile(`(?m)^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+`)
)

// suite runs every test of libiscsi's suite against the logical unit at url, which
// is given as two paths; those of onWholeBlocks against the one at whole.
func suite(t *testing.T, url, whole string) map[string]outcome {
	list, err := try("iscsi-test-cu", "--list")
	names := suiteName.FindAllString(list, -1)
	if len(names) < 200 {
		t.Fatalf("%d tests are listed: %v", len(names), err)
	}
	out := map[string]outcome{}
	for _, name := range names {
		at := url
		if slices.Contains(onWholeBlocks, name) {
			at = whole
		}
		ctx, cancel := context.WithTimeout(context.Background(), suiteTimeout)
		b, err := exec.CommandContext(ctx, "iscsi-test-cu", "--dataloss", "--allow-sanitize", "--Verbose-scsi", "--test="+name, at, at).CombinedOutput()
		cancel()
		o := outcome{output: string(b)}
		m := suiteTests.FindSubmatch(b)
		switch {
		case m == nil:
			o.result, o.output = "FAIL", fmt.Sprintf("%s\n%v", b, err)
		case string(m[2]) != "1" || string(m[4]) != "0":
			o.result = "FAIL"
			if sign := brokenInSuite[name]; sign != "" && strings.Contains(o.output, sign) {
				o.result = "BROKEN"
			}
		case strings.Contains(o.output, "[SKIPPED]"):
			o.result = "SKIP"
		default:
			o.result = "PASS"
		}
		out[name] = o
	}
	return out
}

// TestISCSISuite runs libiscsi's suite against a volume, and against tgt beside it.
func TestISCSISuite(t *testing.T) {
	cluster.Need(t, true, "iscsi-test-cu", "tgtd", "tgtadm")
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	for name, block := range map[string]string{"suite": "512", "whole": "4096"} {
		if _, err := n.Do("volume", "create", name, "--size", "256M", "--replicas", "1", "--block-size", block); err != nil {
			t.Fatal(err)
		}
	}
	tgt, err := cluster.StartTgt(t.TempDir(), 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tgt.Stop)
	var ours, theirs map[string]outcome
	var wg sync.WaitGroup
	base := "iscsi://" + n.Info.ISCSI + "/iqn.2026-11.storage.gabion:gabion:"
	wg.Go(func() { ours = suite(t, base+"suite/0", base+"whole/0") })
	wg.Go(func() { theirs = suite(t, tgt.URL, tgt.URL) })
	wg.Wait()

	doc, err := os.ReadFile("../../docs/ISCSI.md")
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string][2]int{}
	var differ []string
	for name, o := range ours {
		p := theirs[name]
		a, b := counts[o.result], counts[p.result]
		a[0]++
		counts[o.result] = a
		b = counts[p.result]
		b[1]++
		counts[p.result] = b
		if o.result != p.result {
			differ = append(differ, fmt.Sprintf("%-45s gabion %-6s tgt %s", name, o.result, p.result))
		}
		short := strings.TrimPrefix(name, "ALL.")
		family, _, _ := strings.Cut(short, ".")
		switch o.result {
		case "FAIL":
			t.Errorf("%s:\n%s", name, tail(o.output))
		case "SKIP", "BROKEN":
			if !strings.Contains(string(doc), "`"+family+"`") && !strings.Contains(string(doc), "`"+short+"`") {
				t.Errorf("%s is left out, and docs/ISCSI.md does not say why:\n%s", name, tail(o.output))
			}
		}
	}
	slices.Sort(differ)
	t.Logf("%d tests: gabion passes %d, skips %d, fails %d, cannot pass %d; tgt passes %d, skips %d, fails %d, cannot pass %d\n%s",
		len(ours), counts["PASS"][0], counts["SKIP"][0], counts["FAIL"][0], counts["BROKEN"][0],
		counts["PASS"][1], counts["SKIP"][1], counts["FAIL"][1], counts["BROKEN"][1], strings.Join(differ, "\n"))
	if counts["PASS"][0] < passMin {
		t.Errorf("%d tests pass, %d are wanted", counts["PASS"][0], passMin)
	}
}

// tail is the end of a test's output that tells why.
func tail(s string) string {
	if i := strings.Index(s, "Suite: "); i >= 0 {
		s = s[i:]
	}
	return s[max(0, len(s)-3000):]
}
