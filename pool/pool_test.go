package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay/kouncil"
	"github.com/gabion-storage/gabion/quorum"
)

// run gives f a pool of n nodes that all know each other.
func run(t *testing.T, n int, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, net: link.NewMemory(1), rng: rand.New(rand.NewSource(1))}
		defer func() {
			for _, nd := range r.nodes {
				nd.end()
			}
		}()
		for i := range n {
			nd := r.add()
			if i > 0 {
				nd.join()
			}
		}
		r.settle(n)
		f(t, r)
	})
}

func TestPoolOfOneNode(t *testing.T) {
	run(t, 1, func(t *testing.T, r *rig) {
		nd := r.nodes[0]
		if v := nd.pool.State().Version; v != 2 {
			t.Fatalf("born at version %d", v)
		}
		if err := nd.create("v"); err != nil {
			t.Fatal(err)
		}
		if err := nd.create("v"); !fault.Is(err, fault.Exists) {
			t.Fatal(err)
		}
		if err := nd.create("V"); !fault.Is(err, fault.Invalid) {
			t.Fatal(err)
		}
		if err := nd.pool.Check(CreateVolume(nd.vol("v"))); !fault.Is(err, fault.Exists) {
			t.Fatal(err)
		}
		nd.powerCut()
		nd.start(true) // as a node does whose birth may not have ended
		if _, ok := nd.pool.State().VolumeNamed("v"); !ok {
			t.Fatal("the saved state lacks what was acknowledged")
		}
		v, _ := nd.pool.State().VolumeNamed("v")
		if err := nd.submit(ResizeVolume(v.ID, 2<<30)); err != nil {
			t.Fatal(err)
		}
		if err := nd.submit(DeleteVolume(v.ID)); err != nil || !nd.pool.State().IsDeleted(v.ID) {
			t.Fatal(err)
		}
		nd.powerCut()
		nd.file = memFile{} // the file is lost, the block is not
		nd.start(true)
		r.until("recovery from the block", func() bool { return nd.pool.State().IsDeleted(v.ID) })
	})
}

func TestInitRefuses(t *testing.T) {
	run(t, 1, func(t *testing.T, r *rig) {
		nd := r.nodes[0]
		if err := nd.acceptors.Drop(nd.pool.group); err != nil {
			t.Fatal(err)
		}
		none := nd.record()
		none.Bricks = nil
		for _, c := range []struct {
			name string
			rec  NodeRecord
		}{{"Test", nd.record()}, {"test", none}, {"test", NodeRecord{}}} {
			if err := nd.pool.Init(context.Background(), c.name, c.rec); !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
		}
	})
}

func TestPoolGrows(t *testing.T) {
	run(t, 1, func(t *testing.T, r *rig) {
		for n := 2; n <= 6; n++ {
			r.add().join()
			r.settle(n)
		}
		voters := map[int]bool{}
		for _, nd := range r.nodes {
			_, ok := nd.acceptors.Group(nd.pool.group)
			voters[len(nd.pool.Voters())] = true
			if !ok && len(nd.pool.Voters()) == 0 {
				t.Fatal("a node knows no voter")
			}
		}
		r.agree()
	})
}

func TestSubmitFromEveryNode(t *testing.T) {
	run(t, 5, func(t *testing.T, r *rig) {
		for i, nd := range r.nodes {
			if err := nd.create(fmt.Sprint("v", i)); err != nil {
				t.Fatal(err)
			}
			if _, ok := nd.pool.State().VolumeNamed(fmt.Sprint("v", i)); !ok {
				t.Fatal("a node does not see its own change")
			}
			if err := nd.create("v0"); !fault.Is(err, fault.Exists) {
				t.Fatal(err)
			}
		}
		r.agree()
		if n := len(r.nodes[4].pool.State().Volumes); n != 5 {
			t.Fatalf("%d volumes", n)
		}
	})
}

func TestOneOfManyCreatesWins(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		for round := range 5 {
			name := fmt.Sprint("v", round)
			errs := make([]error, 12)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { errs[i] = r.nodes[i%3].create(name) })
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				switch {
				case err == nil:
					won++
				case !fault.Is(err, fault.Exists):
					t.Fatal(err)
				}
			}
			if won != 1 {
				t.Fatalf("%d creates of one name succeeded", won)
			}
		}
		r.agree()
	})
}

