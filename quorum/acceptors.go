package quorum

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// AcceptorsConfig is what Acceptors needs of its node.
type AcceptorsConfig struct {
	Transport link.Transport
	// HolderMayLive tells whether a node was heard from within its lease: a
	// prepare that is not forced is refused (Busy) while the node that holds
	// the promise may live. nil: never. It is not asked about this node itself,
	// which knows its own proposers.
	HolderMayLive func(ident.NodeID) bool
	Log           *slog.Logger // nil: discard
}

// Acceptors answers for all groups on this node's bricks, and is where this
// node's proposers meet the transport.
//
// Lock order: group.stableMu, then group.mu; brick.stableMu, then mu. Neither
// group.mu nor mu is ever held while a journal is written or synced, a stable
// store is set, a message sent, or a Proposer's lock taken.
type Acceptors struct {
	cfg AcceptorsConfig
	log *slog.Logger

	mu        sync.RWMutex
	bricks    map[ident.BrickID]*brick
	groups    map[groupKey]*group
	proposers map[proposerKey]*Proposer
	openings  map[ident.GroupID]int    // under way on this node
	epochs    map[ident.GroupID]uint64 // highest epoch used by this process

	held atomic.Bool // a brick may have messages for which it was not woken
	over atomic.Bool // Run has ended

	wake   chan struct{} // to Run: something became due
	doubts chan struct{} // to Run: a copy may be left over
	// LazySyncDelay and BelongDelay, but in tests.
	delay, belongDelay time.Duration
}

type groupKey struct {
	group ident.GroupID
	brick ident.BrickID
}

type proposerKey struct {
	group  ident.GroupID
	ballot Ballot
}

// brick is one brick's share.
type brick struct {
	id ident.BrickID
	j  Journal
	s  Stable

	stableMu sync.Mutex // serialises changes of the list of groups
	care     care
	inbox    inbox
	work     func()   // of the brick's goroutine, made once
	dirty    []*group // owe an answer at the end of the burst; owned by the brick's goroutine
}

// NewAcceptors registers the message handlers (0x20-0x3f) on the transport,
// before its Start.
func NewAcceptors(cfg AcceptorsConfig) *Acceptors {
	a := &Acceptors{
		cfg: cfg, log: cfg.Log,
		bricks:    make(map[ident.BrickID]*brick),
		groups:    make(map[groupKey]*group),
		proposers: make(map[proposerKey]*Proposer), openings: make(map[ident.GroupID]int),
		epochs: make(map[ident.GroupID]uint64),
		wake:   make(chan struct{}, 1),
		doubts: make(chan struct{}, 1),
		delay:  LazySyncDelay, belongDelay: BelongDelay,
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.handle(cfg.Transport)
	return a
}

// AddBrick replays j and takes up the groups found in s. Everything replayed is
// durable on return. Corrupt: the journal lacks a slot of some group, or a record does
// not decode. Exists: the brick was added before.
func (a *Acceptors) AddBrick(id ident.BrickID, j Journal, s Stable) error {
	const op = "quorum.addbrick"
	a.mu.RLock()
	_, twice := a.bricks[id]
	a.mu.RUnlock()
	if twice {
		return fault.New(fault.Exists, op, id.String(), errors.New("the brick was added before"))
	}
	b := &brick{id: id, j: j, s: s}
	b.work = func() { a.work(b) }
	groups, err := a.replay(b)
	if err != nil {
		return err
	}
	if err := syncNow(j); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bricks[id] = b
	b.measure()
	for _, g := range groups {
		g.core.Synced(g.core.Opened(), g.core.Received())
		a.groups[groupKey{g.id, id}] = g
	}
	a.poke()
	return nil
}

// RemoveBrick forgets a brick that is broken and about to be closed, with its groups. What
// is under way there ends as it would have ended; a brick of the same id may be
// added afterwards.
func (a *Acceptors) RemoveBrick(id ident.BrickID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.bricks, id)
	for k := range a.groups {
		if k.brick == id {
			delete(a.groups, k)
		}
	}
}

// Doubt has all copies of a brick ask whether they are still wanted, as after the start
// of the node.
func (a *Acceptors) Doubt(id ident.BrickID) {
	any := false
	for _, g := range a.all() {
		if g.brick.id == id {
			g.mu.Lock()
			g.doubted, g.fed, any = true, false, true
			g.mu.Unlock()
		}
	}
	if any {
		a.doubting()
	}
}

