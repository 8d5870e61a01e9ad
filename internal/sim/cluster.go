// Package sim runs whole pools of real code in one process: real volumes,
// quorums, stores and bricks over disks and links in memory that can be cut,
// crashed and filled. Only tests import it.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/overlay/placement"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// Timers of a simulated pool: those of a real one, ten times as fast.
const (
	pingInterval  = 50 * time.Millisecond
	suspectAfter  = 200 * time.Millisecond
	leaseDuration = 250 * time.Millisecond
	lanes         = 16
)

// Cluster is a pool of n nodes with one brick each and a catalog that all of them
// see at once; State is the one it begins with.
type Cluster struct {
	Net   *link.Memory
	State *pool.State
	Nodes []*Node
	Log   *slog.Logger
	Tune  func(*blockdev.Config)
	rng   *rand.Rand

	catalog catalog
}

// Node is one simulated node: a disk that outlives it and, while it runs, its parts.
type Node struct {
	ID     ident.NodeID
	c      *Cluster
	disk   *vfs.Mem
	stable *brick.MemStable
	boot   uint64

	dead  *atomic.Bool               // of the present process
	old   atomic.Pointer[pool.State] // see Recall
	apart atomic.Bool

	mu      sync.Mutex
	up      bool
	link    *link.MemoryNode
	brick   *brick.Brick
	View    *kouncil.Kouncil
	Acc     *quorum.Acceptors
	Store   *dht.Store
	Manager *blockdev.Manager
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// New starts a cluster of n nodes.
func New(seed uint64, n int, log *slog.Logger, tune func(*blockdev.Config)) (*Cluster, error) {
	c := &Cluster{Net: link.NewMemory(seed), Log: log, Tune: tune, rng: rand.New(rand.NewPCG(seed, 2))}
	c.State = &pool.State{Version: 1, Pool: ident.PoolID{1}, Name: "sim"}
	var bricks []placement.Brick
	for i := range n {
		node := &Node{ID: ident.NodeID{byte(i + 1)}, c: c, disk: vfs.NewMemSeed(int64(seed) + int64(i)), stable: brick.NewMemStable()}
		c.Nodes = append(c.Nodes, node)
		if err := node.open(); err != nil {
			return nil, err
		}
		bricks = append(bricks, placement.Brick{ID: node.brick.ID(), Node: node.ID, Weight: 1})
		c.State.Nodes = append(c.State.Nodes, pool.NodeRecord{
			ID: node.ID, Name: fmt.Sprintf("n%d", i+1), Addr: "memory",
			Bricks: []overlay.BrickInfo{{ID: node.brick.ID(), Capacity: 1 << 30, Weight: 1}},
		})
	}
	c.State.Lanes = placement.Plan(placement.Table{}, bricks, lanes, min(n, 3))
	for _, node := range c.Nodes {
		node.begin()
	}
	return c, nil
}

// CreateVolume gives birth to a volume on the first replicas nodes.
func (c *Cluster) CreateVolume(ctx context.Context, name string, size int64, replicas int) (pool.Volume, error) {
	d := pool.Volume{ID: ident.NewVolume(), Name: name, Size: size, BlockSize: 4096, Replicas: replicas, WriteCache: "quorum"}
	for _, n := range c.Nodes[:min(replicas, len(c.Nodes))] {
		d.Voters = append(d.Voters, quorum.Member{Node: n.ID, Brick: n.brick.ID(), Role: quorum.Voter})
	}
	for _, m := range d.Voters {
		if err := quorum.CreateOn(ctx, c.Nodes[0].link, m.Node, ident.MapBlock(d.ID), quorum.Config{Version: 1, Members: d.Voters}, blockdev.Birth(size)); err != nil {
			return d, err
		}
	}
	st := c.State.Clone()
	st.Volumes = append(st.Volumes, d)
	c.State = st
	return d, nil
}

// errDead is what the disk of a dead process says.
var errDead = fault.New(fault.Internal, "sim", "", errors.New("the process is dead"))

// mortal is a stable store that a dead process cannot change.
type mortal struct {
	*brick.MemStable
	dead *atomic.Bool
}

func (m mortal) Set(key string, v []byte) error {
	if m.dead.Load() {
		return errDead
	}
	return m.MemStable.Set(key, v)
}

// open mounts the disk and builds the parts.
func (n *Node) open() error {
	n.boot++
	n.link = n.c.Net.Node(n.ID)
	dead := new(atomic.Bool)
	n.dead = dead
	n.disk.SetHook(func(op, name string) error {
		if dead.Load() {
			return errDead
		}
		return nil
	})
	var err error
	n.brick, err = brick.Open(brick.Config{
		FS: n.disk, Pool: ident.PoolID{1}, Node: n.ID, Stable: mortal{n.stable, dead},
		JournalSegmentSize: 4 << 20, JournalMax: 256 << 20, ExtentSegmentSize: 8 << 20, Reserve: -1, Log: n.c.Log,
	})
	if err != nil {
		return err
	}
	n.View = kouncil.New(kouncil.Config{
		Transport: n.link, Boot: n.boot, PingInterval: pingInterval, SuspectAfter: suspectAfter,
		LeaseDuration: leaseDuration, LeaseMargin: leaseDuration / 5, Log: n.c.Log,
	})
	n.Acc = quorum.NewAcceptors(quorum.AcceptorsConfig{Transport: n.link, HolderMayLive: n.View.HolderMayLive, Log: n.c.Log})
	if err := n.Acc.AddBrick(n.brick.ID(), quorum.JournalOf(n.brick.Journal()), n.brick.Stable()); err != nil {
		return err
	}
	n.Store = dht.New(dht.Config{Transport: n.link, View: n.View, PutGrace: 200 * time.Millisecond, PutTimeout: 2 * time.Second, ReadTimeout: time.Second, Log: n.c.Log})
	n.Store.AddBrick(n.brick)
	n.Manager = blockdev.NewManager(blockdev.ManagerConfig{
		Self: n.ID, Boot: n.boot, Transport: n.link, Acceptors: n.Acc, Extents: n.Store, View: n.View,
		Catalog: n.catalog, Publish: n.c.publish, Refresh: n.refresh, Log: n.c.Log, Tune: n.c.Tune,
	})
	return nil
}

// begin lets the node run.
func (n *Node) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	peers := map[ident.NodeID]string{}
	for _, p := range n.c.Nodes {
		if p.ID != n.ID {
			peers[p.ID] = "memory"
		}
	}
	n.link.SetPeers(peers)
	n.link.Start()
	n.View.SetTable(n.c.State.Version, n.c.State.OverlayNodes(), n.c.State.Lanes.Lanes)
	n.wg.Go(func() { n.View.Run(ctx) })
	n.wg.Go(func() { n.Acc.Run(ctx) })
	n.mu.Lock()
	n.up = true
	n.mu.Unlock()
}

