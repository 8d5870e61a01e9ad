// Package kouncil is the overlay with full knowledge: every node knows every
// other, pings it, and has the whole lane table, so that no question needs a
// round trip. It suits pools of up to some hundreds of nodes.
package kouncil

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
)

// Messages. Both are seq u64, boot u64 of the sender, then the node's payload,
// little-endian. A pong carries the seq of the ping it answers.
const (
	TypePing link.Type = 0x10
	TypePong link.Type = 0x11

	pingHead = 16
	// PayloadMax bounds what a node adds to its pings, in bytes.
	PayloadMax = 1024
)

// Defaults of Config.
const (
	PingIntervalDefault  = 500 * time.Millisecond
	SuspectAfterDefault  = 2 * time.Second
	DownAfterDefault     = 60 * time.Second
	LeaseDurationDefault = 2500 * time.Millisecond
	LeaseMarginDefault   = 500 * time.Millisecond
	// IsolationWindow is what counts as "at once" for Isolated.
	IsolationWindow = 10 * time.Second
	// sentKept is how many pings may be under way to one node.
	sentKept = 64
)

// Config of a kouncil; zero fields take defaults.
type Config struct {
	Transport link.Transport
	Boot      uint64 // boot counter of this node
	// Payload is added to each ping and pong, OnPayload is given the peer's. Both must not block.
	Payload   func() []byte
	OnPayload func(from ident.NodeID, body []byte)

	PingInterval  time.Duration
	SuspectAfter  time.Duration
	DownAfter     time.Duration
	LeaseDuration time.Duration
	// LeaseMargin is how much longer an acceptor waits for a silent holder than
	// the holder trusts its own lease. It covers clocks that run at different
	// rates, not clocks that jump: ages are measured, never times compared.
	LeaseMargin time.Duration
	// Clock is a monotonic time that goes on while the machine sleeps.
	Clock func() time.Duration
	Log   *slog.Logger
}

// Boottime reads CLOCK_BOOTTIME.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("kouncil: no CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// never is a time before everything.
const never = time.Duration(-1 << 62)

// peer is what listening tells of one node.
type peer struct {
	heard  time.Duration // last message of any kind
	ponged time.Duration // send time of the newest ping that it answered
	gaps   uint64        // breaks between answered pings; see overlay.View.LeaseMark
	boot   uint64
	rtt    time.Duration
	seq    uint64
	sent   [sentKept]time.Duration // send time of ping seq at seq % sentKept
	state  overlay.State           // as last reported through OnChange
}

// Kouncil implements overlay.View. Safe for concurrent use.
type Kouncil struct {
	cfg   Config
	self  ident.NodeID
	start time.Duration

	mu      sync.RWMutex
	version uint64 // of the pool's state
	// tableVersion is the version at which the lanes last changed here.
	tableVersion uint64
	nodes        []overlay.Node // sorted by id
	lanes        [][]placement.Ref
	peers        map[ident.NodeID]*peer
	changed      []func()
}

var _ overlay.View = (*Kouncil)(nil)

// New registers the message handlers, before the transport is started.
func New(cfg Config) *Kouncil {
	cfg.PingInterval = cmp.Or(cfg.PingInterval, PingIntervalDefault)
	cfg.SuspectAfter = cmp.Or(cfg.SuspectAfter, SuspectAfterDefault)
	cfg.DownAfter = cmp.Or(cfg.DownAfter, DownAfterDefault)
	cfg.LeaseDuration = cmp.Or(cfg.LeaseDuration, LeaseDurationDefault)
	cfg.LeaseMargin = cmp.Or(cfg.LeaseMargin, LeaseMarginDefault)
	if cfg.Clock == nil {
		cfg.Clock = Boottime
	}
	if cfg.Payload == nil {
		cfg.Payload = func() []byte { return nil }
	}
	k := &Kouncil{cfg: cfg, self: cfg.Transport.Self(), start: cfg.Clock(), peers: map[ident.NodeID]*peer{}}
	cfg.Transport.Handle(TypePing, k.onPing)
	cfg.Transport.Handle(TypePong, k.onPong)
	cfg.Transport.OnConnect(k.onConnect)
	return k
}