func (a *Acceptors) replay(b *brick) (map[ident.GroupID]*group, error) {
	const op = "quorum.replay"
	ids, err := b.list()
	if err != nil {
		return nil, err
	}
	groups := make(map[ident.GroupID]*group)
	replayers := make(map[ident.GroupID]*paxos.Replayer)
	for _, id := range ids {
		g, err := b.load(id)
		if err != nil {
			return nil, err
		}
		if g != nil && !g.gone() {
			groups[id] = newGroup(a, b, id, g.birth)
			groups[id].after = g.after
			replayers[id] = paxos.NewReplayer(g.hard)
		}
	}
	err = b.j.Replay(func(pos int64, body []byte) error {
		id, rec, err := decodeRecord(body)
		if err != nil {
			return fault.Newf(fault.Corrupt, op, b.id.String(), "journal record at %d: %w", pos, err)
		}
		r := replayers[id]
		if r == nil || pos < groups[id].after && !mutant.On("earlier-life") {
			return nil // of a group that is gone, or of an earlier life
		}
		if err := r.Apply(&rec, pos, len(body)); err != nil {
			return fault.Newf(fault.Corrupt, op, b.id.String(), "journal record at %d: %w", pos, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for id, r := range replayers {
		core, err := r.Finish()
		if err != nil {
			return nil, fault.Newf(fault.Corrupt, op, b.id.String(), "the log of group %s: %w", id, err)
		}
		groups[id].core = core
	}
	return groups, nil
}

func syncNow(j Journal) error {
	done := make(chan error, 1)
	j.Sync(func(err error) { done <- err })
	return <-done
}

// list reads the brick's list of groups.
func (b *brick) list() ([]ident.GroupID, error) {
	v, err := b.s.Get(keyGroups)
	if err != nil || len(v) == 0 {
		return nil, err
	}
	ids, err := decodeStableList(v)
	if err != nil {
		return nil, fault.Newf(fault.Corrupt, "quorum.replay", b.id.String(), "the list of groups: %w", err)
	}
	return ids, nil
}

// load reads one group's record, nil if there is none.
func (b *brick) load(id ident.GroupID) (*stableGroup, error) {
	v, err := b.s.Get(groupKeyOf(id))
	if err != nil || len(v) == 0 {
		return nil, err
	}
	g, err := decodeStableGroup(v)
	if err != nil {
		return nil, fault.Newf(fault.Corrupt, "quorum.replay", b.id.String(), "group %s: %w", id, err)
	}
	return &g, nil
}

// enlist makes the list of groups contain id, or not.
func (b *brick) enlist(id ident.GroupID, in bool) error {
	ids, err := b.list()
	if err != nil {
		return err
	}
	at := -1
	for i := range ids {
		if ids[i] == id {
			at = i
		}
	}
	switch {
	case in == (at >= 0):
		return nil
	case in && len(ids) >= GroupsMax:
		return fault.Newf(fault.NoSpace, "quorum.create", b.id.String(),
			"the brick has %d groups, the most it can hold", GroupsMax)
	case in:
		ids = append(ids, id)
	default:
		ids = append(ids[:at], ids[at+1:]...)
	}
	return b.s.Set(keyGroups, appendStableList(nil, ids))
}

// Create is the birth of a group at this node, on the brick that cfg names for
// it; durable on return. Idempotent for an identical birth. Exists: another
// birth has that id. Conflict: the group was dropped. NotFound: cfg names no
// brick of this node. Invalid, NoSpace (GroupsMax).
func (a *Acceptors) Create(group ident.GroupID, cfg Config, value []byte) error {
	const op = "quorum.create"
	if err := checkBirth(cfg, value); err != nil {
		return fault.New(fault.Invalid, op, group.String(), err)
	}
	birth := sha256.Sum256(appendCreate(nil, group, cfg, value))
	hard := paxos.Hard{Checkpoint: Checkpoint{Value: append([]byte(nil), value...), Config: cfg}}
	b := a.brickOf(cfg)
	if b == nil {
		return fault.New(fault.NotFound, op, group.String(),
			errors.New("no member of the group is a brick of this node"))
	}
	_, err := a.birth(b, group, hard, birth)
	return err
}

func (a *Acceptors) brickOf(cfg Config) *brick {
	self := a.cfg.Transport.Self()
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, m := range cfg.Members {
		if m.Node == self && a.bricks[m.Brick] != nil {
			return a.bricks[m.Brick]
		}
	}
	return nil
}

func checkBirth(cfg Config, value []byte) error {
	switch {
	case len(value) > ValueMax:
		return fmt.Errorf("the value has %d bytes, more than %d", len(value), ValueMax)
	case len(cfg.Members) > MembersMax:
		return fmt.Errorf("%d members, more than %d", len(cfg.Members), MembersMax)
	case cfg.Voters() == 0:
		return errors.New("a group needs a voter")
	case cfg.Version == 0:
		return errors.New("configurations count from version 1")
	}
	for i, m := range cfg.Members {
		if cfg.Find(m.Node, m.Brick) != i {
			return errors.New("a member is named twice")
		}
		if m.Role != Voter {
			return fmt.Errorf("a group is born with voters only, not with a %s", m.Role)
		}
	}
	return nil
}

// birth makes a group on b, by Create or (birth zero) by Install. An existing
// one is returned if it is the same.
func (a *Acceptors) birth(b *brick, id ident.GroupID, hard paxos.Hard, birth [32]byte) (*group, error) {
	const op = "quorum.create"
	b.stableMu.Lock()
	defer b.stableMu.Unlock()
	old, err := b.load(id)
	if err != nil {
		return nil, err
	}
	if old != nil && old.dropped {
		return nil, fault.New(fault.Conflict, op, id.String(), errors.New("the group was dropped on this brick"))
	}
	if old != nil && old.tomb != nil {
		return nil, fault.New(fault.Conflict, op, id.String(), errors.New("this brick has left the group"))
	}
	if g := a.group(id, b.id); g != nil {
		if birth != g.birth && birth != [32]byte{} && g.birth != [32]byte{} && !mutant.On("any-birth") {
			return nil, fault.New(fault.Exists, op, id.String(), errors.New("another group was born with this id"))
		}
		return g, nil
	}
	return a.begin(b, id, stableGroup{hard: hard, birth: birth})
}

// begin begins the life of a group on b, under b.stableMu.
func (a *Acceptors) begin(b *brick, id ident.GroupID, s stableGroup) (*group, error) {
	if err := b.s.Set(groupKeyOf(id), appendStableGroup(nil, &s)); err != nil {
		return nil, err
	}
	if err := b.enlist(id, true); err != nil {
		return nil, err
	}
	g := newGroup(a, b, id, s.birth)
	g.core, g.after = paxos.NewAcceptor(s.hard), s.after
	joins := s.birth == [32]byte{}
	g.doubted, g.fed = joins, true // the holder may die before it is a member
	a.mu.Lock()
	a.groups[groupKey{id, b.id}] = g
	a.mu.Unlock()
	if joins {
		a.doubting()
	}
	return g, nil
}

// Drop forgets a group on all bricks of this node and leaves a durable mark, so
// that neither Create nor a late message brings it back. Absent is success (the
// mark is left).
func (a *Acceptors) Drop(id ident.GroupID) error {
	a.mu.RLock()
	bricks := make([]*brick, 0, len(a.bricks))
	for _, b := range a.bricks {
		bricks = append(bricks, b)
	}
	a.mu.RUnlock()
	var failed error
	for _, b := range bricks {
		if err := a.dropOn(b, id); err != nil {
			failed = err
		}
	}
	a.poke()
	return failed
}

func (a *Acceptors) dropOn(b *brick, id ident.GroupID) error {
	b.stableMu.Lock()
	defer b.stableMu.Unlock()
	if g := a.group(id, b.id); g != nil {
		g.stableMu.Lock() // a later persist of the group would undo the mark
		defer g.stableMu.Unlock()
		g.mu.Lock()
		g.dropped = true
		g.mu.Unlock()
	} else if old, err := b.load(id); err != nil || old != nil && old.dropped {
		return err
	}
	if err := b.s.Set(groupKeyOf(id), appendStableGroup(nil, &stableGroup{dropped: true})); err != nil {
		return err
	}
	if err := b.enlist(id, false); err != nil {
		return err
	}
	a.mu.Lock()
	delete(a.groups, groupKey{id, b.id})
	a.mu.Unlock()
	return nil
}

// GroupInfo describes one group at this node.
type GroupInfo struct {
	Group    ident.GroupID
	Brick    ident.BrickID
	Witness  bool // the copy has no data
	Member   bool // the newest configuration known names the brick
	Promised Ballot
	UpTo     uint64 // of the checkpoint
	First    uint64 // first slot kept; Last+1 if none
	Last     uint64
	LogBytes int64
	Config   Config // newest known
}

// Groups lists all groups, sorted by id. One that its brick has left is not among
// them; one of which the brick is no member (yet, or any more) is.
func (a *Acceptors) Groups() []GroupInfo {
	var infos []GroupInfo
	for _, g := range a.all() {
		infos = append(infos, g.info())
	}
	sort.Slice(infos, func(i, j int) bool {
		if c := infos[i].Group.Compare(infos[j].Group); c != 0 {
			return c < 0
		}
		return infos[i].Brick.Compare(infos[j].Brick) < 0
	})
	return infos
}

func (a *Acceptors) all() []*group {
	a.mu.RLock()
	defer a.mu.RUnlock()
	gs := make([]*group, 0, len(a.groups))
	for _, g := range a.groups {
		gs = append(gs, g)
	}
	return gs
}

func (a *Acceptors) group(id ident.GroupID, brick ident.BrickID) *group {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.groups[groupKey{id, brick}]
}

// absent says why there is no such group.
func (a *Acceptors) absent(id ident.GroupID, brickID ident.BrickID) paxos.Status {
	a.mu.RLock()
	b := a.bricks[brickID]
	a.mu.RUnlock()
	if b == nil {
		return paxos.NoBrick
	}
	old, err := b.load(id)
	switch {
	case err != nil:
		return paxos.Broken
	case old != nil && old.dropped:
		return paxos.Dropped
	case old != nil && old.tomb != nil:
		return paxos.Removed
	}
	return paxos.NoGroup
}

// claim draws a ballot above the highest met, with an epoch that this process has
// not used for the group before.
func (a *Acceptors) claim(id ident.GroupID, highest Ballot, boot uint64) Ballot {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := paxos.NextBallot(highest, a.epochs[id], a.cfg.Transport.Self(), boot)
	a.epochs[id] = b.Epoch
	return b
}

func (a *Acceptors) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
