package blockdev

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// Maintenance keeps an attached volume's redundancy complete: it grows the
// map block's quorum towards the wanted number of voters and reconciles bricks
// with the extent table by difference of sets. It runs when something happened
// (attached, a node came or went, the lane table changed, a holder missed a
// put) and not otherwise.

const (
	repairBatchBytes = 4 << 20
	maintainRetryMin = 500 * time.Millisecond
	maintainRetryMax = 30 * time.Second
	// joinPause is how long a node that could not join is passed over.
	joinPause = 2 * time.Minute
)

type maintenance struct {
	mu    sync.Mutex
	clean map[overlay.BrickRef]uint64 // lane table version at which the brick was last complete
	lapse map[overlay.BrickRef]uint64 // counts what the brick missed
	avoid map[ident.NodeID]time.Time  // nodes that could not join, until when
	// Extents numbered below barrier may have been put by an older lane table
	// than version.
	version, barrier uint64
	done             uint64 // lane table version for which surplus copies were removed
	wake             chan struct{}
	idle             bool
	left             int64 // extents still to be copied, for status
}

func (m *maintenance) init() {
	m.clean, m.lapse = map[overlay.BrickRef]uint64{}, map[overlay.BrickRef]uint64{}
	m.avoid = map[ident.NodeID]time.Time{}
	m.wake = make(chan struct{}, 1)
}

