package blockdev

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// memLog is a log of one member in memory. Kick makes entries received; Sync
// makes them durable, on a goroutine, as a disk would. crash keeps what a
// process or a power cut leaves.
type memLog struct {
	self ident.NodeID
	prog func(received, durable uint64)

	mu         sync.Mutex
	base       quorum.Checkpoint
	entries    []quorum.Entry // slots base.UpTo+1 ...
	received   uint64
	durable    uint64
	want       uint64
	epoch      uint64
	closed     bool
	pendingCkp map[uint64]quorum.Checkpoint
	progMu     sync.Mutex
	syncing    sync.WaitGroup
}

func newMemLog(value []byte) *memLog {
	return &memLog{base: quorum.Checkpoint{Value: value}, pendingCkp: map[uint64]quorum.Checkpoint{}, self: ident.NodeID{1}}
}

func (l *memLog) next() uint64 { return l.base.UpTo + uint64(len(l.entries)) + 1 }

func (l *memLog) Next() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next()
}

func (l *memLog) Durable() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

func (l *memLog) Propose(kind quorum.EntryKind, body []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, fault.New(fault.Fenced, "memLog", "", nil)
	}
	s := l.next()
	l.entries = append(l.entries, quorum.Entry{Slot: s, Kind: kind, Body: body})
	return s, nil
}

func (l *memLog) tell() {
	l.progMu.Lock()
	defer l.progMu.Unlock()
	l.mu.Lock()
	r, d, closed := l.received, l.durable, l.closed
	l.mu.Unlock()
	if !closed {
		l.prog(r, d)
	}
}

func (l *memLog) Kick() {
	l.mu.Lock()
	l.received = l.next() - 1
	start := l.want > l.durable && !l.closed
	if start {
		l.syncing.Add(1)
	}
	l.mu.Unlock()
	l.tell()
	if start {
		go func() {
			defer l.syncing.Done()
			l.mu.Lock()
			l.durable = max(l.durable, min(l.want, l.received))
			for s, c := range l.pendingCkp {
				if s <= l.durable && c.UpTo > l.base.UpTo {
					l.entries = slices.Clone(l.entries[c.UpTo-l.base.UpTo:])
					l.base = c
					delete(l.pendingCkp, s)
				}
			}
			l.mu.Unlock()
			l.tell()
		}()
	}
}

func (l *memLog) Sync(slot uint64) {
	l.mu.Lock()
	l.want = max(l.want, slot)
	l.mu.Unlock()
}

func (l *memLog) SetEagerSync(bool) {}

func (l *memLog) Checkpoint(upTo uint64, value []byte) (uint64, error) {
	s, err := l.Propose(quorum.EntryCheckpoint, nil)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.pendingCkp[s] = quorum.Checkpoint{UpTo: upTo, Value: value}
	l.want = max(l.want, s)
	l.mu.Unlock()
	l.Kick()
	return s, nil
}

func (l *memLog) Status() []quorum.MemberStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []quorum.MemberStatus{{Member: quorum.Member{Node: l.self, Role: quorum.Voter}, State: "ok", Received: l.received, Durable: l.durable}}
}
func (l *memLog) Members() quorum.Config {
	return quorum.Config{Version: 1, Members: []quorum.Member{{Node: l.self, Brick: oneBrick.Brick, Role: quorum.Voter}}}
}
func (l *memLog) Ballot() quorum.Ballot                     { return quorum.Ballot{Epoch: l.epoch, Node: l.self} }
func (l *memLog) Join(context.Context, quorum.Member) error { return nil }
func (l *memLog) Replace(context.Context, quorum.Member, quorum.Member) error {
	return nil
}
func (l *memLog) Remove(context.Context, quorum.Member, int) error { return nil }
func (l *memLog) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.syncing.Wait()
}

