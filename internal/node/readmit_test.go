package node

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/exporter"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/pki"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
)

// A brick breaks while the node has it open, its cause goes away, and an operator
// readmits it: it votes and stores again, without a restart. That must not need the
// pool's agreement: of a pool with one brick the votes are on what broke.
func TestBrokenBrickIsReadmitted(t *testing.T) {
	t.Run("the only one", func(t *testing.T) { testReadmit(t, "disk") })
	t.Run("one of two", func(t *testing.T) { testReadmit(t, "other", "disk") })
}

// testReadmit has a node with these bricks, the pool's votes on the first and a volume's
// on the last, which breaks.
func testReadmit(t *testing.T, bricks ...string) {
	dirs := t.TempDir()
	disks := map[string]*vfs.Mem{}
	paths := []string{}
	for i, name := range bricks {
		paths = append(paths, filepath.Join(dirs, name))
		disks[paths[i]] = vfs.NewMem()
		disks[paths[i]].SetCapacity(int64(i+1) << 30) // the largest gets new votes
	}
	last := len(paths) - 1
	path, m := paths[last], disks[paths[last]]
	n := &Node{segment: 1 << 20, poolID: ident.PoolID{1}, id: &pki.Identity{Node: ident.NodeID{1}}, name: "n1",
		cfg: Config{Log: slog.New(slog.DiscardHandler)}, exp: exporter.New(exporter.Sources{}),
		newFS: func(path string) (vfs.FS, error) { return disks[path], nil }}
	var err error
	if n.dir, err = openDir(filepath.Join(dirs, "node")); err != nil {
		t.Fatal(err)
	}
	defer n.dir.close()
	n.dir.mem.Bricks = paths
	if err := n.openBricks(); err != nil {
		t.Fatal(err)
	}
	l := link.NewMemory(1).Node(n.id.Node)
	core, err := NewCore(CoreConfig{Pool: n.poolID, PoolName: "p", Name: "n1", Addr: "10.0.0.1:1", Boot: 1, First: true,
		Transport: l, Bricks: n.brickList(), BrickInfos: n.brickInfos, StateFile: &memoryFile{}, Log: n.cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	n.Core = core
	n.core.Store(core)
	l.Start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer func() {
		core.Close()
		for _, b := range n.openedBricks() {
			_ = b.b.Close()
		}
		l.Close()
	}()
	if err := core.Start(ctx); err != nil {
		t.Fatal(err)
	}
	d := pool.Volume{ID: ident.NewVolume(), Name: "v", Size: 1 << 20, BlockSize: 4096, Replicas: 1, WriteCache: "quorum", Created: 1}
	if err := core.Birth(ctx, d); err != nil {
		t.Fatal(err)
	}
	old := n.openedBricks()[last].b
	ref := overlay.BrickRef{Node: n.id.Node, Brick: old.ID()}
	put := func(text string) error {
		return core.Extents.PutTo(ctx, ref, d.ID, 1, []dht.Extent{{Addr: sha256.Sum256([]byte(text)), Number: 1, Data: []byte(text)}})
	}
	if err := put("before"); err != nil {
		t.Fatal(err)
	}

	mend := m.Inject(vfs.Fault{Op: "sync", Name: "extents/", Err: vfs.EIO})
	if err := put("never"); err == nil || old.Broken() == nil {
		t.Fatal("the disk fails and nobody notices")
	}
	counts := func(on bool) func() bool {
		return func() bool {
			r, ok := core.Pool.State().Node(core.Self)
			i := slices.IndexFunc(r.Bricks, func(b overlay.BrickInfo) bool { return b.ID == old.ID() })
			return ok && len(r.Bricks) == len(paths) && i >= 0 && r.Bricks[i].Leaving != on
		}
	}
	until(t, "the brick is aside", func() bool { return len(n.asideList()) == 1 })
	if last > 0 {
		until(t, "the pool moves things off it", counts(false))
	}
	mend()
	if err := n.ReadmitBrick(ctx, path); err != nil {
		t.Fatal(err)
	}
	now := n.openedBricks()
	if len(now) != len(paths) || len(n.asideList()) > 0 {
		t.Fatalf("in use are %v, aside %v", now, n.asideList())
	}
	b := now[last].b // what comes is the last in the list
	if b == old || b.ID() != old.ID() || b.Broken() != nil {
		t.Fatalf("in use is %v: %v", b.ID(), b.Broken())
	}
	if err := put("after"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"before", "after"} {
		p := make([]byte, len(text))
		if err := b.ReadExtent(sha256.Sum256([]byte(text)), p, 0); err != nil || string(p) != text {
			t.Errorf("%q: %v", p, err)
		}
	}
	if _, err := core.Manager.Attach(ctx, "v", false); err != nil {
		t.Errorf("its votes do not count: %v", err)
	}
	until(t, "the pool counts on it", counts(true))
	if core.ScrubOf(old.ID()) == nil {
		t.Error("nobody verifies it")
	}
	if err := n.ReadmitBrick(ctx, path); !fault.Is(err, fault.Conflict) {
		t.Errorf("a brick that works was readmitted: %v", err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}
