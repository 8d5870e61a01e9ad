package quorum

import (
	"errors"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// asker is whom an answer goes to: a proposer here or at another node.
type asker struct {
	peer  link.Peer
	local *Proposer
}

// group is the shell of one acceptor.
type group struct {
	a     *Acceptors
	brick *brick
	id    ident.GroupID
	birth [32]byte
	after int64 // where the journal records of this life begin, if it is not the first

	// stableMu serialises writes of the stable record; taken before mu.
	stableMu sync.Mutex

	// mu guards all below.
	mu      sync.Mutex
	core    *paxos.Acceptor
	dropped bool // or left
	left    bool
	broken  error
	doubted bool // whether the brick is still a member
	fed     bool // a proposer was heard since the last look; see belong

	// The answer owed to the proposer that was last listened to.
	to     asker
	ballot Ballot
	stream uint32
	status paxos.Status
	owed   bool // on brick.dirty

	// One sync is under way at a time; wantSync asks for one more behind it.
	wantSync bool
	syncing  bool
	syncAt   Ballot // what Received was, and at which ballot, when it began
	syncTo   uint64
	synced   func(error) // g.onSynced, made once

	scratch []byte
	bufs    [2][]byte
}

func newGroup(a *Acceptors, b *brick, id ident.GroupID, birth [32]byte) *group {
	g := &group{a: a, brick: b, id: id, birth: birth, scratch: make([]byte, 0, recordMoveSize)}
	g.synced = g.onSynced
	return g
}

// Append is paxos.Journal's, under g.mu.
func (g *group) Append(r *paxos.Record) (int64, int, error) {
	g.scratch = appendRecordHeader(g.scratch[:0], g.id, r)
	g.bufs[0], g.bufs[1] = g.scratch, r.Body
	bufs := g.bufs[:]
	if len(r.Body) == 0 {
		bufs = g.bufs[:1]
	}
	pos, err := g.brick.j.Append(bufs...)
	g.bufs[1] = nil
	size := len(g.scratch) + len(r.Body)
	if err == nil {
		g.a.appended(g.brick, size)
	}
	if cap(g.scratch) > 64<<10 { // a Renew of many runs
		g.scratch = make([]byte, 0, recordMoveSize)
	}
	return pos, size, err
}

// listen begins to answer a request; false if the group is gone. Under g.mu.
func (g *group) listen(r *request, to asker) {
	if g.owed && g.ballot == r.ballot && g.stream == r.stream {
		return // one answer for the burst
	}
	g.to, g.ballot, g.stream, g.status, g.fed = to, r.ballot, r.stream, paxos.OK, true
}

// settle ends a request: it notes status for the answer of this burst, or
// answers a fenced proposer at once. It reports a message to send now. Under g.mu.
func (g *group) settle(r *request, to asker, status paxos.Status, err error) (refused *answer) {
	if err != nil {
		status = g.failed(err)
	}
	if status == paxos.Fenced {
		return &answer{group: g.id, brick: g.brick.id, ballot: r.ballot, stream: r.stream,
			status: status, promised: g.core.Promised()}
	}
	g.listen(r, to)
	if status != paxos.OK && g.status == paxos.OK {
		g.status = status
	}
	if r.sync {
		g.wantSync = true
	}
	if !g.owed {
		g.owed = true
		g.brick.dirty = append(g.brick.dirty, g)
	}
	return nil
}

// failed turns a journal's error into a status. Under g.mu.
func (g *group) failed(err error) paxos.Status {
	if fault.Is(err, fault.NoSpace) {
		return paxos.Full
	}
	if g.broken == nil {
		g.broken = err
		g.a.log.Error("a brick fails", "brick", g.brick.id.Short(), "group", g.id.Short(), "error", err)
	}
	return paxos.Broken
}

func (g *group) accept(r *request, m *paxos.Accept, to asker) (refused *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return g.gone(r)
	}
	if g.brick.care.full.Load() && m.Kind == EntryData && m.Slot > g.core.Recovered() &&
		!r.ballot.Less(g.core.Promised()) {
		err := g.core.Learn(r.ballot, r.commit, g)
		return g.settle(r, to, paxos.Full, err)
	}
	status, err := g.core.Accept(m, g)
	return g.settle(r, to, status, err)
}

func (g *group) renew(r *request, m *paxos.Renew, to asker) (refused *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return g.gone(r)
	}
	status, err := g.core.Renew(m, g)
	return g.settle(r, to, status, err)
}

func (g *group) open(r *request, cuts []paxos.Cut, to asker) (refused *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return g.gone(r)
	}
	status, err := g.core.Open(r.ballot, cuts, g)
	return g.settle(r, to, status, err)
}