// reopened is the log after the holder's death: with power every received
// entry is still there, without only the durable ones.
func (l *memLog) reopened(power bool) (*memLog, *quorum.Recovered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := newMemLog(l.base.Value)
	n.base, n.epoch = l.base, l.epoch+1
	keep := l.received
	if !power {
		keep = l.durable
	}
	for _, e := range l.entries {
		if e.Slot <= keep {
			n.entries = append(n.entries, quorum.Entry{Slot: e.Slot, Kind: e.Kind, Body: slices.Clone(e.Body)})
		}
	}
	n.received = n.next() - 1
	n.durable = n.received
	rec := &quorum.Recovered{Checkpoint: n.base, Entries: slices.Clone(n.entries)}
	return n, rec
}

// memExtents is an extent store of one brick in memory.
type memExtents struct {
	mu   sync.Mutex
	at   map[ident.Addr]brick.Ref
	data map[ident.Addr][]byte
	fail func(op string) error
	// room is the space in bytes, 0 for no end of it; small extents for relief may
	// go beyond it, up to one and a half times memReserve, as on a brick.
	room int64
}

const memReserve = 2 << 20

// fits is called under mu.
func (m *memExtents) fits(x dht.Extent) bool {
	size := int64(len(x.Data))
	used, room := size, m.room
	for _, r := range m.at {
		used += r.Size
	}
	switch {
	case !x.Relief:
	case size <= 320<<10:
		room += memReserve * 3 / 2
	case size <= 768<<10:
		room += memReserve
	}
	return m.room == 0 || used <= room
}

func newMemExtents() *memExtents {
	return &memExtents{at: map[ident.Addr]brick.Ref{}, data: map[ident.Addr][]byte{}}
}

var oneBrick = overlay.BrickRef{Node: ident.NodeID{1}, Brick: ident.BrickID{1}}

func (m *memExtents) Put(_ context.Context, _ ident.VolumeID, epoch uint64, _ int, xs []dht.Extent) (dht.PutResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail("put"); err != nil {
			return dht.PutResult{}, err
		}
	}
	for _, x := range xs {
		if extent.Address(x.Data) != x.Addr {
			return dht.PutResult{}, fault.Newf(fault.Corrupt, "put", "", "bytes do not match the address")
		}
		if !m.fits(x) {
			return dht.PutResult{}, fault.Newf(fault.NoSpace, "put", "", "no room for %d bytes", len(x.Data))
		}
		m.data[x.Addr] = slices.Clone(x.Data)
		m.at[x.Addr] = brick.Ref{Addr: x.Addr, Number: x.Number, Epoch: epoch, Size: int64(len(x.Data))}
	}
	return dht.PutResult{}, nil
}

func (m *memExtents) PutThen(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []dht.Extent, durable func()) (dht.PutResult, error) {
	res, err := m.Put(ctx, vol, epoch, replicas, xs)
	if err == nil && durable != nil {
		durable()
	}
	return res, err
}

func (m *memExtents) TryReadAt(addr ident.Addr, off int64, p []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.data[addr]
	return ok && off+int64(len(p)) <= int64(len(d)) && copy(p, d[off:]) == len(p)
}

func (m *memExtents) ReadAt(_ context.Context, _ int, addr ident.Addr, off int64, p []byte, verify func([]byte) bool) error {
	if !m.TryReadAt(addr, off, p) {
		return fault.New(fault.NotFound, "read", addr.Short(), nil)
	}
	if !verify(p) {
		return fault.New(fault.Corrupt, "read", addr.Short(), nil)
	}
	return nil
}

func (m *memExtents) Get(_ context.Context, addr ident.Addr) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.data[addr]
	if !ok {
		return nil, fault.New(fault.NotFound, "get", addr.Short(), nil)
	}
	return slices.Clone(d), nil
}

func (m *memExtents) GetGently(ctx context.Context, addr ident.Addr) ([]byte, uint32, error) {
	d, err := m.Get(ctx, addr)
	return d, extent.Checksum(d), err
}

func (m *memExtents) Delete(ctx context.Context, vol ident.VolumeID, epoch uint64, addrs []ident.Addr, _ int) error {
	return m.DeleteAt(ctx, oneBrick, vol, epoch, addrs)
}

