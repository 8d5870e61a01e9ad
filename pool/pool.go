package pool

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// Limits and defaults of the shell.
const (
	// LanesDefault is the number of lanes of a new pool.
	LanesDefault = 128
	// SubmitMax bounds one Submit.
	SubmitMax = 30 * time.Second
	// PendingMax bounds the commands that are proposed and not yet chosen.
	PendingMax = 256
	// CheckpointEvery is how many commands the pool block's log collects.
	CheckpointEvery = 64
	// SeedsMax bounds the nodes that are asked who leads.
	SeedsMax = 16

	openMax      = 10 * time.Second // one try to become the leader
	holderMax    = 1500 * time.Millisecond
	pullMax      = 5 * time.Second
	joinMax      = 60 * time.Second // one voter's way in
	retryMin     = 20 * time.Millisecond
	retryMax     = 500 * time.Millisecond
	dutyRetryMin = 500 * time.Millisecond
	dutyRetryMax = 30 * time.Second
)

// View is what the pool wants to know of the nodes; overlay.View has it.
type View interface {
	State(id ident.NodeID) overlay.State
	Heard(id ident.NodeID) time.Duration
	OnChange(f func())
}

// File keeps this node's copy of the state between runs.
type File interface {
	// Load returns nil, nil if nothing was saved yet.
	Load() ([]byte, error)
	// Save replaces what was saved, atomically and durably. It does not keep b.
	Save(b []byte) error
}

// Config of a Pool. All but Lanes and Log are required.
type Config struct {
	Pool      ident.PoolID
	Transport link.Transport
	Acceptors *quorum.Acceptors
	Boot      uint64 // of this process; see quorum.ProposerConfig
	View      View
	File      File
	Lanes     int // of a new pool; 0: LanesDefault
	Log       *slog.Logger
}

// Pool is one node's part in the pool block: its copy of the state, and the
// leadership if it has it. All methods may be called concurrently.
//
// Lock order: deliverMu, then mu. No lock is held while sending, waiting or
// calling back, except deliverMu, which exists to keep callbacks in order.
type Pool struct {
	cfg   Config
	group ident.GroupID
	self  ident.NodeID
	log   *slog.Logger

	born  time.Time             // since when this process watches the others
	state atomic.Pointer[State] // newest chosen state known here; never nil

	atLeast atomic.Uint64 // see snapshot

	mu      sync.Mutex
	voters  []ident.NodeID            // of the pool block, as last heard
	hint    ident.NodeID              // who led last
	lead    *leadership               // nil unless this node leads
	ended   bool                      // Run is over
	changed chan struct{}             // closed and replaced when the state changes
	heard   map[ident.NodeID]uint64   // newer versions that other nodes have
	met     []ident.NodeID            // connected while the state was unknown
	wanted  time.Time                 // when this node last asked to be given the state
	wants   map[ident.NodeID]struct{} // who asked this one

	opening chan struct{}   // holds a token: one try to lead at a time
	quit    context.Context // ends when Run is over
	leave   context.CancelFunc
	closing sync.WaitGroup // proposers of ended leaderships

	deliverMu sync.Mutex
	watchers  []func(*State) // set before use
	delivered uint64         // version last saved and told; guarded by deliverMu

	news, pulls, gives, duties chan struct{} // wake the loops of Run
}

// New reads the saved state and registers the handlers (0x50-0x55), before the
// transport's Start. Corrupt: the saved state is damaged; Denied: it is of
// another pool.
func New(cfg Config) (*Pool, error) {
	if cfg.Lanes == 0 {
		cfg.Lanes = LanesDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, group: ident.PoolBlock(cfg.Pool), self: cfg.Transport.Self(), log: cfg.Log, born: time.Now(),
		changed: make(chan struct{}), heard: map[ident.NodeID]uint64{}, wants: map[ident.NodeID]struct{}{}, opening: make(chan struct{}, 1),
		news: make(chan struct{}, 1), pulls: make(chan struct{}, 1), gives: make(chan struct{}, 1), duties: make(chan struct{}, 1)}
	p.quit, p.leave = context.WithCancel(context.Background())
	p.state.Store(&State{Pool: cfg.Pool})
	b, err := cfg.File.Load()
	if err != nil {
		return nil, err
	}
	if b != nil {
		snap, err := p.decodeSnapshot(b)
		if err != nil {
			return nil, err
		}
		p.state.Store(snap.State)
		p.bound(snap.AtLeast)
		p.voters, p.delivered = snap.Voters, snap.State.Version
	}
	cfg.Transport.HandleCall(typeSubmit, p.onSubmit)
	cfg.Transport.HandleCall(typePull, p.onPull)
	cfg.Transport.Handle(typeNews, p.onNews)
	cfg.Transport.Handle(typeAhead, p.onAhead)
	cfg.Transport.Handle(typeWant, p.onWant)
	cfg.Transport.HandleCall(typeGive, p.onGive)
	cfg.Transport.OnConnect(p.onConnect)
	cfg.View.OnChange(func() { wake(p.duties) })
	return p, nil
}

// State is the newest chosen state that this node knows: immutable, never nil,
// of version 0 until the node has met the pool.
func (p *Pool) State() *State { return p.state.Load() }

