// Package whole simulates whole pools: three to seven nodes of real code (the
// cores of internal/node, over links and disks in memory) with clients that
// write, read and take over, under faults that one seed draws.
//
// Run plays one seed. It uses package time like the code that it drives: in a
// program built with the tag faketime, as internal/sim/simulate is, hours pass
// in seconds, because the clock jumps to the next timer whenever all goroutines
// wait, be it for a channel, a lock or a disk. docs/SIMULATION.md tells the rest.
package whole

import (
	"cmp"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
)

// Options of one run. Zero fields are drawn from the seed or take defaults.
type Options struct {
	Seed  uint64
	Nodes int           // 3 to 7
	For   time.Duration // of the faults; default 5 minutes
	// Without names kinds of faults that are left out.
	Without []string
	// Only names the kinds of faults that come, instead of what the seed draws.
	Only []string
	// Log is told what the nodes say.
	Log *slog.Logger
}

// Result of one run.
type Result struct {
	Seed      uint64         `json:"seed"`
	Nodes     int            `json:"nodes"`
	Virtual   time.Duration  `json:"virtual"`   // simulated time
	Ops       int            `json:"ops"`       // operations of clients that ended
	Unknown   int            `json:"unknown"`   // of them, with an unknown outcome
	Checked   int            `json:"checked"`   // operations on single blocks that were checked
	Undecided int            `json:"undecided"` // blocks whose history was too tangled to be judged to its end
	Faults    map[string]int `json:"faults"`    // by kind
	Attaches  int            `json:"attaches"`  // sessions that clients opened
	GivenUp   int            `json:"given_up"`  // answered changes and flushes that a forced recovery gave up
	Trace     uint64         `json:"trace"`     // of everything that clients saw: equal for equal runs
	Violation string         `json:"violation"` // empty if all is well
	Events    []string       `json:"events"`    // faults and what came of them, if something was violated
}

// patience bounds in simulated time what must happen once everything is healed.
const patience = 3 * time.Minute

// World is a pool and all that is around it.
type World struct {
	opt   Options
	net   *link.Memory
	pool  ident.PoolID
	began time.Time
	log   *slog.Logger

	mood  mood
	kinds []kind // of faults, in this run

	mu         sync.Mutex
	aims       []*aim
	rival      int  // machine that the newest takeover goes to
	calm       bool // the faults are over
	machines   []*machine
	volumes    []*volume
	passing    []*volume // made and deleted during the run
	seq        int64     // counts what clients do and see
	trace      uint64
	faults     map[string]int
	events     []string
	wipes      bool // machines may get lost in this run
	lies       bool // a disk may damage data silently
	forces     bool // volumes may be recovered by force
	forcing    bool // one is now
	violation  string
	stopped    chan struct{} // closed at the first violation
	ended      chan struct{} // closed when all is over
	calmed     chan struct{} // closed when the faults are over
	unknown    int
	ops        int
	attaches   int
	background sync.WaitGroup // the ends of dead processes, and of faults
}

// Streams of the seed.
const (
	forWorld = iota + 1
	forFaults
	forDisks
	forVolumes
	forChurn
	forMood
	forClients // and above
	forForce   = 1 << 20

	forStrangers = 2 << 20
)

func (w *World) stream(n uint64) *rand.Rand { return rand.New(rand.NewPCG(w.opt.Seed, n)) }

// Run plays one seed to its end.
func Run(opt Options) Result {
	opt.For = cmp.Or(opt.For, 5*time.Minute)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	w := &World{opt: opt, net: link.NewMemory(opt.Seed), pool: ident.PoolID{0x51}, began: time.Now(), log: opt.Log,
		faults: map[string]int{}, stopped: make(chan struct{}), calmed: make(chan struct{}), ended: make(chan struct{})}
	tidied := make(chan struct{})
	go func() {
		defer close(tidied)
		w.tidy()
	}()
	w.play()
	close(w.ended)
	<-tidied
	r := Result{Seed: opt.Seed, Nodes: len(w.machines), Virtual: time.Since(w.began), Ops: w.ops, Unknown: w.unknown,
		Faults: w.faults, Attaches: w.attaches, Trace: w.trace, Violation: w.violation}
	for _, v := range append(w.volumes, w.passing...) {
		r.Checked += v.hist.checked
		r.Undecided += v.hist.undecided
		r.GivenUp += v.hist.givenUp()
	}
	if w.violation != "" {
		r.Events = w.events
	}
	return r
}