// request asks for a run.
func (m *maintenance) request() {
	m.mu.Lock()
	m.idle = false
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// missed notes bricks that did not take what they should hold.
func (m *maintenance) missed(bs []overlay.BrickRef) {
	if len(bs) == 0 {
		return
	}
	m.mu.Lock()
	for _, b := range bs {
		delete(m.clean, b)
		m.lapse[b]++
	}
	m.mu.Unlock()
	m.request()
}

// tight reports whether the journal of a member is getting full.
func (v *Volume) tight() bool {
	for _, m := range v.log.Status() {
		if m.Tight {
			return true
		}
	}
	return false
}

func (v *Volume) maintainLoop() {
	retry := maintainRetryMin
	var again <-chan time.Time
	for {
		select {
		case <-v.gone:
			return
		case <-v.maintain.wake:
			retry = maintainRetryMin
		case <-again:
		}
		again = nil
		complete, err := v.maintainOnce(v.ctx)
		if err != nil && v.ctx.Err() == nil {
			v.cfg.Log.Info("maintenance will be tried again", "volume", v.cfg.Name, "error", err)
		}
		if !complete {
			again = time.After(retry)
			retry = min(2*retry, maintainRetryMax)
		}
		v.maintain.mu.Lock()
		v.maintain.idle = complete
		v.maintain.mu.Unlock()
	}
}

// maintainOnce does what can be done now. complete is false when more would be
// possible later without any further event, such as after an error.
func (v *Volume) maintainOnce(ctx context.Context) (complete bool, err error) {
	if v.tight() {
		v.startCheckpoint() // lets the members' logs go
	}
	gerr := errors.Join(v.publishSnapshots(ctx), v.growQuorum(ctx))
	complete, err = v.reconcile(ctx)
	return complete && gerr == nil, errors.Join(gerr, err)
}

// growQuorum adds voters, one at a time, while there are fewer than wanted and
// nodes to add.
func (v *Volume) growQuorum(ctx context.Context) error {
	for {
		cfg := v.log.Members()
		voters := 0
		for _, m := range cfg.Members {
			if m.Role == quorum.Voter {
				voters++
			}
		}
		if voters >= v.cfg.Replicas {
			return nil
		}
		m, ok := v.nextMember(cfg)
		if !ok {
			return nil
		}
		jctx, cancel := context.WithTimeout(ctx, time.Minute)
		err := v.log.Join(jctx, m)
		cancel()
		if err != nil {
			v.maintain.mu.Lock()
			v.maintain.avoid[m.Node] = time.Now().Add(joinPause)
			v.maintain.mu.Unlock()
			return err
		}
		v.cfg.Log.Info("voter joined", "volume", v.cfg.Name, "node", m.Node.Short(), "voters", voters+1)
	}
}

// nextMember picks the live node outside cfg that ranks highest for this
// volume by rendezvous hashing.
func (v *Volume) nextMember(cfg quorum.Config) (quorum.Member, bool) {
	var best quorum.Member
	var score uint64
	found := false
	for _, n := range v.cfg.View.Nodes() {
		v.maintain.mu.Lock()
		avoid := time.Now().Before(v.maintain.avoid[n.ID])
		v.maintain.mu.Unlock()
		if n.State != overlay.Alive || len(n.Bricks) == 0 || avoid {
			continue
		}
		if i := slices.IndexFunc(cfg.Members, func(m quorum.Member) bool { return m.Node == n.ID }); i >= 0 && cfg.Members[i].Role != quorum.Learner {
			continue
		}
		if s := rank(v.cfg.ID, n.ID); !found || s > score {
			best, score, found = quorum.Member{Node: n.ID, Brick: n.Bricks[0].ID, Role: quorum.Voter}, s, true
		}
	}
	return best, found
}

// rank is the rendezvous weight of a node for a volume (FNV-1a over both ids).
func rank(vol ident.VolumeID, node ident.NodeID) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range vol {
		h = (h ^ uint64(b)) * 1099511628211
	}
	for _, b := range node {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h ^ h>>29
}

// wantedBricks lists the bricks that hold extents of this volume.
func (v *Volume) wantedBricks() []overlay.BrickRef {
	seen := map[overlay.BrickRef]bool{}
	var out []overlay.BrickRef
	for i := range v.cfg.View.LaneCount() {
		lane := v.cfg.View.Lane(i)
		for _, b := range lane[:min(len(lane), v.cfg.Replicas)] {
			if !seen[b] {
				seen[b] = true
				out = append(out, b)
			}
		}
	}
	slices.SortFunc(out, func(a, b overlay.BrickRef) int { return a.Brick.Compare(b.Brick) })
	return out
}

func (v *Volume) reconcile(ctx context.Context) (complete bool, err error) {
	version := v.cfg.View.TableVersion()
	v.mu.RLock()
	next := v.nextExt
	v.mu.RUnlock()
	v.maintain.mu.Lock()
	if v.maintain.version != version {
		v.maintain.version, v.maintain.barrier = version, next
	}
	v.maintain.mu.Unlock()
	complete, all := true, true
	for _, b := range v.wantedBricks() {
		v.maintain.mu.Lock()
		at, ok := v.maintain.clean[b]
		lapse := v.maintain.lapse[b]
		v.maintain.mu.Unlock()
		if ok && at == version {
			continue
		}
		if v.cfg.View.State(b.Node) != overlay.Alive {
			all = false // its return is an event
			continue
		}
		settled, err2 := v.reconcileBrick(ctx, b)
		v.maintain.mu.Lock()
		done := err2 == nil && settled && v.maintain.lapse[b] == lapse
		if done {
			v.maintain.clean[b] = version
		}
		v.maintain.mu.Unlock()
		if !done {
			complete, all, err = false, false, errors.Join(err, err2)
		}
	}
	if all && v.cfg.View.TableVersion() == version {
		v.dropSurplus(ctx, version)
	}
	return complete, err
}

// wanted is the set of addresses that the volume's state names.
type wanted struct {
	keep    map[ident.Addr]uint64 // address -> extent number
	next    uint64
	flights map[uint64]struct{}
}

func (v *Volume) wanted() wanted {
	w := wanted{keep: map[ident.Addr]uint64{}, flights: map[uint64]struct{}{}}
	v.mu.RLock()
	defer v.mu.RUnlock()
	v.table.All(func(x extentmap.Extent) bool { w.keep[x.Addr] = x.Number; return true })
	for _, r := range v.tableRefs {
		w.keep[r.Addr] = r.Number
	}
	for _, x := range v.loose {
		if !mutated("forget-tail") {
			w.keep[x.addr] = x.number
		}
	}
	for n := range v.inflight {
		w.flights[n] = struct{}{}
	}
	w.next = v.nextExt
	return w
}

// garbage tells whether a brick may drop what it lists: nothing names it, and
// its number was drawn and settled.
func (w wanted) garbage(r brick.Ref) bool {
	_, named := w.keep[r.Addr]
	_, open := w.flights[r.Number]
	return !named && !open && r.Number < w.next
}

// settled reports whether no extent is in flight that an older lane table may
// have placed: such a one is named by nothing yet and would be overlooked.
func (v *Volume) settled(w wanted) bool {
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	for n := range w.flights {
		if n < v.maintain.barrier {
			return false
		}
	}
	return true
}

// reconcileBrick copies to b what it lacks and deletes from it what nothing
// names. It reports false if something was in flight that it could not judge. The listing comes before the look at the table: what was put in
// between is then in the table or in flight, never garbage.
func (v *Volume) reconcileBrick(ctx context.Context, b overlay.BrickRef) (settled bool, err error) {
	refs, err := v.cfg.Extents.List(ctx, b, v.cfg.ID)
	if err != nil {
		return false, err
	}
	w := v.wanted()
	have := make(map[ident.Addr]struct{}, len(refs))
	var drop []ident.Addr
	for _, r := range refs {
		have[r.Addr] = struct{}{}
		if w.garbage(r) {
			drop = append(drop, r.Addr)
		}
	}
	if len(drop) > 0 {
		if err := v.cfg.Extents.DeleteAt(ctx, b, v.cfg.ID, v.epoch, drop); err != nil {
			return false, err
		}
	}
	var lack []dht.Extent
	for addr, number := range w.keep {
		if _, ok := have[addr]; !ok && slices.Contains(v.cfg.Extents.Holders(addr, v.cfg.Replicas), b) {
			lack = append(lack, dht.Extent{Addr: addr, Number: number})
		}
	}
	slices.SortFunc(lack, func(a, b dht.Extent) int { return int(int64(a.Number) - int64(b.Number)) })
	if len(lack) == 0 {
		return v.settled(w), nil
	}
	if err := v.copyTo(ctx, b, lack); err != nil {
		return false, err
	}
	// What died between the look at the table and the copy would be left
	// behind on this brick; one more listing finds it.
	return v.reconcileBrick(ctx, b)
}

// copyTo copies extents to one brick, in batches. One that died meanwhile is
// passed over.
func (v *Volume) copyTo(ctx context.Context, b overlay.BrickRef, lack []dht.Extent) error {
	v.setLeft(int64(len(lack)))
	defer v.setLeft(0)
	for i := 0; i < len(lack); {
		var batch []dht.Extent
		size := 0
		for i < len(lack) && size < repairBatchBytes {
			x := lack[i]
			i++
			data, err := v.cfg.Extents.Get(ctx, x.Addr)
			if err != nil {
				if _, still := v.wanted().keep[x.Addr]; !still {
					continue
				}
				return err
			}
			x.Data = data
			size += len(data)
			batch = append(batch, x)
		}
		if len(batch) == 0 {
			continue
		}
		if err := v.cfg.Extents.PutTo(ctx, b, v.cfg.ID, v.epoch, batch); err != nil {
			return err
		}
		v.stats.Repaired.Add(int64(len(batch)))
		v.setLeft(int64(len(lack) - i))
	}
	return nil
}

func (v *Volume) setLeft(n int64) {
	v.maintain.mu.Lock()
	v.maintain.left = n
	v.maintain.mu.Unlock()
}

// dropSurplus deletes copies on bricks that no longer hold their lane. It runs
// only after every brick of the present table is complete.
func (v *Volume) dropSurplus(ctx context.Context, version uint64) {
	v.maintain.mu.Lock()
	done := v.maintain.done == version
	v.maintain.mu.Unlock()
	if done {
		return
	}
	held, err := v.listAll(ctx)
	if err != nil {
		return
	}
	ok := true
	for _, n := range v.cfg.View.Nodes() {
		if n.State != overlay.Alive {
			continue
		}
		for _, bi := range n.Bricks {
			b := overlay.BrickRef{Node: n.ID, Brick: bi.ID}
			refs, err := v.cfg.Extents.List(ctx, b, v.cfg.ID)
			if err != nil {
				ok = false
				continue
			}
			w := v.wanted()
			var drop []ident.Addr
			for _, r := range refs {
				_, open := w.flights[r.Number]
				holders := v.cfg.Extents.Holders(r.Addr, v.cfg.Replicas)
				if open || r.Number >= w.next || slices.Contains(holders, b) {
					continue
				}
				if _, named := w.keep[r.Addr]; named && !held.onAll(r.Addr, holders) {
					ok = false // it may be the last copy
					continue
				}
				drop = append(drop, r.Addr)
			}
			if v.cfg.View.TableVersion() != version {
				return
			}
			if len(drop) > 0 && v.cfg.Extents.DeleteAt(ctx, b, v.cfg.ID, v.epoch, drop) != nil {
				ok = false
			}
		}
	}
	if ok {
		v.maintain.mu.Lock()
		v.maintain.done = version
		v.maintain.mu.Unlock()
	}
}

// holdings is which bricks list which extents.
type holdings map[overlay.BrickRef]map[ident.Addr]struct{}

func (h holdings) onAll(a ident.Addr, bs []overlay.BrickRef) bool {
	for _, b := range bs {
		if _, ok := h[b][a]; !ok {
			return false
		}
	}
	return len(bs) > 0
}

// listAll lists the bricks that should hold the volume.
func (v *Volume) listAll(ctx context.Context) (holdings, error) {
	h := holdings{}
	for _, b := range v.wantedBricks() {
		refs, err := v.cfg.Extents.List(ctx, b, v.cfg.ID)
		if err != nil {
			return nil, err
		}
		h[b] = make(map[ident.Addr]struct{}, len(refs))
		for _, r := range refs {
			h[b][r.Addr] = struct{}{}
		}
	}
	return h, nil
}

// Present counts the complete copies that are reachable now: the least over the
// quorum and all lanes.
func (v *Volume) Present() int {
	voters := 0
	for _, m := range v.log.Status() {
		if m.Member.Role == quorum.Voter && (m.State == "ok" || m.Member.Node == v.cfg.View.Self()) {
			voters++
		}
	}
	present := voters
	version := v.cfg.View.TableVersion()
	v.maintain.mu.Lock()
	defer v.maintain.mu.Unlock()
	for i := range v.cfg.View.LaneCount() {
		lane := v.cfg.View.Lane(i)
		n := 0
		for _, b := range lane[:min(len(lane), v.cfg.Replicas)] {
			if at, ok := v.maintain.clean[b]; ok && at == version && v.cfg.View.State(b.Node) == overlay.Alive {
				n++
			}
		}
		present = min(present, n)
	}
	return present
}

// WaitMaintained waits until maintenance has nothing left to do.
func (v *Volume) WaitMaintained(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		v.maintain.mu.Lock()
		idle := v.maintain.idle
		v.maintain.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Timeout, "volume.maintain", v.cfg.Name, ctx.Err())
		case <-v.gone:
			return v.Err()
		case <-t.C:
		}
	}
}
