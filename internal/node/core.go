package node

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// CoreConfig is what a node is made of, below sockets and files: a transport
// that is not started yet, and open bricks. The simulator gives it simulated ones.
type CoreConfig struct {
	Pool      ident.PoolID
	Name      string
	Addr      string // where other nodes reach the transport
	Labels    map[string]string
	Witness   bool // the node votes and keeps no data
	Boot      uint64
	Transport link.Transport
	// Gently runs what nobody waits for; nil: in place, on the goroutine that asks.
	Gently func(func())
	Bricks []*brick.Brick
	// BrickInfos is what the pool is to know of this node's bricks; nil: Bricks,
	// leaving once they are broken.
	BrickInfos func() []overlay.BrickInfo
	Scrub      ScrubSettings
	// StateFile keeps the pool's state between runs.
	StateFile pool.File
	// First: this node makes the pool.
	First    bool
	PoolName string
	// OnPeers is told where the other nodes are.
	OnPeers func(map[ident.NodeID]string)
	// OnBanned is told, first, which nodes are to be refused.
	OnBanned func([]ident.NodeID)

	// Tune and Kouncil shorten timers and limits in tests; nil and zero for defaults.
	Tune    func(*blockdev.Config)
	Kouncil kouncil.Config
	Log     *slog.Logger
}

// Core is a node without its outside.
type Core struct {
	cfg       CoreConfig
	Self      ident.NodeID
	View      *kouncil.Kouncil
	Acceptors *quorum.Acceptors
	Extents   *dht.Store
	Pool      *pool.Pool
	Manager   *blockdev.Manager

	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	ending    sync.Mutex    // while ctx ends, and while spawn joins wg
	resigned  atomic.Bool   // this node is being drained
	resigning sync.Mutex    // while the manager is told
	changed   chan struct{} // this node's record may not be true any more
	scrubs    scrubs
	events    chan struct{} // something changed that maintenance may care about
	swept     map[ident.VolumeID]bool
	resweep   atomic.Bool // a brick came that has not been swept
	bricksMu  sync.Mutex
	bricks    []*brick.Brick            // in use here, broken ones included; guarded by bricksMu
	mended    map[ident.VolumeID]uint64 // lane table version at which a volume was last found complete
}

// NewCore builds the parts and registers their handlers. Nothing runs yet.
func NewCore(cfg CoreConfig) (*Core, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Core{cfg: cfg, Self: cfg.Transport.Self(), ctx: ctx, cancel: cancel, events: make(chan struct{}, 1), changed: make(chan struct{}, 1), swept: map[ident.VolumeID]bool{}, mended: map[ident.VolumeID]uint64{}}
	kc := cfg.Kouncil
	kc.Transport, kc.Boot, kc.Log = cfg.Transport, cfg.Boot, cfg.Log
	kc.Payload, kc.OnPayload = c.pingPayload, c.onPing
	c.View = kouncil.New(kc)
	c.Acceptors = quorum.NewAcceptors(quorum.AcceptorsConfig{Transport: cfg.Transport, HolderMayLive: c.View.HolderMayLive, Log: cfg.Log})
	c.Extents = dht.New(dht.Config{Transport: cfg.Transport, View: c.View, Gently: cfg.Gently, Log: cfg.Log})
	for _, b := range cfg.Bricks {
		if err := c.takeBrick(b); err != nil {
			cancel()
			return nil, err
		}
	}
	var err error
	if c.Pool, err = pool.New(pool.Config{
		Pool: cfg.Pool, Transport: cfg.Transport, Acceptors: c.Acceptors, Boot: cfg.Boot, View: c.View,
		File: cfg.StateFile, Log: cfg.Log,
	}); err != nil {
		cancel()
		return nil, fault.Newf(fault.KindOf(err), "node run", stateName, "%w; if the file is damaged, remove it: it is a copy that the node gets again", err)
	}
	c.Pool.OnChange(c.onState)
	c.Manager = blockdev.NewManager(blockdev.ManagerConfig{
		Self: c.Self, Boot: cfg.Boot, Transport: cfg.Transport, Acceptors: c.Acceptors, Extents: c.Extents,
		View: c.View, Catalog: c.Pool.State, Publish: c.Pool.Submit, Refresh: c.Pool.Refresh, Log: cfg.Log, Tune: cfg.Tune, OnMembers: c.wake,
	})
	c.View.OnChange(c.wake)
	return c, nil
}

