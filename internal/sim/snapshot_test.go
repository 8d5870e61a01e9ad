package sim

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// exports are the names that a node lists.
func exports(t *testing.T, ctx context.Context, n *Node) (names []string) {
	t.Helper()
	list, err := n.Manager.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name)
		if e.ReadOnly != (e.Name != "v") {
			t.Errorf("%s is listed as read only: %v", e.Name, e.ReadOnly)
		}
	}
	return names
}

// awaitExports waits until a node lists exactly these.
func awaitExports(t *testing.T, ctx context.Context, n *Node, want ...string) {
	t.Helper()
	for end := time.Now().Add(patience); ; pause(ctx, 10*time.Millisecond) {
		got := exports(t, ctx, n)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("node %d lists %q, not %q", n.ID[0], got, want)
		}
	}
}

func openSnapshot(t *testing.T, ctx context.Context, n *Node, name string) (target.Session, <-chan struct{}) {
	t.Helper()
	s, gone, err := n.Manager.Open(ctx, name, "test")
	if err != nil {
		t.Fatalf("%s at node %d: %v", name, n.ID[0], err)
	}
	return s, gone
}

// TestSnapshotsOfAPool makes snapshots through nodes that do not hold the
// volume, with a catalog that is out of reach or full in between, and a holder
// that dies before it could tell the catalog.
func TestSnapshotsOfAPool(t *testing.T) {
	t.Parallel()
	eachSeed(t, 2, snapshots)
}

func snapshots(t *testing.T, seed uint64) {
	ctx, c := start(t, seed)
	a, b, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	s, _ := open(t, ctx, a)
	mustPut(t, s, 0, 10, false)
	if _, err := b.Manager.CreateSnapshot(ctx, "v", "s1"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, 0, 20, false)
	if got := exports(t, ctx, third); !slices.Equal(got, []string{"v", "v@s1"}) {
		t.Fatalf("listed: %q", got)
	}
	if e, err := third.Manager.Stat(ctx, "v@s1"); err != nil || !e.ReadOnly || e.Size != 1<<20 {
		t.Fatalf("%+v, %v", e, err)
	}
	old, gone := openSnapshot(t, ctx, a, "v@s1")
	mustHave(t, ctx, old, 0, 10)
	mustHave(t, ctx, s, 0, 20)
	if err := ended(t, submit(old, 0, 30, false)); !fault.Is(err, fault.ReadOnly) {
		t.Errorf("a write to a snapshot: %v", err)
	}
	for name, kind := range map[string]fault.Kind{"v@s1": fault.Busy, "v@s2": fault.NotFound, "w@s1": fault.NotFound, "v@": fault.NotFound} {
		if _, _, err := b.Manager.Open(ctx, name, "test"); !fault.Is(err, kind) {
			t.Errorf("%s at another node: %v", name, err)
		}
	}

	c.Refuse(fault.New(fault.NoSpace, "test", "", nil))
	if _, err := b.Manager.CreateSnapshot(ctx, "v", "full"); !fault.Is(err, fault.NoSpace) {
		t.Fatalf("a catalog without room: %v", err)
	}
	if list, err := third.Manager.Snapshots(ctx, "v"); err != nil || len(list) != 1 || list[0].Name != "s1" {
		t.Fatalf("after it was taken back: %v, %v", list, err)
	}
	c.Refuse(fault.New(fault.Unavailable, "test", "", nil))
	if _, err := b.Manager.CreateSnapshot(ctx, "v", "s2"); !fault.Is(err, fault.Indeterminate) {
		t.Fatalf("a catalog out of reach: %v", err)
	}
	if got := exports(t, ctx, third); !slices.Equal(got, []string{"v", "v@s1"}) {
		t.Fatalf("listed: %q", got)
	}
	a.Kill(seed%2 == 0)
	<-gone
	c.Refuse(nil)
	s, _ = open(t, ctx, b)
	awaitExports(t, ctx, third, "v", "v@s1", "v@s2")
	old, gone = openSnapshot(t, ctx, b, "v@s1")
	mustHave(t, ctx, old, 0, 10)
	later, _ := openSnapshot(t, ctx, b, "v@s2")
	mustHave(t, ctx, later, 0, 20)
	mustHave(t, ctx, s, 0, 20)

	if err := third.Manager.DeleteSnapshot(ctx, "v", "s1"); err != nil {
		t.Fatal(err)
	}
	<-gone
	if err := old.ReadAt(ctx, make([]byte, 4096), 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("a deleted snapshot: %v", err)
	}
	mustHave(t, ctx, later, 0, 20)
	if got := exports(t, ctx, b); !slices.Equal(got, []string{"v", "v@s2"}) {
		t.Fatalf("listed: %q", got)
	}
	for _, x := range []target.Session{s, old, later} {
		x.Close()
	}
	// Nobody uses it: another node takes it, for a snapshot alone.
	later, _ = openSnapshot(t, ctx, third, "v@s2")
	mustHave(t, ctx, later, 0, 20)
	if _, err := b.Manager.CreateSnapshot(ctx, "v", "s2"); !fault.Is(err, fault.Exists) {
		t.Errorf("the same name again: %v", err)
	}
}
