package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/quorum"
)

var poolID = ident.PoolID{0: 'p'}

// The encoder makes a channel when it is first used, which must not be in one of
// many bubbles of fake time, nor shared between such and the tests without.
func init() { pack(nil) }

// memFile is a File that survives its node's crash.
type memFile struct {
	mu sync.Mutex
	b  []byte
}

func (f *memFile) Load() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.b, nil
}

func (f *memFile) Save(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = bytes.Clone(b)
	return nil
}

// rig is a pool in one process and in fake time: real bricks on memory disks,
// real acceptors, the real overlay, the memory network.
type rig struct {
	t     *testing.T
	net   *link.Memory
	nodes []*rigNode
	rng   *rand.Rand
}

type rigNode struct {
	r      *rig
	id     ident.NodeID
	fs     *vfs.Mem
	stable *brick.MemStable
	file   memFile
	boot   uint64

	up        bool
	brick     *brick.Brick
	trans     *link.MemoryNode
	view      *kouncil.Kouncil
	acceptors *quorum.Acceptors
	pool      *Pool
	stop      context.CancelFunc
	running   sync.WaitGroup
}

// add starts a new node; the first one makes the pool.
func (r *rig) add() *rigNode {
	r.t.Helper()
	nd := &rigNode{r: r, id: ident.NodeID{byte(len(r.nodes) + 1)}, fs: vfs.NewMem(), stable: brick.NewMemStable()}
	r.nodes = append(r.nodes, nd)
	nd.start(len(r.nodes) == 1)
	return nd
}