// Meet tells a node that has just been let in whom to turn to.
func (c *Core) Meet(peers map[ident.NodeID]string) {
	if c.Pool.State().Version == 0 && c.cfg.OnPeers != nil {
		c.cfg.OnPeers(peers)
	}
}

// Start runs the node's background work. The transport runs already.
func (c *Core) Start(ctx context.Context) error {
	c.onState(c.Pool.State())
	c.wg.Go(func() { c.View.Run(c.ctx) })
	c.wg.Go(func() { c.Acceptors.Run(c.ctx) })
	if c.cfg.First {
		if err := c.Pool.Init(ctx, c.cfg.PoolName, c.record()); err != nil {
			return err
		}
	}
	c.wg.Go(func() { c.Pool.Run(c.ctx) })
	c.wg.Go(c.announce)
	c.startScrubs()
	c.wg.Go(c.care)
	return nil
}

// Close ends everything; bricks and transport stay open.
func (c *Core) Close() {
	c.Manager.Close()
	c.Extents.Close()
	c.end()
}

// end ends the background work and waits for it.
func (c *Core) end() {
	c.ending.Lock()
	c.cancel()
	c.ending.Unlock()
	c.outlast(c.wg.Wait)
}

// spawn runs f, and Close waits for it. Once Close does, f is not run: bricks break and the
// pool's state changes at any time.
func (c *Core) spawn(f func()) {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.ctx.Err() == nil {
		c.wg.Go(f)
	}
}

// hungMax is how long the end of a node waits for what may hang in a disk.
const hungMax = 5 * time.Second

// outlast runs f, and does not wait for its end if a disk of this node hangs.
func (c *Core) outlast(f func()) {
	if !slices.ContainsFunc(c.allBricks(), (*brick.Brick).Hung) {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(hungMax):
		c.cfg.Log.Warn("what hangs in a disk is left behind")
	}
}

// record is this node's entry in the pool's state.
func (c *Core) record() pool.NodeRecord {
	r := pool.NodeRecord{ID: c.Self, Name: c.cfg.Name, Addr: c.cfg.Addr, Labels: c.cfg.Labels, Witness: c.cfg.Witness}
	if c.cfg.BrickInfos != nil {
		r.Bricks = c.cfg.BrickInfos()
		return r
	}
	for _, b := range c.allBricks() {
		r.Bricks = append(r.Bricks, infoOf(b))
	}
	return r
}

// infoOf is what the pool is to know of a brick.
func infoOf(b *brick.Brick) overlay.BrickInfo {
	total := b.Capacity()
	return overlay.BrickInfo{ID: b.ID(), Capacity: total, Weight: uint64(max(total>>20, 1)), Leaving: b.Broken() != nil}
}

// BrickBroke takes a brick of this node out of use, after it broke: the pool is
// told, so that data and votes move elsewhere. What can still be read of it is
// a last resort, unless its disk hangs.
func (c *Core) BrickBroke(id ident.BrickID) {
	for _, b := range c.allBricks() {
		if b.ID() == id && b.Hung() {
			c.Extents.SetBrickDown(id)
			if u, ok := c.cfg.Transport.(link.Unsticker); ok {
				c.spawn(func() { u.Unstick(unstickGrace) })
			}
		}
	}
	c.Reannounce()
}

// unstickGrace is how long a handler may still take once a disk is known to hang.
const unstickGrace = 500 * time.Millisecond

// Reannounce has this node's record in the pool compared with what is.
func (c *Core) Reannounce() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// announce keeps this node's record true.
func (c *Core) announce() {
	for {
		c.announceNow()
		select {
		case <-c.ctx.Done():
			return
		case <-c.changed:
		}
	}
}

