package paxossim

import (
	"encoding/binary"
	"fmt"

	"github.com/gabion-storage/gabion/quorum/paxos"
)

// holder is a proposer on a node, from its phase 1 on.
type holder struct {
	n       *node
	ballot  paxos.Ballot
	opening *paxos.Opening
	plan    *paxos.Plan
	bodies  map[uint64]paxos.Entry
	segment int // being fetched
	source  paxos.Member
	core    *paxos.Proposer
	opened  bool
	commit  uint64
	receive uint64
	start   uint64 // next slot when it was opened
	change  *change
}

// open begins phase 1 on this node, with a ballot above what it knows.
func (n *node) open() {
	if !n.up || n.holder != nil && n.w.rng.IntN(4) > 0 && !n.w.calm {
		return
	}
	var highest paxos.Ballot
	hints := []paxos.Config{n.w.check.birth}
	look := func(o *node) {
		switch {
		case o.acceptor != nil:
			// A configuration may wait to be chosen that its own members have not met.
			hints = append(hints, o.acceptor.Config(), paxos.Config{Members: []paxos.Member{{Node: o.member.Node, Brick: o.member.Brick}}})
			if highest.Less(o.acceptor.Promised()) {
				highest = o.acceptor.Promised()
			}
		case o.disk.tomb != nil && o.up:
			hints = append(hints, o.disk.tomb.Config)
		}
	}
	look(n)
	if o := n.w.nodes[n.w.rng.IntN(len(n.w.nodes))]; n.w.connected(n.i, o.i) {
		look(o)
	}
	if n.w.calm { // everybody is asked
		for _, o := range n.w.nodes {
			look(o)
		}
	}
	b := paxos.NextBallot(highest, n.epoch, n.member.Node, n.boot)
	n.epoch = b.Epoch
	h := &holder{n: n, ballot: b, opening: paxos.NewOpening(b), bodies: make(map[uint64]paxos.Entry)}
	for _, c := range hints {
		h.opening.Hint(c)
	}
	n.holder = h
	n.w.trace("node %d opens %v", n.i, b)
	h.ask()
}

func (h *holder) nodeOf(m paxos.Member) int { return int(m.Node[0]) - 1 }

func (h *holder) ask() {
	for _, m := range h.opening.Ask() {
		to := h.n.w.nodes[h.nodeOf(m)]
		h.n.w.send(h.n.i, to.i, func() { to.prepare(h.n.i, m, h.ballot) })
	}
}

func (h *holder) promised(m paxos.Member, p *paxos.Promise) {
	if h.core != nil || h.plan != nil {
		return
	}
	h.opening.Add(m, p)
	h.advance()
}

// advance goes on to fetch if phase 1 is done, or asks whom it still needs.
func (h *holder) advance() {
	if !h.opening.Done() {
		h.ask()
		return
	}
	h.plan = h.opening.Plan()
	h.fetchNext()
}

func (h *holder) fetchNext() {
	for _, seg := range h.plan.Segments[h.segment:] {
		m := seg.Sources[h.n.w.rng.IntN(len(seg.Sources))]
		h.source = m
		to := h.n.w.nodes[h.nodeOf(m)]
		h.n.w.send(h.n.i, to.i, func() { to.fetch(h.n.i, m, h.ballot, seg) })
		return
	}
	var entries []paxos.Entry
	for s := h.plan.Checkpoint.UpTo + 1; s <= h.plan.Recovered; s++ {
		entries = append(entries, h.bodies[s])
	}
	core, err := paxos.NewProposer(h.plan, entries)
	if err != nil {
		h.n.w.fail("recovery of %v: %v", h.ballot, err)
	}
	h.core = core
	h.n.w.trace("node %d holds %v, recovered to %d", h.n.i, h.ballot, h.plan.Recovered)
	for i := range h.n.w.nodes {
		if h.n.w.connected(h.n.i, i) {
			h.connect(i, true)
		}
	}
	h.after()
}

func (h *holder) fetched(m paxos.Member, seg paxos.Segment, entries []paxos.Entry) {
	if h.core != nil || h.plan == nil || !m.Same(h.source) || seg.Run != h.plan.Segments[h.segment].Run {
		return
	}
	if uint64(len(entries)) != seg.To-seg.From+1 {
		h.without(m)
		return
	}
	for _, e := range entries {
		h.bodies[e.Slot] = e
	}
	h.segment++
	h.fetchNext()
}

// without goes back to phase 1, not counting m's promise.
func (h *holder) without(m paxos.Member) {
	h.opening.Remove(m)
	h.plan, h.segment = nil, 0
	clear(h.bodies)
	h.advance()
}

func (h *holder) connect(o int, up bool) {
	if h.core == nil {
		return
	}
	for i := range h.core.Peers() {
		if h.nodeOf(h.core.Member(i)) == o {
			h.core.OnInstalled(i, paxos.Broken) // a call under way is over
			h.core.Connect(i, up)
		}
	}
	h.core.Advance()
	h.after()
}

func (h *holder) fenced(by paxos.Ballot) {
	if !h.ballot.Less(by) || h.n.holder != h {
		return
	}
	h.n.w.trace("node %d: %v is fenced by %v", h.n.i, h.ballot, by)
	h.n.epoch = max(h.n.epoch, by.Epoch)
	h.n.holder = nil
}