// OnChange registers f, before Run, to be told of new states, in order, on a
// goroutine of the pool's.
func (p *Pool) OnChange(f func(*State)) { p.watchers = append(p.watchers, f) }

// Check tells whether Apply would accept c now. Kinds as for Apply.
func (p *Pool) Check(c Command) error {
	if c.ID == "" {
		c.ID = NewCommandID()
	}
	return Apply(p.State().Clone(), c)
}

// Leader names the node that leads, as far as this node knows; zero if it does
// not.
func (p *Pool) Leader() ident.NodeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lead != nil {
		return p.self
	}
	return p.hint
}

// Voters are the members of the pool block, as last heard.
func (p *Pool) Voters() []ident.NodeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.voters)
}

// Init is the birth of the pool block on the first node, with that node and its
// lanes in it; durable on return. It does nothing if the block is here already.
// Invalid: bad names, or a node without bricks.
func (p *Pool) Init(_ context.Context, name string, first NodeRecord) error {
	if _, ok := p.cfg.Acceptors.Group(p.group); ok {
		return nil
	}
	s, err := NewState(p.cfg.Pool, name)
	if err != nil {
		return err
	}
	if err := Apply(s, Command{ID: NewCommandID(), PutNode: &first}); err != nil {
		return err
	}
	if first.ID != p.self || len(first.Bricks) == 0 {
		return invalid("pool init", name, "a pool begins on a node with a brick: give it a disk")
	}
	if l := wantedLanes(s, p.cfg.Lanes); l != nil {
		if err := Apply(s, Command{ID: NewCommandID(), SetLanes: l}); err != nil {
			return err
		}
	}
	cfg := quorum.Config{Version: 1, Members: []quorum.Member{{Node: p.self, Brick: first.Bricks[0].ID, Role: quorum.Voter}}}
	if err := p.cfg.Acceptors.Create(p.group, cfg, EncodeState(s)); err != nil {
		return err
	}
	p.learnVoters(cfg)
	p.publish(s)
	p.deliver()
	return nil
}

// Run does the pool's background work until ctx ends: saving and telling new
// states, pulling newer ones, and the leader's duties. It waits for events and
// costs nothing without them.
func (p *Pool) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { loop(ctx, p.news, p.deliver) })
	wg.Go(func() { p.pullLoop(ctx) })
	wg.Go(func() { p.giveLoop(ctx) })
	wg.Go(func() { p.dutyLoop(ctx) })
	wake(p.duties)
	wg.Wait()
	p.leave()
	p.mu.Lock()
	p.ended = true
	l := p.lead
	p.mu.Unlock()
	if l != nil {
		l.end(fault.Newf(fault.Unavailable, "pool.lead", "", "this node is shutting down"))
	}
	// The token: an opening that was under way sees that it came too late.
	p.opening <- struct{}{}
	<-p.opening
	p.closing.Wait()
	p.save()
}

func loop(ctx context.Context, wake <-chan struct{}, f func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			f()
		}
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// publish makes a chosen state the present one, if it is newer. It never
// blocks; deliver does the rest.
func (p *Pool) publish(s *State) {
	p.mu.Lock()
	newer := s.Version > p.state.Load().Version
	if newer {
		p.state.Store(s)
		close(p.changed)
		p.changed = make(chan struct{})
	}
	p.mu.Unlock()
	if newer {
		wake(p.news)
		wake(p.duties)
	}
}

// deliver saves the present state and tells watchers and, if this node leads,
// the other nodes. States that came and went in between are passed over.
func (p *Pool) deliver() {
	s := p.save()
	if s == nil {
		return
	}
	p.mu.Lock()
	leads := p.lead != nil
	p.mu.Unlock()
	if leads {
		p.spread(s)
	}
	p.deliverMu.Lock()
	defer p.deliverMu.Unlock()
	for _, f := range p.watchers {
		f(s)
	}
}

// save writes the present state to the file and returns it; nil if that was
// done before.
func (p *Pool) save() *State {
	p.deliverMu.Lock()
	defer p.deliverMu.Unlock()
	s := p.State()
	if s.Version <= p.delivered {
		return nil
	}
	p.delivered = s.Version
	if err := p.cfg.File.Save(pack(snapshot{State: s, Voters: p.Voters(), AtLeast: p.atLeast.Load()})); err != nil {
		p.log.Error("the pool's state was not saved; a restart may not know the newest nodes", "err", err)
	}
	return s
}

// await waits until the state has at least the version.
func (p *Pool) await(ctx context.Context, version uint64) error {
	for {
		p.mu.Lock()
		changed, has := p.changed, p.state.Load().Version
		p.mu.Unlock()
		if has >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Pool) learnVoters(c quorum.Config) {
	if len(c.Members) == 0 {
		return
	}
	ids := make([]ident.NodeID, 0, len(c.Members))
	for _, m := range c.Members {
		ids = append(ids, m.Node)
	}
	p.mu.Lock()
	p.voters = ids
	p.mu.Unlock()
}

// alive tells whether a call to the node has a good chance. Connections outlive
// a silent node for a while, so that only a node never pinged counts by its
// connection.
func (p *Pool) alive(id ident.NodeID) bool {
	if id == p.self {
		return true
	}
	switch p.cfg.View.State(id) {
	case overlay.Alive:
		return true
	case overlay.Down:
		return p.cfg.Transport.Connected(id)
	}
	return false
}