// Run pings until ctx ends.
func (k *Kouncil) Run(ctx context.Context) {
	t := time.NewTicker(k.cfg.PingInterval)
	defer t.Stop()
	for {
		k.Ping()
		k.review()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Ping sends one ping to every other node now.
func (k *Kouncil) Ping() {
	body := k.cfg.Payload()
	k.mu.RLock()
	ids := make([]ident.NodeID, 0, len(k.nodes))
	for _, n := range k.nodes {
		if n.ID != k.self {
			ids = append(ids, n.ID)
		}
	}
	k.mu.RUnlock()
	for _, id := range ids {
		k.ping(id, body)
	}
}

func (k *Kouncil) ping(id ident.NodeID, body []byte) {
	k.mu.Lock()
	p := k.peer(id)
	p.seq++
	seq := p.seq
	p.sent[seq%sentKept] = k.cfg.Clock()
	k.mu.Unlock()
	var head [pingHead]byte
	k.head(head[:], seq)
	_ = k.cfg.Transport.Send(id, TypePing, head[:], body) // not connected is what pings find out
}

// onConnect pings at once: a node that is back counts without waiting for the
// next round.
func (k *Kouncil) onConnect(to ident.NodeID, up bool) {
	if up {
		k.ping(to, k.cfg.Payload())
	}
}

func (k *Kouncil) head(b []byte, seq uint64) {
	binary.LittleEndian.PutUint64(b, seq)
	binary.LittleEndian.PutUint64(b[8:], k.cfg.Boot)
}

// peer finds or makes the entry of id; the caller holds mu.
func (k *Kouncil) peer(id ident.NodeID) *peer {
	p := k.peers[id]
	if p == nil {
		p = &peer{heard: never, ponged: never, state: overlay.Down}
		k.peers[id] = p
	}
	return p
}

func (k *Kouncil) onPing(from link.Peer, body []byte, _ bool) {
	if len(body) < pingHead || len(body) > pingHead+PayloadMax {
		return
	}
	if !k.hear(from.ID(), binary.LittleEndian.Uint64(body[8:])) {
		return
	}
	var head [pingHead]byte
	k.head(head[:], binary.LittleEndian.Uint64(body))
	_ = from.Send(TypePong, head[:], k.cfg.Payload()) // a connection that died is noticed by its dialler
	k.payload(from.ID(), body[pingHead:])
	k.review()
}

func (k *Kouncil) onPong(from link.Peer, body []byte, _ bool) {
	if len(body) < pingHead || len(body) > pingHead+PayloadMax {
		return
	}
	if !k.hear(from.ID(), binary.LittleEndian.Uint64(body[8:])) {
		return
	}
	seq := binary.LittleEndian.Uint64(body)
	now := k.cfg.Clock()
	k.mu.Lock()
	p := k.peer(from.ID())
	if seq <= p.seq && p.seq-seq < sentKept {
		if sent := p.sent[seq%sentKept]; sent > p.ponged {
			// The peer had the ping ponged before no earlier than that was sent,
			// and this one no later than now. Send times alone would not do:
			// pings that were stuck on the way arrive all at once, close in send
			// time, after a silence in which the peer may have promised another.
			if p.ponged == never || now-p.ponged >= k.cfg.LeaseDuration {
				p.gaps++
			}
			p.ponged, p.rtt = sent, now-sent
			if mutant.On("lease-from-answer") {
				p.ponged = now
			}
		}
	}
	k.mu.Unlock()
	k.payload(from.ID(), body[pingHead:])
	k.review()
}

// hear notes that a node spoke. A node that is not in the table may have just
// joined; it is remembered but not asked. Its number is bounded, since only
// certified nodes of the pool get this far.
func (k *Kouncil) hear(id ident.NodeID, boot uint64) bool {
	if id == k.self {
		return false
	}
	now := k.cfg.Clock()
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.peer(id)
	if boot < p.boot {
		return false // a late message of an earlier process
	}
	if boot != p.boot {
		p.boot = boot
		p.gaps++
	}
	p.heard = now
	return true
}

func (k *Kouncil) payload(from ident.NodeID, body []byte) {
	if k.cfg.OnPayload != nil {
		k.cfg.OnPayload(from, bytes.Clone(body))
	}
}

// review compares states with what was last reported and tells of changes.
func (k *Kouncil) review() {
	k.mu.Lock()
	changed := false
	for _, n := range k.nodes {
		if n.ID == k.self {
			continue
		}
		p := k.peer(n.ID)
		if s := k.stateOf(p); s != p.state {
			if k.cfg.Log != nil {
				k.cfg.Log.Info("node changed its state", "node", n.Name, "from", p.state.String(), "to", s.String())
			}
			p.state, changed = s, true
		}
	}
	fs := k.changed
	k.mu.Unlock()
	if changed {
		for _, f := range fs {
			f()
		}
	}
}

func (k *Kouncil) stateOf(p *peer) overlay.State {
	if p == nil || p.heard == never {
		return overlay.Down
	}
	switch age := k.cfg.Clock() - p.heard; {
	case age < k.cfg.SuspectAfter:
		return overlay.Alive
	case age < k.cfg.DownAfter:
		return overlay.Suspect
	}
	return overlay.Down
}

// SetTable replaces nodes and lanes if version is higher than the present one.
// The slices are kept and must not be changed any more.
func (k *Kouncil) SetTable(version uint64, nodes []overlay.Node, lanes [][]placement.Ref) {
	k.mu.Lock()
	if version <= k.version {
		k.mu.Unlock()
		return
	}
	if !slices.EqualFunc(k.lanes, lanes, slices.Equal) || k.tableVersion == 0 {
		k.tableVersion = version
	}
	k.version, k.lanes = version, lanes
	k.nodes = slices.Clone(nodes)
	slices.SortFunc(k.nodes, func(a, b overlay.Node) int { return a.ID.Compare(b.ID) })
	fs := k.changed
	k.mu.Unlock()
	k.review()
	for _, f := range fs {
		f()
	}
}
