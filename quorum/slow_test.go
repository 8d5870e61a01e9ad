package quorum

import (
	"math/rand"
	"testing"
	"time"

	dhtbrick "github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// brickTrio is a group on three real bricks over memory disks, held by the first node.
func brickTrio(t *testing.T) (nodes []*brickNode, h *testHolder) {
	net := link.NewMemory(1)
	cfg := Config{Version: 1}
	for i := range 3 {
		n := &brickNode{i: i, net: net, id: ident.NodeID{byte(i + 1)}, disk: vfs.NewMemSeed(1), stable: dhtbrick.NewMemStable()}
		n.start(t)
		nodes = append(nodes, n)
		cfg.Members = append(cfg.Members, Member{Node: n.id, Brick: n.brick.ID()})
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			n.crash(rand.New(rand.NewSource(1)), false)
		}
	})
	for _, n := range nodes {
		if err := n.acc.Create(testGroup, cfg, []byte("0")); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes[1:] {
		eventually(t, "a connection", func() bool { return nodes[0].link.Connected(n.id) })
	}
	h = &testHolder{}
	n := nodes[0]
	c := (&testNode{p: &testPool{}, link: n.link, acc: n.acc, id: n.id, boot: n.boot}).config(h)
	for _, m := range cfg.Members {
		c.Seeds = append(c.Seeds, m.Node)
	}
	var err error
	if h.Proposer, h.rec, err = Open(within(t), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return nodes, h
}

// slowMax is how long writes may take while one disk does nothing at all.
const slowMax = 3 * time.Second

// hang makes every write and sync of a disk wait until release is called.
func hang(n *brickNode) (release func()) {
	gate := make(chan struct{})
	n.disk.SetHook(func(op, name string) error {
		<-gate
		return nil
	})
	return func() { n.disk.SetHook(nil); close(gate) }
}

// The disk of one member does nothing: the holder's own, or another's. Writes and
// flushes go on with the other two at once, from several goroutines, and the member comes in step
// when its disk works again.
func TestHazardHungDiskIsOneVoteLess(t *testing.T) {
	for i, name := range []string{"holder", "member"} {
		t.Run(name, func(t *testing.T) {
			nodes, h := brickTrio(t)
			h.flush(t, h.put(t, "before"))
			release := hang(nodes[i])
			began := time.Now()
			for range 50 {
				h.flush(t, h.put(t, "while it hangs"))
			}
			if took := time.Since(began); took > slowMax {
				t.Errorf("50 flushes took %v", took)
			}
			last := h.Durable()
			if st := h.Status()[i]; st.Durable >= last {
				t.Errorf("the member with the hung disk has everything: %+v", st)
			}
			release()
			eventually(t, "the member in step", func() bool { return h.Status()[i].Durable >= last })
			h.flush(t, h.put(t, "after"))
		})
	}
}

// A disk a hundred times slower than the others is not waited for.
func TestSlowDiskIsNotWaitedFor(t *testing.T) {
	const pause = 100 * time.Millisecond
	nodes, h := brickTrio(t)
	h.flush(t, h.put(t, "before"))
	nodes[0].disk.SetHook(func(op, name string) error {
		<-time.After(pause) // what the disk takes
		return nil
	})
	began := time.Now()
	for range 50 {
		h.flush(t, h.put(t, "slow"))
	}
	if took := time.Since(began); took > 50*pause/2 {
		t.Errorf("50 flushes took %v, at the pace of the slow disk", took)
	}
	nodes[0].disk.SetHook(nil)
	last := h.Durable()
	eventually(t, "the member in step", func() bool { return h.Status()[0].Durable >= last })
}
