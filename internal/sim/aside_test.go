package sim

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/node"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/target"
)

// diskNode is a whole node core with several disks.
type diskNode struct {
	id     ident.NodeID
	net    *link.Memory
	core   *node.Core
	disks  []*vfs.Mem
	bricks []*brick.Brick
}

type memoryFile struct {
	mu sync.Mutex
	b  []byte
}

func (f *memoryFile) Load() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.b), nil
}

func (f *memoryFile) Save(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = slices.Clone(b)
	return nil
}

const (
	stallMax = 2 * time.Second // a machine under load is no stalled disk
	// contactMax is for how long nodes of startDisks may not hear each other without
	// consequences. None of its tests is about that, and a busy machine stands still for some
	// hundred milliseconds.
	contactMax = 2 * time.Second
)

// startDisks runs a pool of n nodes with two disks each and the volume v of 1 MiB.
func startDisks(t *testing.T, n int) (context.Context, []*diskNode) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("GABION_SIM_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	net := link.NewMemory(1)
	peers := map[ident.NodeID]string{}
	var nodes []*diskNode
	for i := range n {
		d := &diskNode{id: ident.NodeID{byte(i + 1)}, net: net}
		tr := net.Node(d.id)
		for range 2 {
			m := vfs.NewMem()
			b, err := brick.Open(brick.Config{FS: m, Pool: ident.PoolID{1}, Node: d.id, Stable: brick.NewMemStable(),
				JournalSegmentSize: 1 << 20, JournalMax: 64 << 20, ExtentSegmentSize: 2 << 20, Reserve: -1, StallMax: stallMax,
				Log: log, OnBroken: func(error) { go d.broke() }})
			if err != nil {
				t.Fatal(err)
			}
			d.disks, d.bricks = append(d.disks, m), append(d.bricks, b)
		}
		addr := fmt.Sprintf("10.0.0.%d:7000", i+1)
		var err error
		d.core, err = node.NewCore(node.CoreConfig{Pool: ident.PoolID{1}, Name: fmt.Sprintf("n%d", i+1), Addr: addr, Boot: 1,
			Transport: tr, Bricks: d.bricks, StateFile: &memoryFile{}, First: i == 0, PoolName: "sim", OnPeers: tr.SetPeers, Log: log,
			Tune: func(c *blockdev.Config) {
				c.CheckpointBytes, c.TailBytes, c.CheckpointIdle, c.IOTimeout = 1<<20, 4<<20, 200*time.Millisecond, patience
			},
			Kouncil: kouncil.Config{PingInterval: pingInterval, SuspectAfter: contactMax, LeaseDuration: contactMax, LeaseMargin: contactMax / 5}})
		if err != nil {
			t.Fatal(err)
		}
		tr.Start()
		d.core.Meet(peers)
		if err := d.core.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, m := range d.disks {
				m.Kill() // what hangs goes on
			}
			d.core.Close()
			tr.Close()
			for _, b := range d.bricks {
				_ = b.Close()
			}
		})
		peers[d.id] = addr
		nodes = append(nodes, d)
	}
	soon(t, ctx, "every brick has lanes", func() bool {
		used := map[ident.BrickID]bool{}
		for i := range nodes[0].core.View.LaneCount() {
			for _, b := range nodes[0].core.View.Lane(i) {
				used[b.Brick] = true
			}
		}
		return len(used) == 2*n
	})
	soon(t, ctx, "v is made", func() bool {
		return nodes[0].core.Birth(ctx, pool.Volume{ID: ident.NewVolume(), Name: "v", Size: 1 << 20, BlockSize: 4096,
			Replicas: 3, WriteCache: "quorum"}) == nil
	})
	return ctx, nodes
}

// broke does what a node does when one of its bricks broke.
func (d *diskNode) broke() {
	for _, b := range d.bricks {
		if b.Broken() != nil {
			d.core.BrickBroke(b.ID())
		}
	}
}