func (m *memExtents) DeleteAt(_ context.Context, _ overlay.BrickRef, _ ident.VolumeID, _ uint64, addrs []ident.Addr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail("delete"); err != nil {
			return err
		}
	}
	for _, a := range addrs {
		delete(m.data, a)
		delete(m.at, a)
	}
	return nil
}

func (m *memExtents) List(context.Context, overlay.BrickRef, ident.VolumeID) ([]brick.Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []brick.Ref
	for _, r := range m.at {
		out = append(out, r)
	}
	return out, nil
}

func (m *memExtents) PutTo(ctx context.Context, _ overlay.BrickRef, vol ident.VolumeID, epoch uint64, xs []dht.Extent) error {
	_, err := m.Put(ctx, vol, epoch, 1, xs)
	return err
}

func (m *memExtents) Holders(ident.Addr, int) []overlay.BrickRef {
	return []overlay.BrickRef{oneBrick}
}

func (m *memExtents) bytes() (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.data {
		n += int64(len(d))
	}
	return n
}

// loneView is the overlay of a pool of one node.
type loneView struct{}

func (loneView) Self() ident.NodeID                      { return ident.NodeID{1} }
func (loneView) TableVersion() uint64                    { return 1 }
func (loneView) Nodes() []overlay.Node                   { return nil }
func (loneView) Node(ident.NodeID) (overlay.Node, bool)  { return overlay.Node{}, false }
func (loneView) State(ident.NodeID) overlay.State        { return overlay.Alive }
func (loneView) LaneCount() int                          { return 1 }
func (loneView) Lane(int) []overlay.BrickRef             { return []overlay.BrickRef{oneBrick} }
func (loneView) OnChange(func())                         {}
func (loneView) Heard(ident.NodeID) time.Duration        { return 0 }
func (loneView) LeaseValid([]ident.NodeID) bool          { return true }
func (loneView) LeaseMark([]ident.NodeID) (uint64, bool) { return 0, true }

// rig is a volume over memory parts.
type rig struct {
	t   *testing.T
	cfg Config
	ext *memExtents
	log *memLog
	v   *Volume
}

func newRig(t *testing.T, size int64, tune func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, ext: newMemExtents(), log: newMemLog(Birth(size))}
	r.cfg = Config{
		ID: ident.NewVolume(), Name: "v", Size: size, BlockSize: 512, Replicas: 1, Extents: r.ext, View: loneView{},
		Log: slog.New(slog.DiscardHandler),
	}
	if tune != nil {
		tune(&r.cfg)
	}
	r.log.epoch = 1
	r.attach(&quorum.Recovered{Checkpoint: r.log.base})
	t.Cleanup(func() { r.v.Close() })
	return r
}

func (r *rig) attach(rec *quorum.Recovered) {
	r.t.Helper()
	v := newVolume(r.cfg)
	r.log.prog = v.pend.progress
	if err := v.open(r.t.Context(), r.log, rec); err != nil {
		r.t.Fatalf("attach: %v", err)
	}
	if err := v.spawn(v.membersLoop); err != nil {
		r.t.Fatal(err)
	}
	if err := v.spawn(v.maintainLoop); err != nil {
		r.t.Fatal(err)
	}
	r.v = v
}

// crash ends the attachment without a word and attaches again.
func (r *rig) crash(power bool) {
	r.t.Helper()
	r.v.fail(fault.New(fault.Unavailable, "crash", "", nil))
	r.v.wg.Wait()
	r.log.Close()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(power)
	r.attach(rec)
}

// wait turns an asynchronous operation into one that returns its error.
func wait(v *Volume, f func(done func(error))) error {
	got := make(chan error, 1)
	f(func(err error) { got <- err })
	v.Kick()
	return <-got
}

var _ = extentmap.BlockSize

// reconcile compares the brick with the volume, whatever is known of it.
func (r *rig) reconcile() error {
	m := &r.v.maintain
	m.mu.Lock()
	clear(m.clean)
	m.mu.Unlock()
	_, err := r.v.reconcile(r.t.Context())
	return err
}
