// Package paxossim runs the cores of package paxos in one goroutine, under
// faults drawn from a seed: lost, delayed and repeated messages, connections
// that end, processes that die, power cuts that take what was not synced, disks
// that never come back, several proposers at once, checkpoints, installs, members that
// join, leave, take another's place or come back, and witnesses. A checker watches every step. The same seed gives the same run.
package paxossim

import (
	"fmt"
	"math/rand/v2"

	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Options of a run. The zero value means the defaults.
type Options struct {
	Steps int // events under faults; default 4000
	Trace func(format string, args ...any)
}

// Stats counts what a run did, so that a test can demand that it did something.
type Stats struct {
	Opened, Chosen, Received, Checkpoints, Installs, PowerCuts, Crashes, Renewed int
	Configs, Joins, Replaces, Removes, Witnesses, Retired, Revived, Wiped        int
}

// Add sums o into s.
func (s *Stats) Add(o Stats) {
	s.Opened += o.Opened
	s.Chosen += o.Chosen
	s.Received += o.Received
	s.Checkpoints += o.Checkpoints
	s.Installs += o.Installs
	s.Configs += o.Configs
	s.Joins += o.Joins
	s.Replaces += o.Replaces
	s.Removes += o.Removes
	s.Witnesses += o.Witnesses
	s.Retired += o.Retired
	s.Revived += o.Revived
	s.Wiped += o.Wiped
	s.PowerCuts += o.PowerCuts
	s.Crashes += o.Crashes
	s.Renewed += o.Renewed
}

// violation is panicked with and recovered by Run.
type violation struct{ text string }

// World is one simulated pool with one group.
type World struct {
	rng    *rand.Rand
	opt    Options
	nodes  []*node
	queues [][][]message // from, to
	cut    [][]bool      // no messages pass
	busy   [][2]int      // pairs with queued messages, refreshed on demand
	calm   bool          // healing: no more faults
	faults int           // of 1000 events
	opens  int           // of 1000 events
	moves  int           // of 100 acts of a holder: changes of members
	ills   int           // the higher, the longer damage lasts
	pace   int           // most messages delivered in one event
	nextID uint64
	step   int
	stats  Stats
	check  checker
}

type message struct {
	run func() // on delivery
}

// Run simulates one seed. The error names what was violated, and when.
func Run(seed uint64, opt Options) (stats Stats, err error) {
	if opt.Steps == 0 {
		opt.Steps = 4000
	}
	w := newWorld(seed, opt)
	defer func() {
		if r := recover(); r != nil {
			v, ok := r.(violation)
			if !ok {
				v.text = fmt.Sprint(r)
			}
			stats, err = w.stats, fmt.Errorf("step %d: %s", w.step, v.text)
		}
	}()
	for ; w.step < opt.Steps; w.step++ {
		w.event()
		w.invariants()
	}
	w.heal()
	return w.stats, nil
}

func (w *World) trace(format string, args ...any) {
	if w.opt.Trace != nil {
		w.opt.Trace("%5d "+format, append([]any{w.step}, args...)...)
	}
}

func (w *World) fail(format string, args ...any) {
	w.trace("VIOLATION "+format, args...)
	panic(violation{fmt.Sprintf(format, args...)})
}

func newWorld(seed uint64, opt Options) *World {
	w := &World{rng: rand.New(rand.NewPCG(seed, 0x6761_6269_6f6e)), opt: opt}
	w.faults = []int{1, 5, 15, 40}[w.rng.IntN(4)]
	w.opens = []int{1, 1, 3, 20}[w.rng.IntN(4)]
	w.moves = []int{5, 40, 90}[w.rng.IntN(3)]
	w.pace = []int{1, 4, 16}[w.rng.IntN(3)]
	w.ills = []int{1, 1, 10, 1000}[w.rng.IntN(4)]
	voters := []int{1, 2, 3, 3, 3, 5}[w.rng.IntN(6)]
	total := voters + w.rng.IntN(4)
	witnesses := []int{0, 0, 1, 2}[w.rng.IntN(4)]
	cfg := paxos.Config{Version: 1}
	for i := range total + witnesses {
		n := &node{w: w, i: i, up: true}
		n.newDisk()
		if i >= total {
			n.member.Role = paxos.Witness
		}
		w.nodes = append(w.nodes, n)
		if i < voters {
			cfg.Members = append(cfg.Members, n.member)
		}
		w.queues = append(w.queues, make([][]message, total+witnesses))
		w.cut = append(w.cut, make([]bool, total+witnesses))
	}
	birth := paxos.Checkpoint{Value: w.check.init(), Config: cfg}
	missed := -1
	if voters > 2 && w.rng.IntN(4) == 0 {
		missed = w.rng.IntN(voters)
		w.check.lost = append(w.check.lost, cfg.Members[missed])
	}
	for i, n := range w.nodes[:voters] {
		if i != missed {
			n.disk.hard = &paxos.Hard{Checkpoint: birth}
			n.acceptor = paxos.NewAcceptor(*n.disk.hard)
		}
	}
	w.check.birth, w.check.settled = cfg, cfg
	return w
}

// send queues a message; on delivery run is called if to is up.
func (w *World) send(from, to int, run func()) {
	if w.cut[from][to] || !w.nodes[from].up {
		return
	}
	w.queues[from][to] = append(w.queues[from][to], message{run})
}

// deliver takes one message off a random connection.
func (w *World) deliver() bool {
	w.busy = w.busy[:0]
	for f := range w.nodes {
		for t := range w.nodes {
			if len(w.queues[f][t]) > 0 {
				w.busy = append(w.busy, [2]int{f, t})
			}
		}
	}
	if len(w.busy) == 0 {
		return false
	}
	at := w.busy[w.rng.IntN(len(w.busy))]
	q := w.queues[at[0]][at[1]]
	m := q[0]
	w.queues[at[0]][at[1]] = q[1:]
	if w.nodes[at[1]].up {
		m.run()
	}
	return true
}

// disconnect loses what is under way between two nodes.
func (w *World) disconnect(a, b int) {
	w.queues[a][b], w.queues[b][a] = nil, nil
	w.nodes[a].lost(b)
	w.nodes[b].lost(a)
}

// connected tells whether messages can pass.
func (w *World) connected(a, b int) bool { return !w.cut[a][b] && !w.cut[b][a] && w.nodes[b].up }

// event makes one thing happen.
func (w *World) event() {
	r := w.rng.IntN(1000)
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch {
	case r < 600:
		for range 1 + w.rng.IntN(w.pace) {
			if !w.deliver() {
				n.idle()
				break
			}
		}
	case r < 700:
		n.finishSync()
	case r < 880:
		if o := w.holding(); o != nil && w.rng.IntN(4) > 0 {
			n = o
		}
		n.act()
	case r < 930:
		n.maintain()
	case r < 930+w.opens:
		n.open()
	case r < 930+w.opens+w.faults:
		w.fault(n)
	case r >= 995 && w.rng.IntN(w.ills) == 0:
		w.mend(n)
	default:
		w.deliver()
	}
}

// holding is a node with a proposer that is open, if there is one.
func (w *World) holding() *node {
	first := w.rng.IntN(len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(first+i)%len(w.nodes)]; n.up && n.holder != nil && n.holder.opened {
			return n
		}
	}
	return nil
}

