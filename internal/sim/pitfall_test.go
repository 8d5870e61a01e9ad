package sim

import (
	"bytes"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// serveNBD serves the volumes of a node and returns where.
func serveNBD(t *testing.T, n *Node) (addr string) {
	t.Helper()
	s, err := nbd.NewServer(nbd.Config{Exports: n.Manager})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dialNBD(t *testing.T, addr string) *nbdclient.Client {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		c, err := nbdclient.Dial(addr, "v")
		if err == nil {
			t.Cleanup(c.Abort)
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// multiConn is the transmission flag by which a server promises that a flush on one
// connection covers what was answered on all (NBD protocol, "Transmission flags").
const multiConn = 1 << 8

// TestPitfallFlushCoversAllConnections: writes are answered on some connections, a flush
// on another one, then the power fails: they are there. Without the flush they need not
// be, or this would prove nothing.
func TestPitfallFlushCoversAllConnections(t *testing.T) {
	t.Parallel()
	everywhere := func(c *Cluster) []*Node { return c.Nodes }
	holder := func(c *Cluster) []*Node { return c.Nodes[:1] }
	for name, cut := range map[string]func(*Cluster) []*Node{"power cut everywhere": everywhere, "power cut of the holder": holder} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2) {
				if lost := writtenOnOthers(t, seed+1, true, cut); lost > 0 {
					t.Errorf("seed %d: %d of %d writes before the flush are lost", seed+1, lost, rotten)
				}
			}
		})
	}
	t.Run("without a flush", func(t *testing.T) {
		lost := 0
		for seed := uint64(1); lost == 0 && seed < 10; seed++ {
			lost = writtenOnOthers(t, seed, false, everywhere)
		}
		if lost == 0 {
			t.Error("nothing is ever lost: the flush is not what saves it")
		}
	})
}