func (nd *rigNode) start(first bool) {
	t := nd.r.t
	t.Helper()
	var err error
	nd.boot++
	nd.brick, err = brick.Open(brick.Config{FS: nd.fs, Pool: poolID, Node: nd.id, Stable: nd.stable, Reserve: -1,
		JournalSegmentSize: 256 << 10, JournalMax: 4 << 20, ExtentSegmentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	nd.trans = nd.r.net.Node(nd.id)
	known := acquainted{nd.trans, nd}
	begin := time.Now()
	nd.view = kouncil.New(kouncil.Config{Transport: known, Boot: nd.boot,
		Clock:     func() time.Duration { return time.Since(begin) },
		Payload:   func() []byte { return binary.LittleEndian.AppendUint64(nil, nd.pool.State().Version) },
		OnPayload: func(from ident.NodeID, b []byte) { nd.pool.Notice(from, binary.LittleEndian.Uint64(b)) }})
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("at", nd.id.Short())
	nd.acceptors = quorum.NewAcceptors(quorum.AcceptorsConfig{Transport: known, HolderMayLive: nd.view.HolderMayLive})
	if err := nd.acceptors.AddBrick(nd.brick.ID(), quorum.JournalOf(nd.brick.Journal()), nd.brick.Stable()); err != nil {
		t.Fatal(err)
	}
	nd.pool, err = New(Config{Pool: poolID, Transport: known, Acceptors: nd.acceptors, Boot: nd.boot, View: nd.view, File: &nd.file, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	nd.pool.OnChange(nd.table)
	ctx, cancel := context.WithCancel(context.Background())
	nd.stop = cancel
	nd.table(nd.pool.State())
	nd.trans.Start()
	nd.running.Go(func() { nd.view.Run(ctx) })
	nd.running.Go(func() { nd.acceptors.Run(ctx) })
	if first {
		if err := nd.pool.Init(ctx, "test", nd.record()); err != nil {
			t.Fatal(err)
		}
	}
	nd.running.Go(func() { nd.pool.Run(ctx) })
	nd.up = true
}

// acquainted reaches only nodes that its own is known to have an address of, as link.Mesh does;
// one that knows nothing yet was told whom to join.
type acquainted struct {
	link.Transport
	nd *rigNode
}

func (a acquainted) knows(id ident.NodeID) bool {
	s := a.nd.pool.State()
	_, ok := s.Node(id)
	return ok || s.Version == 0 || id == a.nd.id
}

func (a acquainted) Connected(to ident.NodeID) bool { return a.knows(to) && a.Transport.Connected(to) }

func (a acquainted) Send(to ident.NodeID, typ link.Type, bufs ...[]byte) error {
	if !a.knows(to) {
		return fault.Newf(fault.Unavailable, "link.send", to.Short(), "no address")
	}
	return a.Transport.Send(to, typ, bufs...)
}

func (a acquainted) Call(ctx context.Context, to ident.NodeID, typ link.Type, bufs ...[]byte) ([]byte, error) {
	if !a.knows(to) {
		return nil, fault.Newf(fault.Unavailable, "link.send", to.Short(), "no address")
	}
	return a.Transport.Call(ctx, to, typ, bufs...)
}

func (nd *rigNode) table(s *State) {
	if s.Version > 0 {
		nd.view.SetTable(s.Version, s.OverlayNodes(), s.Lanes.Lanes)
	}
}

func (nd *rigNode) record() NodeRecord {
	return NodeRecord{ID: nd.id, Name: "n" + nd.id.Short(), Addr: "host:1",
		Bricks: []overlay.BrickInfo{{ID: nd.brick.ID(), Capacity: 1 << 40, Weight: 1}}}
}

func (nd *rigNode) join() {
	nd.r.t.Helper()
	rec := nd.record()
	if err := nd.submit(Command{PutNode: &rec}); err != nil {
		nd.r.t.Fatal(err)
	}
}

// end stops the node; what it did not sync stays in the page cache.
func (nd *rigNode) end() {
	if !nd.up {
		return
	}
	nd.up = false
	nd.r.net.Crash(nd.id)
	nd.stop()
	nd.running.Wait()
	nd.trans.Close()
	if err := nd.brick.Close(); err != nil {
		nd.r.t.Error(err)
	}
}

// powerCut ends the node and loses what its disk had not synced.
func (nd *rigNode) powerCut() {
	nd.end()
	nd.fs = nd.fs.Crash(nd.r.rng)
}

func (nd *rigNode) submit(c Command) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return nd.pool.Submit(ctx, c)
}

func (nd *rigNode) create(name string) error { return nd.submit(CreateVolume(nd.vol(name))) }

func (nd *rigNode) vol(name string) Volume {
	n := nd.pool.State().Nodes[0]
	return Volume{ID: ident.NewVolume(), Name: name, Size: 1 << 30, BlockSize: 4096, Replicas: 3, WriteCache: "quorum",
		Voters: []quorum.Member{{Node: n.ID, Brick: n.Bricks[0].ID}}}
}

// until lets fake time pass until a condition holds.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for range 1200 {
		synctest.Wait()
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Fatalf("%s: not within a minute", what)
}

func (r *rig) live() (ns []*rigNode) {
	for _, nd := range r.nodes {
		if nd.up {
			ns = append(ns, nd)
		}
	}
	return ns
}

// settle waits until all live nodes agree on a state with n nodes whose lanes
// and voters are complete.
func (r *rig) settle(n int) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d nodes agree", n), func() bool {
		want := r.live()[0].pool.State()
		for _, nd := range r.live() {
			s := nd.pool.State()
			if s.Version != want.Version || len(s.Nodes) != n || len(s.Lanes.Lanes) != LanesDefault ||
				len(s.Lanes.Lanes[0]) != min(n, LaneWidthMax) || nd.view.TableVersion() == 0 || len(s.Voters) != wantedVoters(n) && n > 1 {
				return false
			}
		}
		for _, nd := range r.live() {
			if g, ok := nd.acceptors.Group(nd.pool.group); ok && g.Config.Voters() == wantedVoters(n) {
				return true
			}
		}
		return false
	})
}

// leader waits for one.
func (r *rig) leader() *rigNode {
	r.t.Helper()
	var l *rigNode
	r.until("a leader", func() bool {
		for _, nd := range r.live() {
			if nd.leads() {
				l = nd
			}
		}
		return l != nil
	})
	return l
}

func (nd *rigNode) leads() bool {
	nd.pool.mu.Lock()
	defer nd.pool.mu.Unlock()
	return nd.pool.lead != nil
}

func (r *rig) agree() {
	r.t.Helper()
	r.until("agreement", func() bool {
		for _, nd := range r.live() {
			if nd.pool.State().Version != r.live()[0].pool.State().Version {
				return false
			}
		}
		return true
	})
	want := EncodeState(r.live()[0].pool.State())
	for _, nd := range r.live() {
		if !bytes.Equal(EncodeState(nd.pool.State()), want) {
			r.t.Fatal("one version, two states")
		}
	}
}