func TestRetriedCommandIsAppliedOnce(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		c := CreateVolume(r.nodes[0].vol("v"))
		before := r.nodes[0].pool.State().Version
		var wg sync.WaitGroup
		for i := range 9 {
			wg.Go(func() {
				if err := r.nodes[i%3].submit(c); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		r.agree()
		if v := r.nodes[0].pool.State().Version; v != before+1 {
			t.Fatalf("version %d after %d", v, before)
		}
	})
}

func TestLeaderCrash(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		old := r.leader()
		start := time.Now()
		old.end()
		for i, nd := range r.live() {
			if err := nd.create(fmt.Sprint("v", i)); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("a new leader after %v", time.Since(start))
		if took := time.Since(start); took > 8*time.Second {
			t.Fatalf("no leader for %v", took)
		}
		old.start(false)
		r.agree()
		if err := old.create("w"); err != nil {
			t.Fatal(err)
		}
		r.agree()
	})
}

// A leader that is cut off acknowledges nothing that the others do not have.
func TestLeaderIsCutOff(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		old := r.leader()
		r.net.Isolate(old.id)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		lost := CreateVolume(old.vol("lost"))
		err := old.pool.Submit(ctx, lost)
		if !fault.Is(err, fault.Indeterminate) && !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		for _, nd := range r.nodes {
			if nd != old {
				if err := nd.create("v" + nd.id.Short()); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.net.Rejoin(old.id)
		r.agree()
		if err := old.submit(lost); err != nil {
			t.Fatalf("the same command again: %v", err)
		}
		r.agree()
		if n := len(old.pool.State().Volumes); n != 3 {
			t.Fatalf("%d volumes", n)
		}
	})
}

func TestNoMajority(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		r.nodes[1].end()
		r.nodes[2].end()
		start := time.Now()
		err := r.nodes[0].create("v")
		if !fault.Is(err, fault.Indeterminate) && !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 21*time.Second {
			t.Fatalf("took %v", took)
		}
		r.nodes[2].start(false)
		if err := r.nodes[2].create("w"); err != nil {
			t.Fatalf("with the majority back: %v", err)
		}
	})
}

// Power fails everywhere; nodes come back one by one, in every order.
func TestPitfallColdStartInAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			run(t, 3, func(t *testing.T, r *rig) {
				for i := range 3 {
					if err := r.nodes[i].create(fmt.Sprint("v", i)); err != nil {
						t.Fatal(err)
					}
				}
				r.agree()
				for _, nd := range r.nodes {
					nd.powerCut()
				}
				for k, i := range order {
					r.nodes[i].start(false)
					if n := len(r.nodes[i].pool.State().Nodes); n != 3 {
						t.Fatalf("started alone it knows %d nodes", n)
					}
					if k == 1 {
						if err := r.nodes[i].create("w"); err != nil {
							t.Fatalf("two of three: %v", err)
						}
					}
					time.Sleep(3 * time.Second)
				}
				r.agree()
				for _, nd := range r.nodes {
					if len(nd.pool.State().Volumes) != 4 {
						t.Fatalf("%d volumes", len(nd.pool.State().Volumes))
					}
				}
			})
		})
	}
}

// Of five voters two died, and a third was away while the other two joined: it has the lowest id,
// so it is to lead, and knows none of those who are there.
func TestNodeThatWasAwayMeetsStrangers(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		slices.SortFunc(r.nodes, func(a, b *rigNode) int { return a.id.Compare(b.id) })
		r.nodes[0].end()
		for range 2 {
			nd := r.add()
			nd.join()
		}
		r.settle(5)
		r.nodes[1].end()
		r.nodes[2].end()
		r.nodes[0].start(false)
		if l := r.leader(); l != r.nodes[0] {
			t.Fatalf("%v leads; the test wants the one that was away to have to", l.id.Short())
		}
		if err := r.nodes[4].create("v"); err != nil {
			t.Fatal(err)
		}
		r.agree()
	})
}

