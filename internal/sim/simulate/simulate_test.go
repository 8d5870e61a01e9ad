//go:build sim

package main

import (
	"bufio"
	"fmt"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/sim/whole"
)

// total adds up what many seeds did.
type total struct {
	seeds, ops, unknown, checked, undecided, attaches int
	virtual                                           time.Duration
	faults                                            map[string]int
}

func (s *total) add(r whole.Result) {
	s.seeds++
	s.ops += r.Ops
	s.unknown += r.Unknown
	s.checked += r.Checked
	s.undecided += r.Undecided
	s.attaches += r.Attaches
	s.virtual += r.Virtual
	for k, n := range r.Faults {
		s.faults[k] += n
	}
}

func (s *total) String() string {
	var f []string
	n := 0
	for _, k := range slices.Sorted(maps.Keys(s.faults)) {
		f = append(f, fmt.Sprintf("%s %d", k, s.faults[k]))
		n += s.faults[k]
	}
	return fmt.Sprintf("%d seeds, %.2f simulated hours, %d operations (%d of unknown outcome) over %d sessions, %d checked on their blocks, %d blocks not to the end, %d faults: %s",
		s.seeds, s.virtual.Hours(), s.ops, s.unknown, s.attaches, s.checked, s.undecided, n, strings.Join(f, ", "))
}

// run plays what next gives, on all processors, and reports violations.
func run(t *testing.T, bin string, next func() (seed uint64, args []string, more bool)) {
	t.Helper()
	began := time.Now()
	sum := total{faults: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	procs := runtime.NumCPU()
	if s := os.Getenv("GABION_SIM_PROCS"); s != "" {
		procs = int(number(t, s))
	}
	for range procs {
		wg.Go(func() {
			for {
				mu.Lock()
				seed, args, more := next()
				more = more && !t.Failed()
				mu.Unlock()
				if !more {
					return
				}
				r, _ := play(bin, seed, "", args...)
				mu.Lock()
				sum.add(r)
				if r.Violation != "" {
					t.Errorf("seed %d: %s\n%s", seed, r.Violation, strings.Join(tailOf(r.Events, 60), "\n"))
					t.Logf("again: make sim SEED=%d NODES=%s", seed, os.Getenv("GABION_SIM_NODES"))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("%v; %.2f simulated hours per minute", &sum, sum.virtual.Hours()/took.Minutes())
	if sum.seeds == 0 || sum.checked == 0 {
		t.Error("nothing was simulated")
	}
	if sum.undecided > 1+sum.seeds/4 {
		t.Errorf("the histories of %d blocks were too tangled to be judged", sum.undecided)
	}
}

func number(t *testing.T, s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		t.Fatalf("%q is not a positive number", s)
	}
	return n
}

func tailOf(s []string, n int) []string { return s[max(0, len(s)-n):] }

// TestSeedReplays plays seeds again with another environment, which puts all memory
// elsewhere, and with a log, which allocates: their courses must be the same. What is
// walked in the order of addresses is found by it, and what the runtime does when real
// time has passed.
func TestSeedReplays(t *testing.T) {
	bin := build(t, "")
	for _, seed := range []uint64{910241, 920255, 920256, 920257} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			first, _ := play(bin, seed, "", "-nodes=5", "-for=2m")
			other, _ := play(bin, seed, "GABION_MORE=1", "-nodes=5", "-for=2m")
			said, _ := play(bin, seed, "", "-nodes=5", "-for=2m", "-v")
			if first.Ops == 0 || first.Trace != other.Trace || first.Trace != said.Trace {
				t.Errorf("three plays of seed %d, of %d operations: traces %x, with one more variable %x, with a log %x", seed, first.Ops, first.Trace, other.Trace, said.Trace)
			}
		})
	}
}

// TestWholePools plays the seed that GABION_SIM_SEED names, with all that its
// nodes log; or the corpus, and then seeds for GABION_SIM_SECONDS, at most
// GABION_SIM_SEEDS of them: fresh ones, or those from GABION_SIM_FIRST on.
func TestWholePools(t *testing.T) {
	bin := build(t, "")
	if s := os.Getenv("GABION_SIM_SEED"); s != "" {
		one(t, bin, uint64(number(t, s)))
		return
	}
	t.Run("corpus", func(t *testing.T) {
		corpus := readCorpus(t)
		run(t, bin, func() (uint64, []string, bool) {
			if len(corpus) == 0 {
				return 0, nil, false
			}
			k := corpus[0]
			corpus = corpus[1:]
			return k.seed, k.args, true
		})
	})
	t.Run("fresh", func(t *testing.T) {
		seconds := int64(60)
		if s := os.Getenv("GABION_SIM_SECONDS"); s != "" {
			seconds = number(t, s)
		}
		end := time.Now().Add(time.Duration(seconds) * time.Second)
		first, most := uint64(time.Now().UnixMilli()), uint64(math.MaxUint64)
		if s := os.Getenv("GABION_SIM_FIRST"); s != "" {
			first = uint64(number(t, s))
		}
		if s := os.Getenv("GABION_SIM_SEEDS"); s != "" {
			most = uint64(number(t, s))
		}
		t.Logf("seeds from %d on", first)
		played := uint64(0)
		run(t, bin, func() (uint64, []string, bool) {
			seed := first + played
			played++
			return seed, pools(t), played <= most && time.Now().Before(end)
		})
	})
}

// pools is the argument for pools of GABION_SIM_NODES nodes; without it the seed draws their number.
func pools(t *testing.T) []string {
	if s := os.Getenv("GABION_SIM_NODES"); s != "" {
		return []string{"-nodes", fmt.Sprint(number(t, s))}
	}
	return nil
}

func one(t *testing.T, bin string, seed uint64) {
	r, said := play(bin, seed, "", append(pools(t), "-v")...)
	t.Logf("seed %d, trace %x", seed, r.Trace)
	name := fmt.Sprintf("%s/sim-%d.log", os.TempDir(), seed)
	if err := os.WriteFile(name, []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("what the nodes logged is in %s", name)
	if r.Violation != "" {
		t.Errorf("seed %d: %s\n%s", seed, r.Violation, strings.Join(r.Events, "\n"))
	}
	sum := total{faults: map[string]int{}}
	sum.add(r)
	t.Log(&sum)
}

// known is a seed of the corpus, with what else it needs to be that run.
type known struct {
	seed uint64
	args []string
}

// readCorpus reads testdata/corpus.txt: a seed on each line, perhaps a number of nodes, and what it found.
func readCorpus(t *testing.T) (corpus []known) {
	f, err := os.Open("testdata/corpus.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil || len(fields) > 2 {
			t.Fatalf("corpus.txt: %q: %v", line, err)
		}
		k := known{seed: n}
		if len(fields) == 2 {
			k.args = []string{"-nodes", fields[1]}
		}
		corpus = append(corpus, k)
	}
	return corpus
}