// fault does some damage, or mends some.
func (w *World) fault(n *node) {
	o := w.rng.IntN(len(w.nodes))
	switch r := w.rng.IntN(100); {
	case r < 20 && o != n.i:
		w.trace("connection %d-%d ends", n.i, o)
		w.disconnect(n.i, o)
		w.reconnect(n.i, o)
	case r < 30 && o != n.i:
		w.trace("link %d-%d cut", n.i, o)
		w.cut[n.i][o], w.cut[o][n.i] = true, true
		w.disconnect(n.i, o)
	case r < 55 && o != n.i:
		w.cut[n.i][o], w.cut[o][n.i] = false, false
		w.reconnect(n.i, o)
	case r < 65:
		n.crash(false)
	case r < 72:
		n.crash(true)
	case r < 74 && w.rng.IntN(4) == 0:
		w.trace("power cut everywhere")
		for _, n := range w.nodes {
			n.crash(true)
		}
	case r < 78 && w.check.expendable(n.member):
		n.crash(true)
		w.trace("disk of %d is gone for ever", n.i)
		w.stats.Wiped++
		w.check.lost = append(w.check.lost, n.member)
		n.newDisk()
	default:
		n.restart()
	}
}

// mend starts a node, if it is down, and all its links.
func (w *World) mend(n *node) {
	n.restart()
	for o := range w.nodes {
		if o != n.i && (w.cut[n.i][o] || w.cut[o][n.i]) {
			w.cut[n.i][o], w.cut[o][n.i] = false, false
			w.reconnect(n.i, o)
		}
	}
}

func (w *World) reconnect(a, b int) {
	if w.connected(a, b) {
		w.nodes[a].found(b)
	}
	if w.connected(b, a) {
		w.nodes[b].found(a)
	}
}

// heal ends all faults and demands that one holder makes progress.
func (w *World) heal() {
	w.calm = true
	w.trace("healing")
	for _, n := range w.nodes {
		n.restart()
		for o := range w.nodes {
			w.cut[n.i][o] = false
		}
	}
	for a := range w.nodes {
		for b := range a {
			w.reconnect(a, b)
		}
	}
	one := w.nodes[w.rng.IntN(len(w.nodes))]
	for _, n := range w.nodes {
		if n != one {
			n.holder = nil
		}
	}
	for limit := w.step + 200_000; w.step < limit; w.step++ {
		r := w.rng.IntN(100)
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		switch {
		case r < 70:
			if !w.deliver() {
				n.finishSync()
			}
		case r < 85:
			n.finishSync()
		case r < 90:
			n.maintain()
		default:
			if one.holder == nil {
				one.open()
			}
			if one.progress() {
				w.trace("healed")
				return
			}
		}
		w.invariants()
	}
	w.fail("no progress although everything works: holder of node %d: %s", one.i, one.describe())
}

func (w *World) invariants() {
	for _, n := range w.nodes {
		if n.acceptor != nil {
			n.acceptor.Check()
		}
		if n.holder != nil && n.holder.core != nil {
			n.holder.core.Check()
		}
	}
}