// sync hears of a commit and, if asked, makes durable what was received.
func (g *group) sync(r *request, to asker) (refused *answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return g.gone(r)
	}
	if !g.core.Admits(r.ballot) {
		return g.settle(r, to, paxos.Fenced, nil)
	}
	err := g.core.Learn(r.ballot, r.commit, g)
	if _, due := g.core.Due(); due {
		g.a.appended(g.brick, 0)
	}
	if !r.sync && err == nil {
		return nil // nothing was asked
	}
	return g.settle(r, to, paxos.OK, err)
}

// probe answers with the state, at once.
func (g *group) probe(r *request, to asker) *answer {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return g.gone(r)
	}
	g.fed = true
	if err := g.core.Learn(r.ballot, r.commit, g); err != nil {
		g.failed(err)
	}
	if _, due := g.core.Due(); due {
		g.a.appended(g.brick, 0)
	}
	status, s := g.core.State(r.ballot, r.bare)
	ans := &answer{group: g.id, brick: g.brick.id, ballot: r.ballot, stream: r.stream, status: status,
		opened: s.Opened, tight: g.brick.care.tight.Load(), received: s.Received, durable: s.Durable, runs: s.Runs}
	if status == paxos.Fenced {
		ans.promised = g.core.Promised()
	}
	return ans
}

func (g *group) gone(r *request) *answer {
	status := paxos.Dropped
	if g.left {
		status = paxos.Removed
	}
	return &answer{group: g.id, brick: g.brick.id, ballot: r.ballot, stream: r.stream, status: status}
}

// conclude ends a burst for this group: what it appended goes to the page
// cache, and only then is it reported.
func (g *group) conclude() {
	g.mu.Lock()
	if !g.owed {
		g.mu.Unlock()
		return
	}
	// Watermarks are taken before the write: what comes in between is not
	// covered by it.
	received, ballot := g.core.Received(), g.core.Opened()
	g.owed = false
	_, due := g.core.Due()
	g.mu.Unlock()
	err := g.brick.j.Write()
	g.brick.measure()
	if due {
		g.a.appended(g.brick, 0)
	}
	g.mu.Lock()
	if err != nil {
		g.status = g.failed(err)
	}
	ans, to := g.answer(ballot, received), g.to
	start := g.wantSync && err == nil && g.startSync()
	g.mu.Unlock()
	if start {
		g.brick.j.Sync(g.synced)
	}
	g.a.deliver(to, &ans, typeAccepted)
}

// answer composes the watermarks of the ballot listened to. Under g.mu.
func (g *group) answer(opened Ballot, received uint64) answer {
	ans := answer{group: g.id, brick: g.brick.id, ballot: g.ballot, stream: g.stream, status: g.status,
		tight: g.brick.care.tight.Load()}
	if opened == g.ballot && g.core.Opened() == opened {
		ans.received, ans.durable = max(received, g.core.Durable()), g.core.Durable()
	} else {
		ans.received = g.core.Checkpoint().UpTo
		ans.durable = ans.received
	}
	return ans
}

// startSync notes that a sync begins; the caller then calls Journal.Sync,
// without g.mu. False if one is under way: it will begin another when it ends. Under g.mu.
func (g *group) startSync() bool {
	if g.syncing {
		return false
	}
	g.wantSync = false
	g.syncing, g.syncAt, g.syncTo = true, g.core.Opened(), g.core.Received()
	return true
}

// onSynced runs on the journal's goroutine.
func (g *group) onSynced(err error) {
	g.mu.Lock()
	g.syncing = false
	rose := false
	if err != nil {
		g.status = g.failed(err)
		g.wantSync = false
	} else {
		rose = g.core.Synced(g.syncAt, g.syncTo)
	}
	again := g.wantSync && g.startSync()
	ans, to := g.answer(g.syncAt, g.syncTo), g.to
	tell := (rose || err != nil) && (to.peer != nil || to.local != nil) && !g.dropped
	g.mu.Unlock()
	if again {
		g.brick.j.Sync(g.synced)
	}
	if tell {
		g.a.deliver(to, &ans, typeAccepted)
	}
}

// persist writes the stable record as it is now, with next as its checkpoint if
// that is newer, and tells when it is durable.
func (g *group) persist(next *Checkpoint) error {
	g.stableMu.Lock()
	defer g.stableMu.Unlock()
	g.mu.Lock()
	if g.dropped {
		g.mu.Unlock()
		return fault.New(fault.NotFound, "quorum.persist", g.id.String(), errors.New("the group was dropped"))
	}
	hard := g.core.Hard()
	if next != nil && next.UpTo > hard.Checkpoint.UpTo {
		hard.Checkpoint = *next
	}
	g.mu.Unlock()
	err := g.brick.s.Set(groupKeyOf(g.id), appendStableGroup(nil, &stableGroup{hard: hard, birth: g.birth, after: g.after}))
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.failed(err)
		return err
	}
	g.core.Persisted(hard)
	return nil
}