func TestLogIsCheckpointed(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		v := r.nodes[0].vol("v")
		if err := r.nodes[0].submit(CreateVolume(v)); err != nil {
			t.Fatal(err)
		}
		for i := range 3 * CheckpointEvery {
			if err := r.nodes[i%3].submit(ResizeVolume(v.ID, 1<<30+int64(i)*SizeUnit)); err != nil {
				t.Fatal(err)
			}
		}
		r.until("short logs", func() bool {
			for _, nd := range r.nodes {
				g, ok := nd.acceptors.Group(nd.pool.group)
				if !ok || g.UpTo == 0 || g.Last-g.UpTo > 2*CheckpointEvery {
					return false
				}
			}
			return true
		})
		want := EncodeState(r.nodes[0].pool.State())
		for _, nd := range r.nodes {
			nd.powerCut()
			nd.file = memFile{}
		}
		for _, nd := range r.nodes {
			nd.start(false)
		}
		r.until("recovery from the checkpoint", func() bool {
			for _, nd := range r.nodes {
				if !bytes.Equal(EncodeState(nd.pool.State()), want) {
					return false
				}
			}
			return true
		})
	})
}

// Without events the pool sends nothing: what goes over the network in a minute is the
// overlay's pings alone.
func TestIdlePoolIsSilent(t *testing.T) {
	run(t, 3, func(t *testing.T, r *rig) {
		if err := r.nodes[1].create("v"); err != nil {
			t.Fatal(err)
		}
		r.agree()
		time.Sleep(5 * time.Second)
		sent := func() (n uint64) {
			for _, nd := range r.nodes {
				n += nd.trans.Stats().Sent
			}
			return n
		}
		before := sent()
		time.Sleep(time.Minute)
		pings := uint64(3 * 2 * 2 * 120) // ping and pong, each pair, twice a second
		if n := sent() - before; n > pings+12 {
			t.Fatalf("%d messages in an idle minute, %d of them pings", n, pings)
		}
	})
}

func TestSavedStateOfAnotherPool(t *testing.T) {
	s, err := NewState(ident.PoolID{9}, "other")
	if err != nil {
		t.Fatal(err)
	}
	net := link.NewMemory(1)
	for _, c := range []struct {
		b    []byte
		want fault.Kind
	}{{pack(snapshot{State: s}), fault.Denied}, {[]byte("junk"), fault.Corrupt}, {pack(snapshot{}), fault.Corrupt}} {
		tr := net.Node(ident.NodeID{1})
		view := kouncil.New(kouncil.Config{Transport: tr})
		_, err := New(Config{Pool: poolID, Transport: tr, View: view, File: &memFile{b: c.b}})
		if !fault.Is(err, c.want) {
			t.Fatalf("%v; want %v", err, c.want)
		}
		tr.Close()
	}
}

func TestWantedVoters(t *testing.T) {
	for nodes, want := range []int{0, 1, 2, 3, 3, 5, 5, 5} {
		if got := wantedVoters(nodes); got != want {
			t.Errorf("%d nodes: %d voters, not %d", nodes, got, want)
		}
	}
}

func TestNextVoterSpreadsOverZones(t *testing.T) {
	s, _ := NewState(poolID, "p")
	for i := 1; i <= 6; i++ {
		n := testNode(i)
		n.Labels = map[string]string{"zone": fmt.Sprint("z", (i+1)/2)} // 1 2 | 3 4 | 5 6
		must(t, s, Command{PutNode: &n})
	}
	cfg := quorum.Config{Version: 1, Members: []quorum.Member{testMember(1)}}
	alive := func(id ident.NodeID) bool { return id != ident.NodeID{3} }
	for _, want := range []int{4, 5, 2, 6} {
		m, ok := nextVoter(s, cfg, alive)
		if !ok || m.in != testMember(want) || !m.out.Node.IsZero() {
			t.Fatalf("%v, not node %d", m, want)
		}
		cfg.Members = append(cfg.Members, m.in)
	}
	if m, ok := nextVoter(s, cfg, alive); ok {
		t.Fatalf("a sixth voter: %v", m)
	}
}

func TestWantedLanesOnlyAfterChanges(t *testing.T) {
	s := testState(t)
	l := wantedLanes(s, 16)
	if l == nil || len(l.Lanes.Lanes) != 16 || len(l.Lanes.Lanes[0]) != 2 || l.Base != s.Version {
		t.Fatal(l)
	}
	must(t, s, Command{SetLanes: l})
	if wantedLanes(s, 99) != nil {
		t.Fatal("planned again though nothing changed")
	}
	n := testNode(3)
	must(t, s, Command{PutNode: &n})
	if l = wantedLanes(s, 99); l == nil || len(l.Lanes.Lanes) != 16 || len(l.Lanes.Lanes[0]) != 3 {
		t.Fatal(l)
	}
	empty, _ := NewState(poolID, "p")
	if wantedLanes(empty, 16) != nil {
		t.Fatal("lanes without bricks")
	}
}
