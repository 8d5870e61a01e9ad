package sim

import (
	"bytes"
	"cmp"
	"context"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/quorum"
	"github.com/gabion-storage/gabion/target"
)

// scrub verifies a node's brick and heals it as a node does.
func scrub(t *testing.T, n *Node) (brick.ScrubCount, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var found brick.ScrubCount
	err := n.brick.Scrub(ctx, brick.ScrubConfig{
		Extent:   func(a ident.Addr, _ error) bool { return n.Store.Repair(n.brick.ID(), a) == nil },
		Journal:  func(end brick.Pos, _ error) bool { return n.Acc.Heal(ctx, n.brick.ID(), int64(end)) == nil },
		Progress: func(_ brick.ScrubPos, c brick.ScrubCount) { found.Add(c) },
	})
	return found, err
}

// find returns where the files of a node's disk whose names begin with prefix
// have the bytes of needle.
func find(t *testing.T, n *Node, prefix string, needle []byte) (name string, off int64) {
	t.Helper()
	dir := "."
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
	}
	names, err := n.disk.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if dir != "." {
			name = dir + "/" + name
		}
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		b, err := vfs.ReadFile(n.disk, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.LastIndex(b, needle); i >= 0 {
			return name, int64(i)
		}
	}
	t.Fatalf("%x... is in no file %s* of node %d", needle[:8], prefix, n.ID[0])
	return "", 0
}

// noise is a block that does not shrink.
func noise(v uint64) []byte {
	p := make([]byte, 4096)
	rand.New(rand.NewSource(int64(v))).Read(p)
	return p
}

const rotten = 40 // blocks that are written

// filled writes noise to the first blocks of v at a node, and waits until every member
// has it on disk: a flush waits for two of them. folded waits until it is in extents on every brick.
func filled(t *testing.T, ctx context.Context, c *Cluster, folded bool) {
	t.Helper()
	s, _ := open(t, ctx, c.Nodes[0])
	for b := range uint64(rotten) {
		got := make(chan error, 1)
		s.Write(noise(b), int64(b)*4096, false, func(err error) { got <- err })
		s.Kick()
		if err := ended(t, got); err != nil {
			t.Fatal(err)
		}
	}
	flushed := make(chan error, 1)
	s.Flush(func(err error) { flushed <- err })
	s.Kick()
	if err := ended(t, flushed); err != nil {
		t.Fatal(err)
	}
	v, err := c.Nodes[0].Manager.Attach(ctx, "v", false)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, ctx, "every member has the log on disk", func() bool {
		status := v.Members().Status
		most := slices.MaxFunc(status, func(a, b quorum.MemberStatus) int { return cmp.Compare(a.Durable, b.Durable) }).Durable
		return len(status) == len(c.Nodes) && !slices.ContainsFunc(status, func(m quorum.MemberStatus) bool { return m.Durable < most })
	})
	for _, n := range c.Nodes {
		for folded {
			data, page := pieces(t, c, n)
			if len(data) > 0 && len(page) > 0 {
				break
			}
			pause(ctx, 10*time.Millisecond)
			if ctx.Err() != nil {
				t.Fatal("no checkpoint")
			}
		}
	}
	s.Close()
}

// piece is a stored block in an extent: off bytes after what head begins.
type piece struct {
	head []byte
	off  int64
}

// pieces are blocks in extents that a node has of v, one of each kind from each
// extent: data of the volume, and pages of its map.
func pieces(t *testing.T, c *Cluster, n *Node) (data, pages []piece) {
	t.Helper()
	v, _ := c.State.VolumeNamed("v")
	for _, r := range n.brick.ListVolume(v.ID) {
		raw := make([]byte, r.Size)
		if n.brick.ReadExtent(r.Addr, raw, 0) != nil {
			continue // deleted meanwhile
		}
		h, err := extent.ParseHeader(raw)
		if err != nil {
			t.Fatal(err)
		}
		x, err := extent.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		isPage := func(i int) bool { return x.Owner(i)>>56 != 0 }
		if !isPage(0) {
			data = append(data, piece{raw[:64], extent.HeaderSize + 7})
		}
		if isPage(h.Count - 1) {
			pages = append(pages, piece{raw[:64], int64(extent.HeaderSize + h.PayloadLen - 3)})
		}
	}
	return data, pages
}

