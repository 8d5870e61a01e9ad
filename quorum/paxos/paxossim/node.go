package paxossim

import (
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// node is one process with one disk, an acceptor, and now and then a proposer.
type node struct {
	w        *World
	i        int
	member   paxos.Member // of the present disk
	disks    int
	up       bool
	disk     disk
	acceptor *paxos.Acceptor // nil: no group
	to       int             // node of the proposer listened to
	ballot   paxos.Ballot
	stream   uint32
	boot     uint64
	syncs    []pendingSync
	holder   *holder
	epoch    uint64 // highest used in this boot
	promised *paxos.Promise
	promise  paxos.Ballot // highest one answered
	opened   paxos.Ballot // when it was
}

// disk is a journal with a synced part, and a stable store.
type disk struct {
	records []record
	next    int64
	synced  int64 // records before this position are durable
	hard    *paxos.Hard
	tomb    *paxos.Tomb // the group was left, or never was here (nil as well)
}

// newDisk gives the node an empty disk, which is another member.
func (n *node) newDisk() {
	n.disks++
	role := n.member.Role
	n.member = paxos.Member{Node: ident.NodeID{byte(n.i + 1)}, Brick: ident.BrickID{byte(n.i + 1), byte(n.disks)}, Role: role}
	n.disk, n.acceptor, n.promised, n.promise = disk{}, nil, nil, paxos.Ballot{}
}

func (n *node) is(m paxos.Member) bool { return n.member.Same(m) }

type record struct {
	pos  int64
	size int
	rec  paxos.Record
}

type pendingSync struct {
	upTo     int64
	ballot   paxos.Ballot
	received uint64
}

// Append is paxos.Journal's.
func (n *node) Append(r *paxos.Record) (int64, int, error) {
	if n.member.Role == paxos.Witness && r.EntryKind == paxos.EntryData && len(r.Body) > 0 {
		n.w.fail("witness %d keeps the data of slot %d", n.i, r.Slot)
	}
	c := *r
	c.Body = append([]byte(nil), r.Body...)
	c.Runs = append([]paxos.Run(nil), r.Runs...)
	size := 100 + len(c.Body)
	n.disk.records = append(n.disk.records, record{n.disk.next, size, c})
	n.disk.next += int64(size)
	return n.disk.next - int64(size), size, nil
}

func (n *node) body(w paxos.Where) []byte {
	for _, r := range n.disk.records {
		if r.pos == w.Pos {
			return r.rec.Body
		}
	}
	n.w.fail("node %d: slot %d is not in the journal", n.i, w.Slot)
	return nil
}

// crash ends the process; power also takes what was not synced, but for a
// random front of it.
func (n *node) crash(power bool) {
	if !n.up {
		return
	}
	n.up, n.acceptor, n.holder, n.syncs = false, nil, nil, nil
	n.w.stats.Crashes++
	if power {
		n.w.stats.PowerCuts++
		n.w.check.powerCut()
		keep := 0
		for keep < len(n.disk.records) && (n.disk.records[keep].pos < n.disk.synced || n.w.rng.IntN(3) > 0) {
			keep++
		}
		n.disk.records = n.disk.records[:keep]
	}
	n.w.trace("node %d crashes, power %v", n.i, power)
	for o := range n.w.nodes {
		n.w.queues[n.i][o], n.w.queues[o][n.i] = nil, nil
		if o != n.i {
			n.w.nodes[o].lost(n.i)
		}
	}
}

func (n *node) restart() {
	if n.up {
		return
	}
	n.up = true
	n.boot++
	n.epoch = 0
	n.w.trace("node %d starts", n.i)
	if n.disk.hard != nil {
		r := paxos.NewReplayer(*n.disk.hard)
		for _, rec := range n.disk.records {
			if err := r.Apply(&rec.rec, rec.pos, rec.size); err != nil {
				n.w.fail("replay of node %d: %v", n.i, err)
			}
		}
		a, err := r.Finish()
		if err != nil {
			n.w.fail("replay of node %d: %v", n.i, err)
		}
		n.acceptor = a
		n.disk.synced = n.disk.next
		a.Synced(a.Opened(), a.Received())
		n.remembers()
	}
	for o := range n.w.nodes {
		if o != n.i {
			n.w.reconnect(n.i, o)
		}
	}
}

// remembers checks that a restart kept what was promised, and all that was
// reported with it.
func (n *node) remembers() {
	a := n.acceptor
	if a.Promised().Less(n.promise) {
		n.w.fail("node %d forgot its promise of %v", n.i, n.promise)
	}
	if n.promised == nil || a.Opened() != n.opened {
		return
	}
	for _, r := range n.promised.Runs {
		if r.To > max(a.Last(), a.Checkpoint().UpTo) {
			n.w.fail("node %d lost slot %d, which it reported with promise %v", n.i, r.To, n.promise)
		}
	}
}

// lost and found tell the proposer here about its way to node o.
func (n *node) lost(o int) {
	if n.holder != nil {
		n.holder.connect(o, false)
	}
}

func (n *node) found(o int) {
	if n.holder != nil {
		n.holder.connect(o, true)
	}
}

// finishSync completes the oldest sync under way.
func (n *node) finishSync() {
	if !n.up || len(n.syncs) == 0 {
		return
	}
	s := n.syncs[0]
	n.syncs = n.syncs[1:]
	n.disk.synced = max(n.disk.synced, s.upTo)
	if n.acceptor.Synced(s.ballot, s.received) && s.ballot == n.ballot {
		n.answer(paxos.OK)
	}
}

func (n *node) startSync() {
	n.syncs = append(n.syncs, pendingSync{n.disk.next, n.acceptor.Opened(), n.acceptor.Received()})
}

// answer reports watermarks to the proposer last listened to.
func (n *node) answer(status paxos.Status) {
	a := n.acceptor
	received, durable := a.Received(), a.Durable()
	if a.Opened() != n.ballot {
		received, durable = a.Checkpoint().UpTo, a.Checkpoint().UpTo
	}
	to, ballot, stream, m := n.to, n.ballot, n.stream, n.member
	n.w.send(n.i, to, func() {
		if h := n.w.nodes[to].holder; h != nil && h.core != nil && h.ballot == ballot {
			if i := h.core.Index(m); i >= 0 {
				h.core.OnAccepted(i, stream, status, received, durable)
				h.after()
			}
		}
	})
}

// take carries out one of a proposer's messages.
func (n *node) take(from int, m paxos.Member, ballot paxos.Ballot, out paxos.Out) {
	a := n.acceptor
	switch {
	case !n.is(m):
		n.state(from, m, ballot, out.Stream, paxos.NoBrick, paxos.State{})
		return
	case a == nil:
		n.state(from, m, ballot, out.Stream, paxos.NoGroup, paxos.State{})
		return
	}
	var status paxos.Status
	switch out.Kind {
	case paxos.OutProbe:
		status, s := a.State(ballot, out.Bare)
		if status == paxos.Fenced {
			n.refuse(from, ballot)
			return
		}
		n.state(from, m, ballot, out.Stream, status, s)
		return
	case paxos.OutOpen:
		status, _ = a.Open(ballot, out.Cuts, n)
	case paxos.OutAccept:
		status, _ = a.Accept(&paxos.Accept{Ballot: ballot, Commit: out.Commit,
			Slot: out.Slot, Kind: out.EntryKind, Body: out.Body, Stream: out.Stream, Bare: out.Bare}, n)
	case paxos.OutRenew:
		n.w.stats.Renewed++
		status, _ = a.Renew(&paxos.Renew{Ballot: ballot, Commit: out.Commit,
			Runs: out.Runs, Stream: out.Stream}, n)
	case paxos.OutSync:
		if ballot.Less(a.Promised()) {
			status = paxos.Fenced
		} else {
			_ = a.Learn(ballot, out.Commit, n)
		}
	}
	if status == paxos.Fenced {
		n.refuse(from, ballot)
		return
	}
	n.to, n.ballot, n.stream = from, ballot, out.Stream
	if out.Sync {
		n.startSync()
	}
	n.answer(status)
}

func (n *node) refuse(to int, ballot paxos.Ballot) {
	n.refuseBy(to, ballot, n.acceptor.Promised())
}

func (n *node) refuseBy(to int, ballot, by paxos.Ballot) {
	n.w.send(n.i, to, func() {
		if h := n.w.nodes[to].holder; h != nil && h.ballot == ballot {
			h.fenced(by)
		}
	})
}

func (n *node) state(to int, m paxos.Member, ballot paxos.Ballot, stream uint32, status paxos.Status, s paxos.State) {
	n.w.send(n.i, to, func() {
		if h := n.w.nodes[to].holder; h != nil && h.core != nil && h.ballot == ballot {
			if i := h.core.Index(m); i >= 0 {
				h.core.OnState(i, stream, status, s)
				h.after()
			}
		}
	})
}

// prepare answers phase 1: persist, sync, tell; death may come in between.
func (n *node) prepare(from int, m paxos.Member, ballot paxos.Ballot) {
	a := n.acceptor
	if !n.is(m) {
		return
	}
	if a == nil {
		n.redirect(from, ballot)
		return
	}
	status, effects := a.Prepare(ballot, n.w.calm || n.w.rng.IntN(4) > 0, n.w.rng.IntN(2) == 0)
	switch status {
	case paxos.Fenced:
		n.refuse(from, ballot)
		return
	case paxos.Busy:
		return
	}
	if n.mayDie() {
		return
	}
	if effects.Persist {
		h := a.Hard()
		n.disk.hard = &h
		a.Persisted(h)
	}
	if n.mayDie() {
		return
	}
	if effects.Sync {
		n.disk.synced = n.disk.next
	}
	p := a.Promise()
	n.promised, n.promise, n.opened = &p, ballot, a.Opened()
	n.w.send(n.i, from, func() {
		if h := n.w.nodes[from].holder; h != nil && h.ballot == ballot {
			h.promised(m, &p)
		}
	})
}

// redirect tells an opener by which configuration this member left.
func (n *node) redirect(from int, ballot paxos.Ballot) {
	if t := n.disk.tomb; t != nil {
		n.w.send(n.i, from, func() {
			if h := n.w.nodes[from].holder; h != nil && h.ballot == ballot && h.core == nil {
				h.opening.Hint(t.Config)
				h.ask()
			}
		})
	}
}

func (n *node) mayDie() bool {
	if n.w.calm || n.w.rng.IntN(200) > 0 {
		return false
	}
	n.crash(n.w.rng.IntN(2) == 0)
	return true
}

// fetch answers with the entries of a run, if they are still there.
func (n *node) fetch(from int, m paxos.Member, ballot paxos.Ballot, seg paxos.Segment) {
	var entries []paxos.Entry
	for slot := seg.From; slot <= seg.To && n.acceptor != nil && n.is(m); slot++ {
		w, ok := n.acceptor.Locate(slot)
		if !ok || w.Ballot != seg.Ballot {
			break
		}
		entries = append(entries, paxos.Entry{Slot: slot, Kind: w.Kind, Body: n.body(w)})
	}
	n.w.send(n.i, from, func() {
		if h := n.w.nodes[from].holder; h != nil && h.ballot == ballot {
			h.fetched(m, seg, entries)
		}
	})
}

func (n *node) install(from int, m paxos.Member, ballot paxos.Ballot, c paxos.Checkpoint) {
	status := paxos.OK
	switch {
	case !n.is(m):
		status = paxos.NoBrick
	case n.acceptor == nil && n.disk.tomb != nil:
		var h paxos.Hard
		if h, status = n.disk.tomb.Revive(ballot, c, m.Role == paxos.Witness); status != paxos.OK {
			n.refuseBy(from, ballot, n.disk.tomb.Promised)
			return
		}
		n.disk.hard, n.disk.tomb = &h, nil
		n.acceptor = paxos.NewAcceptor(h)
		n.w.stats.Revived++
	case n.acceptor == nil:
		n.disk.hard = &paxos.Hard{Promised: ballot, Checkpoint: c, Witness: m.Role == paxos.Witness}
		n.acceptor = paxos.NewAcceptor(*n.disk.hard)
		n.w.stats.Installs++
	case ballot.Less(n.acceptor.Promised()):
		n.refuse(from, ballot)
		return
	default:
		if n.persist(c) {
			return
		}
		n.w.stats.Installs++
	}
	n.w.send(n.i, from, func() {
		if h := n.w.nodes[from].holder; h != nil && h.core != nil && h.ballot == ballot {
			if i := h.core.Index(m); i >= 0 {
				h.core.OnInstalled(i, status)
				h.after()
			}
		}
	})
}

// retire hears that c is chosen and this member is not in it.
func (n *node) retire(m paxos.Member, b paxos.Ballot, c paxos.Config) {
	if n.acceptor == nil || !n.is(m) {
		return
	}
	t, ok := n.acceptor.Retire(m, b, c)
	if !ok || n.mayDie() {
		return
	}
	n.w.trace("node %d has left by configuration %d", n.i, c.Version)
	n.w.stats.Retired++
	n.disk = disk{tomb: &t, next: n.disk.next, synced: n.disk.next}
	n.acceptor, n.syncs, n.promised = nil, nil, nil
	if t.Promised.Less(n.promise) {
		n.w.fail("node %d forgot its promise of %v when it left", n.i, n.promise)
	}
	n.mayDie()
}

// persist takes a checkpoint; true if the node died of it.
func (n *node) persist(c paxos.Checkpoint) bool {
	h := n.acceptor.Hard()
	if c.UpTo > h.Checkpoint.UpTo {
		h.Checkpoint = c
	}
	n.disk.hard = &h
	if n.mayDie() {
		return true
	}
	n.acceptor.Persisted(h)
	return false
}

// maintain does the acceptor's background work.
func (n *node) maintain() {
	if !n.up || n.acceptor == nil {
		return
	}
	if c, ok := n.acceptor.Due(); ok && n.w.rng.IntN(2) == 0 {
		n.w.stats.Checkpoints++
		if n.persist(c) {
			return
		}
	}
	switch n.w.rng.IntN(4) {
	case 0:
		n.startSync()
	case 1:
		n.forward()
	case 2:
		n.belongs()
	}
}

// belongs asks the others whether this one is still a member. It forgets the
// group on the word of a majority alone, none of which knows of a configuration
// with it, chosen or not: that one may be waiting for just this member.
func (n *node) belongs() {
	if n.w.rng.IntN(8) > 0 || n.w.feeds(n) {
		return
	}
	m := n.member
	var answers []paxos.Config
	var c paxos.Config
	var newest uint64
	for _, o := range n.w.nodes {
		if o != n && o.acceptor != nil && n.w.connected(n.i, o.i) {
			if o.acceptor.Config().Find(m.Node, m.Brick) >= 0 {
				return
			}
			newest = max(newest, o.acceptor.Config().Version)
			if s := o.acceptor.Settled(); s.Version > c.Version {
				c = s
			}
			answers = append(answers, paxos.Config{Members: []paxos.Member{o.member}})
		}
	}
	voters := 0
	for _, a := range answers {
		if i := c.Find(a.Members[0].Node, a.Members[0].Brick); i >= 0 && c.Members[i].Role != paxos.Learner {
			voters++
		}
	}
	if voters > c.Voters()/2 && newest == c.Version {
		n.retire(m, n.acceptor.Promised(), c)
	}
}

// feeds tells whether a holder feeds the node as a learner.
func (w *World) feeds(n *node) bool {
	for _, o := range w.nodes {
		if h := o.holder; h != nil && h.core != nil && h.core.Index(n.member) >= 0 {
			return true
		}
	}
	return false
}

// forward copies the oldest entries to the journal's end, syncs, and trims.
func (n *node) forward() {
	if len(n.disk.records) == 0 {
		return
	}
	middle := n.disk.records[n.w.rng.IntN(len(n.disk.records))].pos
	for _, w := range n.acceptor.Below(middle, n.w.rng.IntN(8)) {
		_ = n.acceptor.Move(w, n.body(w), n)
	}
	if n.mayDie() {
		return
	}
	n.disk.synced = n.disk.next
	floor, ok := n.acceptor.OldestPos()
	if !ok {
		floor = n.disk.next
	}
	if pos, ok := n.acceptor.OpenPos(); ok && pos < floor && n.persist(n.acceptor.Checkpoint()) {
		return
	}
	drop := 0
	for drop < len(n.disk.records) && n.disk.records[drop].pos < floor {
		drop++
	}
	n.disk.records = n.disk.records[n.w.rng.IntN(drop+1):]
}