// Up tells whether the node runs.
func (n *Node) Up() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up
}

// Serving returns the manager of the node's present process and its boot
// counter, or nil if it does not run.
func (n *Node) Serving() (*blockdev.Manager, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up {
		return nil, 0
	}
	return n.Manager, n.boot
}

// Kill ends the process: nothing that reached the page cache is lost. With
// power false the machine loses its power as well, and with it what was not
// synced.
func (n *Node) Kill(power bool) {
	n.mu.Lock()
	n.up = false
	n.mu.Unlock()
	n.c.Net.Crash(n.ID)
	// From here on nothing of this process reaches what the next one finds.
	n.dead.Store(true)
	if power {
		n.disk = n.disk.Kill()
	} else {
		n.disk = n.disk.Crash(mrand.New(mrand.NewSource(n.c.rng.Int64())))
	}
	n.cancel()
	n.Manager.Close()
	n.Store.Close()
	n.wg.Wait()
	_ = n.brick.Close()
	n.link.Close()
}

// Wipe gives a killed node an empty disk, as after a replacement. The catalog
// still names the brick of the old one.
func (n *Node) Wipe() {
	n.disk = vfs.NewMemSeed(n.c.rng.Int64())
	n.stable = brick.NewMemStable()
}

// Brick is the id of the node's present brick.
func (n *Node) Brick() ident.BrickID { return n.brick.ID() }

// Start brings a killed node back.
func (n *Node) Start() error {
	if err := n.open(); err != nil {
		n.c.Net.Crash(n.ID)
		n.link.Close()
		return err
	}
	n.begin()
	return nil
}

// Close ends the cluster.
func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		if n.Up() {
			n.Kill(true)
		}
	}
}
