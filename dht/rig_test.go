package dht

import (
	"bytes"
	"context"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/overlay/placement"
)

func TestMain(m *testing.M) {
	lend.Poison = true
	goleak.VerifyTestMain(m)
}

var (
	testPool = ident.PoolID{0: 'p'}
	vol      = ident.VolumeID{0: 'v'}
)

// rig is a pool of stores in one process: real bricks on memory disks, a real
// overlay, the memory network.
type rig struct {
	t     testing.TB
	net   *link.Memory
	nodes []*rigNode
	table placement.Table
	rng   *rand.Rand
}

type rigNode struct {
	r       *rig
	id      ident.NodeID
	fs      *vfs.Mem
	stable  *brick.MemStable
	brick   *brick.Brick
	trans   *link.MemoryNode
	view    *kouncil.Kouncil
	store   *Store
	stop    context.CancelFunc
	stopped sync.WaitGroup
	broken  bool // on purpose

	mu      sync.Mutex
	corrupt []overlay.BrickRef
}

func newRig(t testing.TB, n int) *rig { return newRigWith(t, n, func(*Config) {}) }

func newRigWith(t testing.TB, n int, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, net: link.NewMemory(1), rng: rand.New(rand.NewSource(1))}
	var bricks []placement.Brick
	for i := range n {
		nd := &rigNode{r: r, id: ident.NodeID{byte(i + 1)}, fs: vfs.NewMem(), stable: brick.NewMemStable()}
		r.nodes = append(r.nodes, nd)
		nd.openBrick()
		bricks = append(bricks, placement.Brick{ID: nd.brick.ID(), Node: nd.id, Weight: 1})
	}
	r.table = placement.Plan(placement.Table{}, bricks, 16, 5)
	for _, nd := range r.nodes {
		nd.start(change)
	}
	for _, nd := range r.nodes {
		for _, o := range r.nodes {
			until(t, "pings", func() bool { return nd.view.State(o.id) == overlay.Alive })
		}
	}
	t.Cleanup(func() {
		for _, nd := range r.nodes {
			nd.close()
		}
	})
	return r
}

func (nd *rigNode) openBrick() {
	nd.r.t.Helper()
	b, err := brick.Open(brick.Config{FS: nd.fs, Pool: testPool, Node: nd.id, Stable: nd.stable, Reserve: -1,
		JournalSegmentSize: 64 << 10, JournalMax: 256 << 10, ExtentSegmentSize: 8 << 20})
	if err != nil {
		nd.r.t.Fatal(err)
	}
	nd.brick = b
}

func (nd *rigNode) start(change func(*Config)) {
	nd.trans = nd.r.net.Node(nd.id)
	nd.view = kouncil.New(kouncil.Config{Transport: nd.trans, Boot: 1, PingInterval: 20 * time.Millisecond})
	var all []overlay.Node
	for _, o := range nd.r.nodes {
		all = append(all, overlay.Node{ID: o.id, Bricks: []overlay.BrickInfo{{ID: o.brick.ID(), Weight: 1}}})
	}
	nd.view.SetTable(1, all, nd.r.table.Lanes)
	cfg := Config{Transport: nd.trans, View: nd.view, OnCorrupt: func(_ ident.Addr, b overlay.BrickRef) {
		nd.mu.Lock()
		nd.corrupt = append(nd.corrupt, b)
		nd.mu.Unlock()
	}}
	change(&cfg)
	nd.store = New(cfg)
	if err := nd.store.AddBrick(nd.brick); err != nil {
		nd.r.t.Fatal(err)
	}
	if err := nd.store.AddBrick(nd.brick); !fault.Is(err, fault.Exists) {
		nd.r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	nd.stop = cancel
	nd.trans.Start()
	nd.stopped.Go(func() { nd.view.Run(ctx) })
}

// crash ends the node as if its process died; its disk stays.
func (nd *rigNode) crash() {
	nd.r.net.Crash(nd.id)
	nd.close()
}

func (nd *rigNode) close() {
	if nd.store == nil {
		return
	}
	nd.stop()
	nd.stopped.Wait()
	nd.store.Close()
	nd.trans.Close()
	if err := nd.brick.Close(); err != nil && !nd.broken {
		nd.r.t.Error(err)
	}
	nd.store = nil
}

func (nd *rigNode) ref() overlay.BrickRef { return overlay.BrickRef{Node: nd.id, Brick: nd.brick.ID()} }

// at returns the node of a brick.
func (r *rig) at(b overlay.BrickRef) *rigNode {
	i := slices.IndexFunc(r.nodes, func(nd *rigNode) bool { return nd.id == b.Node })
	return r.nodes[i]
}

// pack makes extents of one random block each.
func (r *rig) pack(number, epoch uint64, n int) []Extent {
	var b extent.Builder
	xs := make([]Extent, n)
	block := make([]byte, extent.BlockSize)
	for i := range xs {
		r.rng.Read(block)
		b.Reset(vol, number+uint64(i), epoch)
		b.Add(7, block)
		data := bytes.Clone(b.Finish())
		xs[i] = Extent{Addr: extent.Address(data), Number: number + uint64(i), Data: data}
	}
	return xs
}

func addrs(xs []Extent) []ident.Addr {
	as := make([]ident.Addr, len(xs))
	for i := range xs {
		as[i] = xs[i].Addr
	}
	return as
}

func (r *rig) put(nd *rigNode, epoch uint64, replicas int, xs []Extent) PutResult {
	r.t.Helper()
	res, err := nd.store.Put(r.ctx(), vol, epoch, replicas, xs)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// rot damages a node's copy of an extent, in its payload.
func (nd *rigNode) rot(x Extent) {
	t := nd.r.t
	t.Helper()
	names, err := nd.fs.List("extents")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := nd.fs.Open("extents/" + name)
		if err != nil {
			t.Fatal(err)
		}
		size, _ := f.Size()
		all := make([]byte, size)
		_, _ = f.ReadAt(all, 0) // what could not be read is not found below
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(all, x.Data); i >= 0 {
			if err := nd.fs.FlipBit("extents/"+name, int64(i)+100); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("extent %s is not on node %s", x.Addr.Short(), nd.id.Short())
}

func (nd *rigNode) has(x Extent) bool {
	_, ok := nd.brick.StatExtent(x.Addr)
	return ok
}

// holdersOf counts the bricks that have x.
func (r *rig) holdersOf(x Extent) int {
	n := 0
	for _, nd := range r.nodes {
		if nd.has(x) {
			n++
		}
	}
	return n
}

// until waits for a condition that becomes true in the background.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// verify is a block checksum in place of a map pointer's.
func verify(x Extent, off, n int) func([]byte) bool {
	return func(p []byte) bool { return bytes.Equal(p, x.Data[off:off+n]) }
}