// writtenOnOthers writes through two connections, flushes or not through a third that
// has written nothing, cuts the power, and returns how many writes are lost.
func writtenOnOthers(t *testing.T, seed uint64, flush bool, cut func(*Cluster) []*Node) (lost int) {
	t.Helper()
	ctx, c := startIdle(t, seed)
	addr := serveNBD(t, c.Nodes[0])
	a, b, other := dialNBD(t, addr), dialNBD(t, addr), dialNBD(t, addr)
	if other.Flags&multiConn == 0 {
		t.Fatal("the server does not promise that connections are alike")
	}
	for i := range uint64(rotten) {
		if err := []*nbdclient.Client{a, b}[i%2].WriteAt(noise(i), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if flush {
		if err := other.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	dead := cut(c)
	for _, n := range dead {
		n.Kill(false)
	}
	if len(dead) == len(c.Nodes) {
		for _, n := range dead {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, _ := open(t, ctx, c.Nodes[2])
	defer s.Close()
	for i := range uint64(rotten) {
		p := make([]byte, 4096)
		if err := s.ReadAt(ctx, p, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, noise(i)) {
			lost++
		}
	}
	return lost
}

// TestPitfallMapNamesExtentsWithTooFewCopies: only the holder's brick takes extents, the
// others are full. Whatever the holder then does, nothing chosen may rest on its copies
// alone: it is lost with its disk, and everything that was answered is there.
func TestPitfallMapNamesExtentsWithTooFewCopies(t *testing.T) {
	t.Parallel()
	for name, large := range map[string]bool{"a checkpoint": false, "a large write": true} {
		t.Run(name, func(t *testing.T) {
			ctx, c := startTuned(t, 1, func(cfg *blockdev.Config) {
				keepLog(cfg)
				cfg.LargeWrite, cfg.EagerLarge = 64<<10, true
			})
			holder := c.Nodes[0]
			s, _ := open(t, ctx, holder)
			answered := rotten
			write(t, s)
			var mend []func()
			for _, n := range c.Nodes[1:] {
				mend = append(mend, n.disk.Inject(vfs.Fault{Op: "write", Name: "extents/", Err: syscall.ENOSPC}))
			}
			if large {
				answered = max(answered, writeLarge(t, s))
			} else if _, err := holder.Manager.CreateSnapshot(ctx, "v", "s"); err == nil {
				t.Error("a checkpoint ends without extents on a majority")
			}
			if holder.brick.Stats().ExtentPuts == 0 {
				t.Fatal("the holder has put nothing: this proves nothing")
			}
			holder.Kill(false)
			s.Close()
			for _, f := range mend {
				f()
			}
			after, _ := open(t, ctx, c.Nodes[1])
			defer after.Close()
			for b := range uint64(answered) {
				p := make([]byte, 4096)
				if err := after.ReadAt(ctx, p, int64(b)*4096); err != nil {
					t.Fatalf("block %d: %v", b, err)
				}
				if !bytes.Equal(p, noise(b)) {
					t.Fatalf("block %d has other bytes than were written", b)
				}
			}
		})
	}
}

// TestPitfallTornWrite: a write of many blocks is one record. After a power cut
// everywhere either all of its blocks are there or none, although it was not flushed.
func TestPitfallTornWrite(t *testing.T) {
	t.Parallel()
	const blocks, writes = 8, 30
	ctx, c := startIdle(t, 1)
	fill := func(v uint64) []byte { return bytes.Repeat(pattern(v), blocks) }
	kept := map[uint64]bool{}
	for round := range uint64(4) {
		s, _ := open(t, ctx, c.Nodes[round%3])
		var answers []chan error
		for i := range uint64(writes) {
			got := make(chan error, 1)
			s.Write(fill(round*writes+i+1), 0, i%4 == 3, func(err error) { got <- err })
			s.Kick()
			answers = append(answers, got)
		}
		// The power fails while the last ones are under way.
		if err := ended(t, answers[writes/2]); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes {
			n.Kill(false)
		}
		s.Close()
		for _, n := range c.Nodes {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
		s, _ = open(t, ctx, c.Nodes[(round+1)%3])
		p := make([]byte, blocks*4096)
		if err := s.ReadAt(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, bytes.Repeat(p[:4096], blocks)) {
			t.Fatalf("round %d: the blocks of one write are of several", round)
		}
		kept[uint64(p[0])|uint64(p[1])<<8] = true
		s.Close()
	}
	if len(kept) < 2 {
		t.Errorf("4 power cuts left %d history: nothing was at stake", len(kept))
	}
}

// TestPitfallSnapshotOfWhatCanBeLost: a snapshot of writes that were answered and never
// flushed holds all of them, also when the power fails everywhere right after it is made.
func TestPitfallSnapshotOfWhatCanBeLost(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		ctx, c := startIdle(t, seed+1)
		s, _ := open(t, ctx, c.Nodes[0])
		for b := range rotten {
			mustPut(t, s, b, uint64(b)+100, false)
		}
		if _, err := c.Nodes[0].Manager.CreateSnapshot(ctx, "v", "s"); err != nil {
			t.Fatal(err)
		}
		mustPut(t, s, 0, 7, false) // which the snapshot does not have
		for _, n := range c.Nodes {
			n.Kill(false)
		}
		s.Close()
		for _, n := range c.Nodes {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
		at := c.Nodes[1+seed%2]
		s, _ = open(t, ctx, at)
		old, _ := openSnapshot(t, ctx, at, "v@s")
		for b := range rotten {
			mustHave(t, ctx, old, b, uint64(b)+100)
		}
		old.Close()
		s.Close()
	}
}

// writeLarge writes noise in pieces that go into extents of their own, and returns how
// many blocks were answered.
func writeLarge(t *testing.T, s target.Session) (blocks int) {
	t.Helper()
	const each = 16
	for b := 0; b+each <= 256; b += each {
		var p []byte
		for i := range each {
			p = append(p, noise(uint64(b+i))...)
		}
		got := make(chan error, 1)
		s.Write(p, int64(b)*4096, true, func(err error) { got <- err })
		s.Kick()
		if ended(t, got) != nil {
			return b
		}
	}
	return 256
}

// TestPitfallAbsentNodeResurrectsNothing: a volume is deleted while one of the nodes with
// its votes and extents is away. The others keep the decision until that node has come
// back and swept; it brings nothing back, and loses nothing of another volume.
func TestPitfallAbsentNodeResurrectsNothing(t *testing.T) {
	t.Parallel()
	ctx, nodes := startDisks(t, 3)
	other := pool.Volume{ID: ident.NewVolume(), Name: "other", Size: 1 << 20, BlockSize: 4096, Replicas: 3, WriteCache: "quorum"}
	if err := nodes[0].core.Birth(ctx, other); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v", "other"} {
		s, _, err := nodes[0].core.Manager.Open(ctx, name, "test")
		if err != nil {
			t.Fatal(err)
		}
		write(t, s)
		s.Close()
	}
	v, _ := nodes[0].core.Pool.State().VolumeNamed("v")
	has := func(d *diskNode, id ident.VolumeID) bool {
		_, votes := d.core.Acceptors.Group(ident.MapBlock(id))
		return votes || slices.ContainsFunc(d.bricks, func(b *brick.Brick) bool { return len(b.ListVolume(id)) > 0 })
	}
	extents := func(d *diskNode, id ident.VolumeID) (n int) {
		for _, b := range d.bricks {
			n += len(b.ListVolume(id))
		}
		return n
	}
	away := nodes[2]
	soon(t, ctx, "all nodes have extents of both", func() bool {
		return spread(ctx, nodes) && extents(away, v.ID) > 0 && extents(away, other.ID) > 0
	})
	away.net.Isolate(away.id)
	soon(t, ctx, "it is deleted without that node", func() bool {
		return nodes[0].core.Remove(ctx, v) == nil
	})
	soon(t, ctx, "the others have swept", func() bool { return !has(nodes[0], v.ID) && !has(nodes[1], v.ID) })
	if st := nodes[1].core.Pool.State(); len(st.Tombstones) != 1 || extents(away, v.ID) == 0 {
		t.Fatalf("%d decisions are kept for a node that is away and has %d extents", len(st.Tombstones), extents(away, v.ID))
	}
	away.net.Rejoin(away.id)
	soon(t, ctx, "it has swept too", func() bool { return !has(away, v.ID) && len(nodes[0].core.Pool.State().Tombstones) == 0 })
	for _, d := range nodes {
		if _, there := d.core.Pool.State().VolumeNamed("v"); there || has(d, v.ID) {
			t.Errorf("node %d has the volume that was deleted", d.id[0])
		}
	}
	s, _, err := away.core.Manager.Open(ctx, "other", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check(t, ctx, s)
}
