package quorum

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum/quorumtest"
)

func newEmpty() (*quorumtest.Journal, *quorumtest.Stable) {
	return quorumtest.NewJournal(), quorumtest.NewStable()
}

// TestGrowthUnderLoad goes from one voter to three while entries are proposed,
// flushed and checkpointed.
func TestGrowthUnderLoad(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(1)
	h := p.nodes[0].open()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Add(1)
	go func() {
		defer load.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			slot := h.put(t, fmt.Sprint(i))
			if i%10 == 0 {
				h.flush(t, slot)
			}
			if i%100 == 99 {
				if _, err := h.Checkpoint(h.Durable(), []byte("x")); err != nil {
					panic(err)
				}
			}
		}
	}()
	for _, n := range p.nodes[1:] {
		p.reach(p.nodes[0], n)
		if err := h.Join(ctx, n.member()); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Join(ctx, p.nodes[2].member()); err != nil { // again
		t.Fatal(err)
	}
	close(stop)
	load.Wait()
	if c := h.Members(); c.Version != 3 || c.Voters() != 3 {
		t.Fatalf("members %+v", c)
	}
	last := h.put(t, "last")
	h.flush(t, last)
	h.Close()
	p.nodes[0].crash(true, 0)
	h2 := p.nodes[2].open() // by nodes 1 and 2 alone
	es := h2.rec.Entries
	if string(es[len(es)-2].Body) != "last" || h2.rec.Config.Version != 3 {
		t.Fatalf("recovered up to %q, configuration %d", es[len(es)-2].Body, h2.rec.Config.Version)
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(1)
	h := p.nodes[0].open()
	p.nodes[1].crash(false, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	wantKind(t, h.Join(ctx, p.nodes[1].member()), fault.Timeout)
	if n := len(h.Status()); n != 1 {
		t.Fatalf("%d members are fed", n)
	}
	h.flush(t, h.put(t, "a"))
	m := p.nodes[1].member()
	m.Role = Learner
	wantKind(t, h.Join(context.Background(), m), fault.Invalid)
	m.Role = Witness
	wantKind(t, p.nodes[0].acc.Create(testGroup, Config{Version: 1, Members: []Member{m}}, nil), fault.Invalid)
}

// The joining member dies just as the configuration is proposed. Nothing is
// chosen without it, and nothing is lost; when it comes back, all goes on.
func TestGrowthWithACrashInTheMiddle(t *testing.T) {
	p := newTestPool(t, 2)
	p.create(1)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.reach(p.nodes[0], p.nodes[1])
	joined := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { joined <- h.Join(ctx, p.nodes[1].member()) }()
	eventually(t, "the learner being fed", func() bool { return len(h.Status()) == 2 })
	p.nodes[1].crash(true, 0)
	if _, err := h.Propose(EntryData, []byte("b")); err != nil {
		t.Fatal(err)
	}
	h.Sync(h.Next() - 1)
	h.Kick()
	p.nodes[1].start()
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	last := h.put(t, "c")
	h.flush(t, last)
	h.Close()
	for _, n := range p.nodes {
		n.crash(true, 0)
	}
	for _, n := range p.nodes {
		n.start()
	}
	p.reach(p.nodes[1], p.nodes[0])
	h2 := p.nodes[1].open()
	h2.want(t, "a b c")
	if h2.rec.Config.Version != 2 {
		t.Fatalf("configuration %d", h2.rec.Config.Version)
	}
}
