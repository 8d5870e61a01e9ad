package whole

import (
	"regexp"
	"runtime"
	"slices"
	"strings"
)

var (
	goroutineHead = regexp.MustCompile(`^goroutine \d+ (?:gp=\S+ m=\S+ (?:mp=\S+ )?)?\[([^\],]*).*\]:`)
	arguments     = regexp.MustCompile(`\([^()]*\)$|\(\{.*\}\)$`)
)

// stacks tells where the goroutines of gabion wait, one line each: the kind of
// wait, then the calls from the innermost one on. Equal ones are told once.
func stacks() string {
	buf := make([]byte, 64<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var lines []string
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		head, rest, _ := strings.Cut(g, "\n")
		m := goroutineHead.FindStringSubmatch(head)
		if m == nil {
			continue
		}
		var calls []string
		for l := range strings.SplitSeq(rest, "\n") {
			if strings.HasPrefix(l, "\t") || strings.HasPrefix(l, "created by") {
				continue
			}
			if f, ok := strings.CutPrefix(l, "github.com/gabion-storage/gabion/"); ok {
				calls = append(calls, arguments.ReplaceAllString(f, ""))
			}
		}
		if len(calls) > 0 {
			lines = append(lines, m[1]+": "+strings.Join(calls, " < "))
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}