// pump sends what the core has.
func (h *holder) pump() {
	for i := 0; i < h.core.Peers(); i++ {
		m := h.core.Member(i)
		to := h.n.w.nodes[h.nodeOf(m)]
		for {
			out, ok := h.core.Pull(i)
			if !ok {
				break
			}
			if out.Kind == paxos.OutInstall {
				if out.Bare {
					m.Role = paxos.Witness
				}
				h.n.w.send(h.n.i, to.i, func() { to.install(h.n.i, m, h.ballot, *out.Checkpoint) })
				continue
			}
			h.n.w.send(h.n.i, to.i, func() { to.take(h.n.i, m, h.ballot, out) })
		}
	}
}

// after looks at the watermarks and tells the checker, then pumps.
func (h *holder) after() {
	if h.n.holder != h {
		return
	}
	w := h.n.w
	if h.opened {
		h.observe()
	} else if h.core.Commit()+1 >= h.core.Next() {
		h.opened = true
		h.start = h.core.Next()
		w.stats.Opened++
		h.completed()
	}
	h.pump()
}

// completed shows the checker what this holder will serve from.
func (h *holder) completed() {
	var tail []paxos.Entry
	c := h.core.Checkpoint()
	for s := c.UpTo + 1; s < h.core.Next(); s++ {
		tail = append(tail, h.core.Entry(s))
	}
	h.n.w.trace("node %d has opened %v: checkpoint %d, next %d, config %d", h.n.i, h.ballot,
		c.UpTo, h.core.Next(), h.core.Config().Version)
	h.n.w.opened(h.ballot, c, tail)
	h.commit, h.receive = h.core.Commit(), h.core.Received()
}

func (h *holder) observe() {
	w := h.n.w
	for s := h.commit + 1; s <= h.core.Commit(); s++ {
		if s > h.core.Base() {
			w.chosen(h.ballot, h.core.Entry(s))
		} else if w.check.log[s] == nil { // let go by a checkpoint in the same step
			w.fail("slot %d was let go before it was seen chosen", s)
		}
	}
	for s := max(h.receive, h.core.Commit()) + 1; s <= h.core.Received(); s++ {
		w.received(h.ballot, h.core.Entry(s))
	}
	h.commit, h.receive = h.core.Commit(), h.core.Received()
}

// idle nudges an opening that may wait for a lost message.
func (n *node) idle() {
	if n.up && n.holder != nil {
		n.holder.retry()
	}
}

func (h *holder) retry() {
	switch {
	case h.core != nil:
		h.core.Tick()
		h.after()
	case h.plan != nil:
		h.without(h.source)
	case h.n.w.rng.IntN(20) == 0 && h.n.w.calm: // look around anew: the members may be others
		h.n.holder = nil
	default:
		h.ask()
	}
}

// act does one thing that a holder may do.
func (n *node) act() {
	h := n.holder
	if !n.up || h == nil {
		return
	}
	if h.core == nil || !h.opened {
		if n.w.rng.IntN(8) == 0 {
			h.retry()
		}
		return
	}
	if n.w.rng.IntN(100) < n.w.moves {
		h.reconfigure()
	}
	switch r := n.w.rng.IntN(92); {
	case r < 55:
		h.propose()
	case r < 75:
		h.core.Sync(h.core.Next() - 1)
	case r < 83:
		h.checkpoint()
	case r < 90:
		h.core.Tick()
	default:
		h.core.SetEager(n.w.rng.IntN(2) == 0)
	}
	h.after()
}

func (h *holder) propose() {
	for range 1 + h.n.w.rng.IntN(3) {
		h.n.w.nextID++
		body := binary.LittleEndian.AppendUint64(nil, h.n.w.nextID)
		slot, err := h.core.Propose(paxos.EntryData, body)
		if err != nil {
			h.n.w.fail("propose: %v", err)
		}
		h.n.w.proposed(h.ballot, slot, h.n.w.nextID)
	}
}

func (h *holder) checkpoint() {
	base, commit := h.core.Checkpoint().UpTo, h.core.Commit()
	if commit <= base {
		return
	}
	upTo := base + 1 + h.n.w.rng.Uint64N(commit-base)
	value := h.n.w.check.digestAt(upTo)
	if value == nil {
		h.n.w.fail("no digest at slot %d, chosen to %d", upTo, commit)
	}
	slot, err := h.core.Propose(paxos.EntryCheckpoint, paxos.AppendCheckpointBody(nil, upTo, value))
	if err != nil {
		h.n.w.fail("checkpoint: %v", err)
	}
	h.core.Sync(slot)
}

// progress drives the only holder after healing; true once it has opened and had
// an entry chosen since.
func (n *node) progress() bool {
	h := n.holder
	switch {
	case h == nil:
		return false
	case h.core == nil || !h.opened:
		if n.w.rng.IntN(50) == 0 {
			h.retry()
		}
		return false
	case h.core.Commit() > h.start+1:
		return true
	}
	if h.core.Next() < h.start+20 {
		h.propose()
	}
	h.core.Sync(h.core.Next() - 1)
	h.core.Tick()
	h.after()
	return false
}

func (n *node) describe() string {
	h := n.holder
	if h == nil {
		return "none"
	}
	s := fmt.Sprintf("%v opened %v", h.ballot, h.opened)
	if h.core == nil {
		return s + fmt.Sprintf(" asks %v: %+v", h.opening.Ask(), h.opening)
	}
	s += fmt.Sprintf(" next %d commit %d config %d", h.core.Next(), h.core.Commit(), h.core.Config().Version)
	for i := range h.core.Peers() {
		s += fmt.Sprintf("\n%+v", h.core.View(i))
	}
	return s
}
