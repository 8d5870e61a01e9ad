package quorum

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// ProposerConfig is what one holder needs.
type ProposerConfig struct {
	Group     ident.GroupID
	Transport link.Transport
	// Local routes the members' answers, and is called directly where this node
	// is a member itself. Required.
	Local *Acceptors
	Self  ident.NodeID
	Boot  uint64 // this process's boot counter; never used by an earlier process of this node
	// Seeds are the nodes asked first for the group's members.
	Seeds []ident.NodeID
	// Fallback are the nodes asked when the seeds lead to no majority, such as all nodes:
	// the members may have changed since the seeds were written down, or since a
	// seed that is a member itself was last heard of.
	Fallback []ident.NodeID
	// AtLeast is the version of the oldest configuration that may be opened: that
	// of a forced recovery, so that members which were given up do not
	// open the group among themselves. 0: any.
	AtLeast uint64
	// Force passes over the lease check: the previous holder consented, or a
	// person said so.
	Force bool
	// Over passes over the lease check where this very ballot is promised: its
	// holder consented. Any other promise still counts.
	Over Ballot
	// OnOpening is called whenever Open got on: a part of the log was fetched, or is durable
	// again. A long log over a slow link takes its time. It must not block; nil: none.
	OnOpening func()
	// OnProgress is told the majority watermarks whenever one of them rises:
	// every slot <= received survives the death of processes, every slot <= durable
	// is chosen. Both only grow; calls never overlap and run without locks, on
	// whatever goroutine made the progress. It must not block; it may call
	// back into the Proposer.
	OnProgress func(received, durable uint64)
	// OnFenced is called once, when a higher ballot is met: this holder is over.
	OnFenced func(by Ballot)
	// OnMembers is called when the members or the state of one changed.
	OnMembers func()
	Log       *slog.Logger // nil: discard
}

const (
	// SilentMax is how long a member may owe an answer before it is probed again.
	SilentMax = time.Second
	// installTimeout bounds one Install.
	installTimeout = 10 * time.Second
	// shiftMax bounds the rounds that one goroutine pumps or notifies for others.
	shiftMax = 32
	// pumpBytes bounds what is taken for one member before the others get theirs.
	pumpBytes = 1 << 20
)

// Proposer is the holder's side of one group. All methods may be called
// concurrently.
//
// mu guards the core; nothing is sent, written or called back under it. Whoever
// finds work calls pump: one goroutine at a time takes what the core has to
// send, in order, and carries it out without the lock; the others leave it to
// that one. notify is the same for callbacks.
type Proposer struct {
	cfg   ProposerConfig
	log   *slog.Logger
	local *Acceptors

	mu        sync.Mutex
	core      *paxos.Proposer
	opened    bool // callbacks may be made
	closed    bool
	changing  bool           // of members
	retiring  map[Member]int // being told to forget the group
	pumping   bool
	failed    bool // a send failed; look at the connections at the next tick
	ticking   bool
	notifying bool
	told      struct {
		received, durable uint64
		fenced            bool
		members           uint64
	}
	members uint64               // counts changes of members and their states
	states  map[Member]told      // last told, by identity (role zero)
	heard   map[Member]time.Time // when a tick last saw that it owed nothing
	wake    chan struct{}        // closed at the next change, if someone waits
	timer   *time.Timer
	work    sync.WaitGroup // installs and reconnections under way
	ctx     context.Context
	cancel  context.CancelFunc

	// Owned by the pumping goroutine.
	batch []send
	hdr   []byte
	bufs  [2][]byte
}

// send is one message taken from the core.
type send struct {
	to  Member
	out paxos.Out
}