// soon waits for what must come to be.
func soon(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("%s: it never came to be", what)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

func (d *diskNode) open(t *testing.T, ctx context.Context) target.Session {
	t.Helper()
	var s target.Session
	soon(t, ctx, "v opens", func() bool {
		var err error
		s, _, err = d.core.Manager.Open(ctx, "v", "test")
		return err == nil
	})
	return s
}

// write puts noise into the first blocks of v, durably.
func write(t *testing.T, s target.Session) {
	t.Helper()
	for b := range uint64(rotten) {
		got := make(chan error, 1)
		s.Write(noise(b), int64(b)*4096, true, func(err error) { got <- err })
		s.Kick()
		if err := ended(t, got); err != nil {
			t.Fatal(err)
		}
	}
}

// spread tells whether every extent of v that any brick has is on all bricks
// that shall hold it.
func spread(ctx context.Context, nodes []*diskNode) bool {
	x := nodes[0].core
	v, _ := x.Pool.State().VolumeNamed("v")
	n := 0
	for _, d := range nodes {
		for _, b := range d.bricks {
			if b.Broken() != nil {
				continue
			}
			for _, r := range b.ListVolume(v.ID) {
				n++
				for _, h := range x.Extents.Holders(r.Addr, 3) {
					if sizes, err := x.Extents.Stat(ctx, h, []ident.Addr{r.Addr}); err != nil || sizes[0] != r.Size {
						return false
					}
				}
			}
		}
	}
	return n > 0
}

// TestPitfallOneDiskOfANodeDies, in several ways: the node goes on with its
// other one, clients notice nothing, the pool gives the dead brick no lane any
// more, and what it held is made anew.
func TestPitfallOneDiskOfANodeDies(t *testing.T) {
	for name, die := range map[string]func(m *vfs.Mem, b *brick.Brick){
		"fsync fails":     func(m *vfs.Mem, _ *brick.Brick) { m.Inject(vfs.Fault{Op: "sync", Err: vfs.EIO}) },
		"fsync hangs":     func(m *vfs.Mem, _ *brick.Brick) { m.Hang(vfs.Fault{Op: "sync"}) },
		"all of it hangs": func(m *vfs.Mem, _ *brick.Brick) { m.Hang(vfs.Fault{}) },
		"it rots": func(_ *vfs.Mem, b *brick.Brick) {
			for i := range brick.DamageMaxDefault + 1 {
				b.NoteDamage(ident.Addr{byte(i), byte(i >> 8)}, vfs.EIO)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, nodes := startDisks(t, 3)
			s := nodes[0].open(t, ctx)
			write(t, s)
			soon(t, ctx, "v is in extents", func() bool { return spread(ctx, nodes) })
			bad := nodes[1] // its second disk: the first one has the votes
			die(bad.disks[1], bad.bricks[1])
			id := bad.bricks[1].ID()
			soon(t, ctx, "the brick is set aside", func() bool {
				write(t, s)
				if bad.bricks[1].Broken() == nil {
					return false
				}
				me, _ := nodes[2].core.Pool.State().Node(bad.id)
				i := slices.IndexFunc(me.Bricks, func(b overlay.BrickInfo) bool { return b.ID == id })
				return i >= 0 && me.Bricks[i].Leaving
			})
			soon(t, ctx, "no lane has it", func() bool {
				for i := range nodes[0].core.View.LaneCount() {
					if slices.ContainsFunc(nodes[0].core.View.Lane(i), func(b overlay.BrickRef) bool { return b.Brick == id }) {
						return false
					}
				}
				return true
			})
			write(t, s)
			check(t, ctx, s)
			soon(t, ctx, "what it held is elsewhere", func() bool { return spread(ctx, nodes) })
			if nodes[0].core.View.State(bad.id) != overlay.Alive {
				t.Fatal("the node with the dead disk is not alive")
			}
			s.Close()
			s = bad.open(t, ctx) // which still serves, with its other disk
			check(t, ctx, s)
			s.Close()
		})
	}
}

// TestPitfallDiskWithVotesHangs: the disk whose journal a node votes with never
// answers again. The holder goes on with the others; the node is let out of the
// disk's grip and says so, and what the disk held is made anew.
func TestPitfallDiskWithVotesHangs(t *testing.T) {
	ctx, nodes := startDisks(t, 3)
	s := nodes[0].open(t, ctx)
	write(t, s)
	soon(t, ctx, "v is in extents", func() bool { return spread(ctx, nodes) })
	bad := nodes[1]
	bad.disks[0].Hang(vfs.Fault{})
	soon(t, ctx, "the brick is set aside", func() bool {
		write(t, s)
		me, _ := nodes[2].core.Pool.State().Node(bad.id)
		i := slices.IndexFunc(me.Bricks, func(b overlay.BrickInfo) bool { return b.ID == bad.bricks[0].ID() })
		return i >= 0 && me.Bricks[i].Leaving
	})
	write(t, s)
	check(t, ctx, s)
	soon(t, ctx, "the node is heard", func() bool {
		return nodes[0].core.View.State(bad.id) == overlay.Alive && bad.core.View.State(nodes[0].id) == overlay.Alive
	})
	soon(t, ctx, "what it held is elsewhere", func() bool { return spread(ctx, nodes) })
	s.Close()
	s = bad.open(t, ctx) // what the dead disk promised holds nobody off
	check(t, ctx, s)
	s.Close()
}

// TestPitfallDiskOfTheHolderDies: the disk with the holder's own vote fails or
// hangs under a client that writes. The vote is one of three, and so are the
// copies: no operation fails, small or large, checkpoints go on, and the holder
// can attach the volume again.
func TestPitfallDiskOfTheHolderDies(t *testing.T) {
	for name, die := range map[string]func(m *vfs.Mem){
		"fsync fails": func(m *vfs.Mem) { m.Inject(vfs.Fault{Op: "sync", Err: vfs.EIO}) },
		"fsync hangs": func(m *vfs.Mem) { m.Hang(vfs.Fault{Op: "sync"}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, nodes := startDisks(t, 3)
			holder := nodes[0]
			s := holder.open(t, ctx)
			write(t, s)
			soon(t, ctx, "v is in extents", func() bool { return spread(ctx, nodes) })
			die(holder.disks[0])
			soon(t, ctx, "the brick is set aside", func() bool {
				write(t, s)
				writeLong(t, s)
				check(t, ctx, s)
				me, _ := nodes[2].core.Pool.State().Node(holder.id)
				i := slices.IndexFunc(me.Bricks, func(b overlay.BrickInfo) bool { return b.ID == holder.bricks[0].ID() })
				return i >= 0 && me.Bricks[i].Leaving
			})
			write(t, s)
			writeLong(t, s)
			soon(t, ctx, "what it held is elsewhere", func() bool { return spread(ctx, nodes) })
			check(t, ctx, s)
			s.Close()
			s = nodes[1].open(t, ctx)
			check(t, ctx, s)
			s.Close()
			s = holder.open(t, ctx)
			check(t, ctx, s)
			s.Close()
		})
	}
}

// writeLong writes the last quarter of v several times, the later ones as extents.
func writeLong(t *testing.T, s target.Session) {
	t.Helper()
	p := make([]byte, blockdev.LargeWriteDefault)
	for i := range p {
		p[i] = byte(i*i>>7) ^ byte(i)
	}
	for range 4 {
		got := make(chan error, 1)
		s.Write(p, 1<<20-int64(len(p)), true, func(err error) { got <- err })
		s.Kick()
		if err := ended(t, got); err != nil {
			t.Fatal(err)
		}
	}
}
