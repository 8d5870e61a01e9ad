package failure

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// What was answered survives the death of the exporting process alone, with
// no flush at all: whether another node takes over or the same one returns.
func TestWritersDeath(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M")
	plan := ledger.Plan{Blocks: 4096, Seed: 11}
	state := &ledger.State{Seen: make([]ledger.Seq, plan.Blocks)}

	writer := c.Nodes[0]
	for round := uint32(1); round <= 4; round++ {
		client := writer.Dial(t, "v")
		answered := killUnderLoad(t, plan, round, writer, client)
		next := c.Nodes[int(round)%3]
		if round == 4 {
			next = writer // the same process again instead of another
			if err := next.Start(); err != nil {
				t.Fatal(err)
			}
		}
		next.Takeover(t, "v")
		if err := plan.Verify(next.Dial(t, "v"), state, round, answered); err != nil {
			t.Fatalf("round %d, %d writes answered by %s, read from %s: %v",
				round, answered, writer.Name, next.Name, err)
		}
		t.Logf("round %d: %d unflushed writes answered by %s, all there on %s", round, answered, writer.Name, next.Name)
		if !writer.Alive() {
			if err := writer.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := next.Await(redundancyTimeout, cluster.Redundant("v")); err != nil {
			t.Fatal(err)
		}
		writer = next
	}
}

// killUnderLoad writes without flushing until the process that serves has been
// killed, and returns how many writes it had answered.
func killUnderLoad(t *testing.T, plan ledger.Plan, round uint32, n *cluster.Node, disk ledger.Disk) uint64 {
	t.Helper()
	const before = 3000
	var once sync.Once
	l := ledger.Load{Plan: plan, Disk: disk, Round: round, Depth: 16, Answered: func(k uint64) {
		if k >= before {
			once.Do(func() { go n.Kill() })
		}
	}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := l.Run(ctx)
	if err == nil {
		t.Fatalf("%d writes answered and the killed node still answers", r.Answered)
	}
	<-n.Exited()
	return r.Answered
}

// old and fresh fill blocks so that one look tells who wrote them.
var (
	before = bytes.Repeat([]byte{0xbe}, ledger.BlockSize)
	old    = bytes.Repeat([]byte{0x01}, ledger.BlockSize)
	fresh  = bytes.Repeat([]byte{0xf5}, ledger.BlockSize)
)

// A writer that was frozen while another node took its volume fails when it
// thaws: what it had under way is not readable anywhere, ever.
func TestFencing(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M")
	frozen, next := c.Nodes[0], c.Nodes[1]
	stale := frozen.Dial(t, "v")
	const blocks = 64
	for b := range int64(blocks) {
		if err := stale.WriteAt(before, b*ledger.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := stale.Flush(); err != nil {
		t.Fatal(err)
	}

	if err := frozen.Pause(); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, blocks+1)
	for b := range int64(blocks) {
		stale.Start(nbdclient.CmdWrite, 0, b*ledger.BlockSize, len(old), old, func(err error) { results <- err })
	}
	stale.Start(nbdclient.CmdFlush, 0, 0, 0, nil, func(err error) { results <- err })
	next.Takeover(t, "v")
	client := next.Dial(t, "v")
	wantBlocks(t, client, blocks, "right after the takeover", func(int64) byte { return before[0] })
	for b := int64(0); b < blocks; b += 2 {
		if err := client.WriteAt(fresh, b*ledger.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	want := func(b int64) byte {
		if b%2 == 0 {
			return fresh[0]
		}
		return before[0]
	}

	if err := frozen.Resume(); err != nil {
		t.Fatal(err)
	}
	// A read asked for now may fail, but not show the past.
	p := make([]byte, ledger.BlockSize)
	if err := stale.ReadAt(p, 0); err == nil && p[0] != fresh[0] {
		t.Errorf("the fenced node served a stale read: %#x", p[0])
	}
	deadline := time.After(30 * time.Second)
	for range cap(results) {
		select {
		case err := <-results:
			if err == nil {
				t.Error("the fenced node answered an operation with success")
			}
		case <-deadline:
			t.Fatal("operations on the fenced node do not end")
		}
	}
	wantBlocks(t, client, blocks, "after the old writer thawed", want)
	if fencedAgain, err := nbdclient.Dial(frozen.Info.NBD, "v"); err == nil {
		t.Error("the fenced node exports the volume while another holds it")
		fencedAgain.Close()
	}

	// Not even after everything has been stopped and read back from the disks.
	client.Close()
	restart(t, c)
	frozen.Takeover(t, "v")
	wantBlocks(t, frozen.Dial(t, "v"), blocks, "after a restart of everything", want)
}

func wantBlocks(t *testing.T, client *nbdclient.Client, n int64, when string, want func(b int64) byte) {
	t.Helper()
	p := make([]byte, n*ledger.BlockSize)
	if err := client.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for b := range n {
		got := p[b*ledger.BlockSize : (b+1)*ledger.BlockSize]
		if !bytes.Equal(got, bytes.Repeat([]byte{want(b)}, ledger.BlockSize)) {
			t.Fatalf("block %d %s begins with %#x, want %#x", b, when, got[0], want(b))
		}
	}
}

func restart(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	startAll(t, c.Nodes)
}

// startAll starts the nodes in the given order, without waiting in between,
// and waits until all of them serve.
func startAll(t *testing.T, nodes []*cluster.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cluster.StartTimeout)
	defer cancel()
	for _, n := range nodes {
		if err := n.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nodes[0].Await(cluster.StartTimeout, cluster.Members(len(nodes))); err != nil {
		t.Fatal(err)
	}
}
