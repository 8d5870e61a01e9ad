// Package snapshot has the rig that makes snapshots of a volume while it is
// written to and nodes die.
package snapshot

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

// taken is a snapshot with what may be in it: at least what was answered before
// it was asked for, at most what was asked for when it was answered.
type taken struct {
	name        string
	least, most uint64
}

type rig struct {
	t     *testing.T
	c     *cluster.Cluster
	w     writer
	taken []taken
}

// take makes a snapshot through node n, whoever holds the volume.
func (r *rig) take(n *cluster.Node, name string) {
	r.t.Helper()
	s := taken{name: name, least: r.w.answered.Load()}
	began := time.Now()
	if _, err := n.Do("volume", "snapshot", "create", "v", name); err != nil {
		r.t.Fatal(err)
	}
	s.most = r.w.issued.Load()
	r.taken = append(r.taken, s)
	r.t.Logf("%s made through %s in %v, with %d to %d operations", name, n.Name, time.Since(began).Round(time.Millisecond), s.least, s.most)
}

// verify reads every snapshot through node n, and the list of every node that
// runs.
func (r *rig) verify(n *cluster.Node) {
	r.t.Helper()
	for _, s := range r.taken {
		d := n.Dial(r.t, "v@"+s.name)
		at, err := match(readAll(r.t, d), s.least, s.most)
		if err != nil {
			r.t.Fatalf("snapshot %s: %v", s.name, err)
		}
		r.t.Logf("%s holds the first %d operations", s.name, at)
		if d.Flags&2 == 0 {
			r.t.Errorf("export v@%s is not announced as read only", s.name)
		}
		if err := d.WriteAt(make([]byte, blockSize), 0); !errors.Is(err, syscall.EPERM) {
			r.t.Errorf("a write to v@%s: %v", s.name, err)
		}
		d.Close()
	}
	for _, n := range r.c.Nodes {
		if n.Alive() {
			r.listed(n)
		}
	}
}

// listed compares the list of one node, which may lag a little.
func (r *rig) listed(n *cluster.Node) {
	r.t.Helper()
	var want []string
	for _, s := range r.taken {
		want = append(want, s.name)
	}
	d := n.Control()
	defer d.Close()
	var got []string
	_, err := n.Await(20*time.Second, func(*control.Status) error {
		list, err := d.Snapshots(r.t.Context(), "v")
		got = nil
		for _, s := range list {
			got = append(got, s.Name)
		}
		if err == nil && !slices.Equal(got, want) {
			err = errors.New("the list differs")
		}
		return err
	})
	if err != nil {
		r.t.Fatalf("%s lists %q, not %q: %v", n.Name, got, want, err)
	}
}

// killed ends the holder under load, and has another node go on.
func (r *rig) killed(holder, next *cluster.Node) {
	r.t.Helper()
	if err := holder.Kill(); err != nil {
		r.t.Fatal(err)
	}
	if r.w.done.Wait(); r.w.err == nil {
		r.t.Fatal("the holder is dead and still answers")
	}
	next.Takeover(r.t, "v")
	d := next.Dial(r.t, "v")
	if _, err := match(readAll(r.t, d), r.w.answered.Load(), r.w.issued.Load()); err != nil {
		r.t.Fatalf("the volume after the takeover: %v", err)
	}
	r.w.start(d)
}

// Snapshots are made while a volume is written to, through any node, and the
// holder dies between them and in the middle of one. Each holds exactly a first
// part of the operations, with everything that was answered before it. When they are
// deleted their space comes back.
func TestSnapshotsUnderLoad(t *testing.T) {
	c := cluster.New(t, 3)
	n1, n2, n3 := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.CreateVolume(t, n1, "v", "16M")
	if _, err := n2.Await(20*time.Second, cluster.Redundant("v")); err != nil {
		t.Fatal(err) // the others hear of it a moment later
	}
	r := &rig{t: t, c: c}
	r.take(n2, "empty") // nobody holds the volume
	r.w.start(n1.Dial(t, "v"))
	r.w.more(t, 500)
	r.take(n1, "a")
	r.w.more(t, 500)
	r.take(n2, "b")
	r.take(n3, "c")
	r.w.more(t, 500)
	r.verify(n1)

	r.killed(n1, n2)
	r.w.more(t, 500)
	r.take(n3, "d")
	if err := n1.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := n2.Await(60*time.Second, cluster.Redundant("v")); err != nil {
		t.Fatal(err)
	}
	r.verify(n2)

	// The holder dies in the middle: the snapshot is there or it is not.
	s := taken{name: "torn", least: r.w.answered.Load()}
	asked := make(chan error, 1)
	ask := n3.Control()
	defer ask.Close()
	go func() {
		_, err := ask.CreateSnapshot(t.Context(), "v", s.name)
		asked <- err
	}()
	r.w.more(t, 60)
	r.killed(n2, n3)
	err := <-asked
	s.most = r.w.issued.Load()
	list, lerr := ask.Snapshots(t.Context(), "v")
	if lerr != nil {
		t.Fatal(lerr)
	}
	there := slices.ContainsFunc(list, func(x control.Snapshot) bool { return x.Name == s.name })
	t.Logf("the one that was being made when its holder died is there: %v (%v)", there, err)
	if there {
		r.taken = append(r.taken, s)
	} else if err == nil {
		t.Error("a snapshot was answered for and is not there")
	}
	r.w.more(t, 500)
	r.verify(n3)
	if err := n2.Start(); err != nil {
		t.Fatal(err)
	}
	r.verify(n3)
	r.w.end(t)
	r.spaceComesBack(n3)
}

// spaceComesBack deletes all snapshots and looks at what gabion status says.
func (r *rig) spaceComesBack(n *cluster.Node) {
	r.t.Helper()
	s, err := n.Await(60*time.Second, cluster.Redundant("v"))
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := cluster.Volume(s, "v")
	if err != nil {
		r.t.Fatal(err)
	}
	before := cluster.Used(s)
	if v.Snapshots != len(r.taken) || v.SnapshotBytes <= 0 {
		r.t.Errorf("%d snapshots are shown that keep %d bytes", v.Snapshots, v.SnapshotBytes)
	}
	for i, x := range r.taken {
		via := r.c.Nodes[i%3]
		if _, err := via.Do("volume", "snapshot", "delete", "v", x.name); err != nil {
			r.t.Fatal(err)
		}
	}
	r.taken = nil
	r.verify(n)
	d := n.Dial(r.t, "v")
	if err := d.Trim(0, blocks*blockSize); err != nil {
		r.t.Fatal(err)
	}
	// A snapshot folds the log at once, which else happens when it is idle.
	r.take(n, "last")
	if _, err := n.Do("volume", "snapshot", "delete", "v", "last"); err != nil {
		r.t.Fatal(err)
	}
	s, err = n.Await(30*time.Second, func(s *control.Status) error {
		w, err := cluster.Volume(s, "v")
		if err == nil && (w.UsedBytes > 64<<10 || w.Snapshots != 0 || w.SnapshotBytes != 0) {
			err = errors.New("space is still kept")
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	w, _ := cluster.Volume(s, "v")
	r.t.Logf("the volume had %d bytes, snapshots kept %d of them, bricks used %d; now %d, and %d", v.UsedBytes, v.SnapshotBytes, before, w.UsedBytes, cluster.Used(s))
}