// damage flips a bit of each piece on a node's disk.
func damage(t *testing.T, n *Node, ps []piece) {
	t.Helper()
	for _, p := range ps {
		name, off := find(t, n, "extents/", p.head)
		flip(t, n, name, off+p.off)
	}
}

// startIdle is start with a volume whose log stays: nothing checkpoints it.
func startIdle(t *testing.T, seed uint64) (context.Context, *Cluster) {
	t.Helper()
	return startTuned(t, seed, keepLog)
}

// keepLog lets a volume's log stay as it is. A tail counts by whole chunks of 1 MiB, of
// which the first entry takes one: with less room a checkpoint would follow each write.
func keepLog(cfg *blockdev.Config) {
	cfg.CheckpointBytes, cfg.TailBytes = 8*tail.ChunkSize, 16*tail.ChunkSize
	cfg.CheckpointIdle, cfg.IOTimeout = time.Hour, patience
}

// startPatient is start with a volume whose operations do not fail because a busy
// machine lets them wait.
func startPatient(t *testing.T) (context.Context, *Cluster) {
	t.Helper()
	return startTuned(t, 1, func(cfg *blockdev.Config) { cfg.IOTimeout = patience })
}

// holds demands that v has what filled wrote, as seen from a node that takes it.
func holds(t *testing.T, ctx context.Context, n *Node) {
	t.Helper()
	s, _ := open(t, ctx, n)
	defer s.Close()
	check(t, ctx, s)
}

func check(t *testing.T, ctx context.Context, s target.Session) {
	t.Helper()
	for b := range uint64(rotten) {
		p := make([]byte, 4096)
		if err := s.ReadAt(ctx, p, int64(b)*4096); err != nil {
			t.Fatalf("block %d: %v", b, err)
		}
		if !bytes.Equal(p, noise(b)) {
			t.Fatalf("block %d has other bytes than were written", b)
		}
	}
}

// clean demands a scrub that finds nothing, of a brick that works, also after a
// restart.
func clean(t *testing.T, ctx context.Context, n *Node) {
	t.Helper()
	if c, err := scrub(t, n); err != nil || c.Damaged > 0 {
		t.Fatalf("after healing a scrub found %+v, %v", c, err)
	}
	n.Kill(true)
	if err := n.Start(); err != nil {
		t.Fatalf("the healed brick does not open: %v", err)
	}
	holds(t, ctx, n)
}

// TestPitfallFlippedBitInAnExtent and its siblings: a bit flips on one of three disks, in
// one kind of place each. Whoever reads there gets what was written; a scrub
// finds it and has it healed.
func TestPitfallFlippedBitInAnExtent(t *testing.T) {
	ctx, c := startPatient(t)
	filled(t, ctx, c, true)
	n := c.Nodes[1]
	data, _ := pieces(t, c, n)
	damage(t, n, data)
	found, err := scrub(t, n)
	if err != nil || found.Damaged != int64(len(data)) || found.Repaired != found.Damaged {
		t.Fatalf("%d extents damaged; %+v, %v", len(data), found, err)
	}
	holds(t, ctx, n)
	clean(t, ctx, n)
}

func TestPitfallFlippedBitInAMapPage(t *testing.T) {
	ctx, c := startPatient(t)
	filled(t, ctx, c, true)
	n := c.Nodes[1]
	_, pages := pieces(t, c, n)
	damage(t, n, pages)
	holds(t, ctx, n) // reads the map from its own disk first
	found, err := scrub(t, n)
	if err != nil || found.Repaired != found.Damaged {
		t.Fatalf("%+v, %v", found, err)
	}
	clean(t, ctx, n)
}

func TestPitfallFlippedBitInTheJournal(t *testing.T) {
	t.Run("healed from others", func(t *testing.T) { journalRots(t, false) })
	t.Run("nobody else has it", func(t *testing.T) { journalRots(t, true) })
}