// announceNow submits this node's record until the pool has it.
func (c *Core) announceNow() {
	for c.ctx.Err() == nil {
		if c.Pool.State().SameNode(c.record()) {
			return
		}
		r := c.record()
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		err := c.Pool.Submit(ctx, pool.Command{PutNode: &r})
		cancel()
		if err == nil {
			return
		}
		c.cfg.Log.Info("this node is not recorded in the pool yet", "error", err)
		if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Exists) || fault.Is(err, fault.Conflict) {
			return // told above; repeating it cannot help
		}
		c.pause(time.Second)
	}
}

func (c *Core) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.ctx.Done():
	case <-t.C:
	}
}

// onState takes over a new state of the pool.
func (c *Core) onState(st *pool.State) {
	if st == nil || st.Version == 0 {
		return
	}
	peers := map[ident.NodeID]string{}
	for _, r := range st.Nodes {
		if r.ID != c.Self {
			peers[r.ID] = r.Addr
		}
	}
	banned := slices.Clone(st.Gone)
	for i := range st.Nodes {
		if r := &st.Nodes[i]; r.Standing == pool.Lost && r.ID != c.Self {
			banned = append(banned, r.ID)
			delete(peers, r.ID)
		}
	}
	if c.cfg.OnBanned != nil {
		c.cfg.OnBanned(banned)
	}
	if c.cfg.OnPeers != nil {
		c.cfg.OnPeers(peers)
	}
	c.View.SetTable(st.Version, st.OverlayNodes(), st.Lanes.Lanes)
	if c.Manager != nil {
		c.Manager.Sync(st)
		c.follow(st)
	}
	c.wake()
}

// pingPayload is what this node tells the others with each ping: the version of
// the pool's state that it has.
func (c *Core) pingPayload() []byte {
	return binary.LittleEndian.AppendUint64(nil, c.Pool.State().Version)
}

func (c *Core) onPing(from ident.NodeID, body []byte) {
	if len(body) >= 8 {
		c.Pool.Notice(from, binary.LittleEndian.Uint64(body))
	}
}

func (c *Core) wake() {
	select {
	case c.events <- struct{}{}:
	default:
	}
}

// care acts on events: it drops what was deleted, and lends a hand to volumes
// that nobody holds but that lack redundancy.
func (c *Core) care() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.events:
		}
		c.sweep()
		c.recordVoters()
		c.mendUnheld()
	}
}

// sweep drops the groups and extents of deleted volumes from this node. What does
// not work is tried again: nothing else may happen in the pool that would call.
func (c *Core) sweep() {
	st := c.Pool.State()
	var upTo uint64
	if c.resweep.Swap(false) {
		clear(c.swept)
	}
	for _, t := range st.Tombstones {
		if err := c.drop(t); err != nil {
			c.cfg.Log.Warn("a deleted volume's data stays for now", "volume", t.Name, "error", err)
			time.AfterFunc(mendPause, c.wake)
			break // what is reported has no gaps
		}
		upTo = max(upTo, t.Seq)
	}
	if me, ok := st.Node(c.Self); ok && me.Swept < upTo {
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		defer cancel()
		if err := c.Pool.Submit(ctx, pool.Command{Swept: &pool.Swept{Node: c.Self, UpTo: upTo}}); err != nil {
			c.cfg.Log.Debug("sweep not reported yet", "error", err)
			time.AfterFunc(mendPause, c.wake)
		}
	}
}

// drop lets go of all that this node has of a deleted volume, once.
func (c *Core) drop(t pool.Tombstone) error {
	if c.swept[t.ID] {
		return nil
	}
	c.Manager.Detach(t.ID, fault.Newf(fault.NotFound, "volume", t.Name, "it was deleted"))
	if err := c.Acceptors.Drop(ident.MapBlock(t.ID)); err != nil {
		return err
	}
	freed, err := c.Extents.DropLocal(t.ID)
	if err != nil {
		return err
	}
	c.swept[t.ID] = true
	c.cfg.Log.Info("deleted volume dropped", "volume", t.Name, "freed_bytes", freed)
	return nil
}