func newProposer(cfg ProposerConfig, core *paxos.Proposer) *Proposer {
	p := &Proposer{cfg: cfg, log: cfg.Log, local: cfg.Local, core: core,
		states: make(map[Member]told), heard: make(map[Member]time.Time),
		retiring: make(map[Member]int),
		hdr:      make([]byte, 0, 256)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.timer = time.AfterFunc(time.Hour, p.tick)
	p.timer.Stop()
	p.local.mu.Lock()
	p.local.proposers[proposerKey{cfg.Group, core.Ballot()}] = p
	p.local.mu.Unlock()
	p.mu.Lock()
	p.reconnect()
	p.mu.Unlock()
	return p
}

// reconnect tells the core what the transport says of each member. Under mu.
func (p *Proposer) reconnect() {
	for i := range p.core.Peers() {
		m := p.core.Member(i)
		up := m.Node == p.cfg.Self || p.cfg.Transport.Connected(m.Node)
		if up != p.core.View(i).Connected {
			p.core.Connect(i, up)
		}
	}
	p.core.Advance()
}

// Propose gives body the next slot. It never waits and sends nothing: call Kick.
// The proposer keeps body, which must never be modified again. Slots that the
// proposer uses itself (configurations, openings) leave gaps between the
// caller's. Kinds: Invalid (size, kind), Fenced, Unavailable (closed).
func (p *Proposer) Propose(kind EntryKind, body []byte) (slot uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if kind == EntryConfig || kind == EntryOpen {
		return 0, fault.Newf(fault.Invalid, "quorum.propose", p.cfg.Group.String(), "%v entries are the proposer's own", kind)
	}
	if kind == EntryData && len(body) <= BodyMax {
		if err := p.over(); err != nil {
			return 0, err
		}
		return p.core.Propose(kind, body)
	}
	return p.propose(kind, body)
}

// propose is for every kind. Under mu.
func (p *Proposer) propose(kind EntryKind, body []byte) (uint64, error) {
	if err := p.over(); err != nil {
		return 0, err
	}
	err := paxos.CheckBody(p.core.Next(), kind, body)
	if err == nil {
		var slot uint64
		if slot, err = p.core.Propose(kind, body); err == nil {
			return slot, nil
		}
	}
	return 0, fault.New(fault.Invalid, "quorum.propose", p.cfg.Group.String(), err)
}

// over says why nothing can be proposed any more. Under mu.
func (p *Proposer) over() error {
	if by := p.core.Fenced(); !by.IsZero() {
		return fault.Newf(fault.Fenced, "quorum.propose", p.cfg.Group.String(),
			"ballot %v of node %s is above this holder's %v", by, by.Node, p.core.Ballot())
	}
	if p.closed {
		return fault.New(fault.Unavailable, "quorum.propose", p.cfg.Group.String(),
			errors.New("the proposer is closed"))
	}
	return nil
}

// Sync asks all members to make everything up to slot durable. It sends
// nothing: call Kick. Propose, Sync, Kick travels as one message.
func (p *Proposer) Sync(slot uint64) {
	p.mu.Lock()
	p.core.Sync(slot)
	p.mu.Unlock()
}

// SetEagerSync makes members start to sync with every entry, as if Sync had
// followed each Propose. A later Sync of such a slot costs nothing.
func (p *Proposer) SetEagerSync(on bool) {
	p.mu.Lock()
	p.core.SetEager(on)
	p.mu.Unlock()
}

// Kick pushes out what was proposed and asked. It waits for no answer and no disk: it
// sends, and leaves what is for a member on this node to its brick's goroutine. If another
// goroutine is pushing, that one takes it along.
func (p *Proposer) Kick() { p.pump() }

// Checkpoint proposes that the state after slot upTo is value, syncs and kicks.
// It is chosen when the durable watermark reaches slot; then members let go of
// the log up to upTo, and the proposer of the bodies. It keeps value. Invalid:
// upTo is not durable yet, or below the last one; value is longer than ValueMax.
func (p *Proposer) Checkpoint(upTo uint64, value []byte) (slot uint64, err error) {
	body := paxos.AppendCheckpointBody(make([]byte, 0, 8+len(value)), upTo, value)
	p.mu.Lock()
	if upTo > p.core.Commit() || upTo < p.core.Checkpoint().UpTo {
		p.mu.Unlock()
		return 0, fault.Newf(fault.Invalid, "quorum.checkpoint", p.cfg.Group.String(),
			"slot %d is not chosen, or behind the last checkpoint", upTo)
	}
	slot, err = p.propose(EntryCheckpoint, body)
	if err == nil {
		p.core.Sync(slot)
	}
	p.mu.Unlock()
	if err == nil {
		p.pump()
	}
	return slot, err
}

// Received is the last slot that a majority has received.
func (p *Proposer) Received() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Received()
}

// Durable is the last slot that a majority has durable: all up to it is chosen.
func (p *Proposer) Durable() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Commit()
}

// Next is the slot that the next Propose gets.
func (p *Proposer) Next() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Next()
}

// TailBytes counts the bytes kept in memory since the last chosen checkpoint.
func (p *Proposer) TailBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.TailBytes()
}

// Members is the newest chosen configuration.
func (p *Proposer) Members() Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Config()
}

// Ballot is this holder's.
func (p *Proposer) Ballot() Ballot { return p.core.Ballot() }

// MemberStatus is the holder's view of one member.
type MemberStatus struct {
	Member    Member
	Connected bool
	Received  uint64
	Durable   uint64
	Lagging   bool          // its window is full, or it is being caught up
	Tight     bool          // its journal is more than half full: time for a checkpoint
	State     string        // "ok", "down", "probing", "installing", "no group", "no brick", "full", "broken"
	Silent    time.Duration // how long it has owed an answer, to within SilentMax
}

// Status lists the members, learners included, those of the configuration first.
func (p *Proposer) Status() []MemberStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []MemberStatus
	for i := range p.core.Peers() {
		v := p.core.View(i)
		s := MemberStatus{Member: v.Member, Connected: v.Connected, Received: v.Received,
			Durable: v.Durable, Lagging: v.Lagging, Tight: v.Tight, State: v.State}
		if at, ok := p.heard[identity(v.Member)]; ok && v.Owes {
			s.Silent = time.Since(at)
		}
		out = append(out, s)
	}
	return out
}

func identity(m Member) Member { return Member{Node: m.Node, Brick: m.Brick} }

// Close stops the proposer and waits for what it has under way. Nothing is
// released: the ballot stays the highest until another holder opens. It must not
// be called from a callback; one that began before may still be running when
// Close returns, and none begins after.
func (p *Proposer) Close() {
	p.mu.Lock()
	p.closed = true
	p.timer.Stop()
	p.woken()
	p.mu.Unlock()
	p.cancel()
	p.unregister()
	p.work.Wait()
}

func (p *Proposer) unregister() {
	p.local.mu.Lock()
	delete(p.local.proposers, proposerKey{p.cfg.Group, p.core.Ballot()})
	p.local.mu.Unlock()
}

// woken tells whoever waits that something changed. Under mu.
func (p *Proposer) woken() {
	if p.wake != nil {
		close(p.wake)
		p.wake = nil
	}
}

// until waits for ok, which is evaluated under mu, or for the proposer's end.
func (p *Proposer) until(ctx context.Context, ok func() bool) error {
	for {
		p.mu.Lock()
		if ok() {
			p.mu.Unlock()
			return nil
		}
		if err := p.over(); err != nil {
			p.mu.Unlock()
			return err
		}
		if p.wake == nil {
			p.wake = make(chan struct{})
		}
		wake := p.wake
		p.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