// journalRots damages a record that lives in the journal of a node. alone: the
// same in all journals.
func journalRots(t *testing.T, alone bool) {
	ctx, c := startIdle(t, 1)
	filled(t, ctx, c, false)
	n := c.Nodes[1]
	where := []*Node{n}
	if alone {
		where = c.Nodes
	}
	for _, x := range where {
		name, off := find(t, x, "journal/", noise(20))
		flip(t, x, name, off+100)
	}
	found, err := scrub(t, n)
	if alone {
		if err == nil || n.brick.Broken() == nil || found.Repaired == found.Damaged {
			t.Fatalf("a record that exists nowhere was healed: %+v, %v", found, err)
		}
		return
	}
	if err != nil || found.Damaged != 1 || found.Repaired != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	holds(t, ctx, n)
	clean(t, ctx, n)
	c.Nodes[0].Kill(true) // what was healed counts: the healed one and one more are a majority
	holds(t, ctx, n)
}

func TestPitfallFlippedBitInTheIndex(t *testing.T) {
	ctx, c := startPatient(t)
	filled(t, ctx, c, true)
	n := c.Nodes[1]
	v, _ := c.State.VolumeNamed("v")
	ref := n.brick.ListVolume(v.ID)[0]
	name, off := find(t, n, "index-", ref.Addr[:])
	flip(t, n, name, off+3)
	holds(t, ctx, n)
	found, err := scrub(t, n)
	if err != nil || found.Damaged != 1 || found.Repaired != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	clean(t, ctx, n)
}

// TestPitfallFlippedBitInStableState: promises cannot be healed from others. The
// brick is broken and votes no more, the others go on, and a new brick takes over.
func TestPitfallFlippedBitInStableState(t *testing.T) {
	ctx, c := startPatient(t)
	filled(t, ctx, c, true)
	n := c.Nodes[1]
	keys, err := n.stable.Keys()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(keys, func(k string) bool { return strings.HasPrefix(k, "g/") })
	if err := n.stable.FlipBit(keys[i], 20); err != nil {
		t.Fatal(err)
	}
	found, err := scrub(t, n)
	if err == nil || n.brick.Broken() == nil || found.Damaged != 1 || found.Repaired != 0 {
		t.Fatalf("a damaged promise was taken for good: %+v, %v", found, err)
	}
	holds(t, ctx, c.Nodes[2])
	n.Kill(true)
	if err := n.Start(); err == nil {
		t.Fatal("a brick with a damaged promise opened")
	}
	n.Wipe()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	holds(t, ctx, n)
}

// TestPitfallLyingDisk: a disk acknowledges writes and never does them, and only
// the page cache knows better. A scrub finds that before the cache is gone.
func TestPitfallLyingDisk(t *testing.T) {
	ctx, c := startIdle(t, 1)
	n := c.Nodes[1]
	honest := n.disk.Inject(vfs.Fault{Op: "write", Name: "journal/", Chance: 0.1, Lost: true})
	filled(t, ctx, c, false)
	honest()
	found, err := scrub(t, n)
	if err != nil || found.Damaged == 0 || found.Repaired != found.Damaged {
		t.Fatalf("%+v, %v", found, err)
	}
	n.disk.Evict()
	holds(t, ctx, n)
	clean(t, ctx, n)
}

// TestPitfallSickMemberIsNotInTheWay: the disk of one of three members hangs;
// writes and flushes go on with the others.
func TestPitfallSickMemberIsNotInTheWay(t *testing.T) {
	ctx, c := startPatient(t)
	s, _ := open(t, ctx, c.Nodes[0])
	defer s.Close()
	mustPut(t, s, 0, 1, true)
	release := c.Nodes[1].disk.Hang(vfs.Fault{Op: "sync"})
	defer release()
	began := time.Now()
	for v := range uint64(20) {
		mustPut(t, s, 1, v, true)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Fatalf("20 durable writes took %v beside a disk that hangs", d)
	}
	mustHave(t, ctx, s, 1, 19)
}

func flip(t *testing.T, n *Node, name string, off int64) {
	t.Helper()
	if err := n.disk.FlipBit(name, off); err != nil {
		t.Fatal(err)
	}
}