func (w *World) play() {
	rng := w.stream(forWorld)
	n := cmp.Or(w.opt.Nodes, 3+rng.IntN(5))
	w.net.SetDelay(20*time.Microsecond, time.Duration(100+rng.IntN(900))*time.Microsecond)
	chaos := w.stream(forFaults)
	w.mood = drawMood(w.stream(forMood))
	in := w.choose(chaos)
	w.kinds = in
	for _, k := range in {
		w.wipes = w.wipes || k.name == "wipe"
		w.lies = w.lies || slices.Contains(lies, k.name)
		w.forces = w.forces || k.name == "force"
	}
	if !w.found(n, rng) || !w.furnish(rng) {
		return
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i, v := range w.volumes {
		for k := range v.clients {
			c := newClient(w, v, fmt.Sprintf("client-%d-%d", i, k), w.stream(forClients+uint64(16*i+k)))
			clients.Go(func() { c.run(stop) })
		}
	}
	clients.Go(func() { w.churn(w.stream(forChurn), stop) })
	w.torment(chaos, in)
	if !w.heal() {
		return
	}
	w.sleep(5 * time.Second)
	close(stop)
	if !w.within(patience, "the clients' operations end", func() { clients.Wait() }) {
		return
	}
	w.settle()
	for _, v := range append(w.volumes, w.passing...) {
		if w.sound() {
			w.check(v)
		}
	}
	if w.sound() {
		w.strangers(w.stream(forStrangers))
	}
}

// tidyEvery is how often garbage is collected, in simulated time.
const tidyEvery = 5 * time.Second

func (w *World) tidy() {
	for {
		runtime.GC()
		select {
		case <-time.After(tidyEvery):
		case <-w.ended:
			return
		}
	}
}

// sleep waits, or returns false at once when the run is over.
func (w *World) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.stopped:
		return false
	case <-t.C:
		return true
	}
}

// within demands that f ends in time.
func (w *World) within(d time.Duration, what string, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return w.sound()
	case <-t.C:
		stuck := stacks()
		w.violated("no progress: not within %v: %s", d, what)
		w.event("where everything waits:\n%s", stuck)
		select { // f may have more to tell
		case <-done:
		case <-time.After(time.Second):
			w.event("it hangs")
		}
		return false
	}
}

// violated ends the run with a verdict; the first one counts.
func (w *World) violated(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.violation != "" {
		return
	}
	w.violation = fmt.Sprintf(format, args...)
	w.note("VIOLATION: %s", w.violation)
	close(w.stopped)
}

func (w *World) sound() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.violation == ""
}

// event notes what happened to the pool.
func (w *World) event(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(format, args...)
}

func (w *World) note(format string, args ...any) {
	line := fmt.Sprintf("%12.6f #%d ", time.Since(w.began).Seconds(), w.seq) + fmt.Sprintf(format, args...)
	w.events = append(w.events, line)
	w.log.Info(line)
}

// count counts a fault and notes it.
func (w *World) count(kind, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[kind]++
	w.note(kind+": "+format, args...)
}

// tick is the next moment: moments are ordered as clients see them, finer than
// the clock.
func (w *World) tick(saw uint64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	w.trace = (w.trace ^ saw ^ uint64(time.Since(w.began))) * 0x9e3779b97f4a7c15
	w.trace ^= w.trace >> 29
	return w.seq
}
