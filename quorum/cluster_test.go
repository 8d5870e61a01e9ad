package quorum

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/quorumtest"
)

// patience bounds every wait of a test; it is never waited for in vain, but in
// tests with deliberate defects.
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GABION_TEST_PATIENCE")); err == nil {
		return d
	}
	return 20 * time.Second
}()

var testGroup = ident.GroupID{7}

// pool is a few nodes on a memory network.
type testPool struct {
	t     testing.TB
	net   *link.Memory
	nodes []*testNode
}

type testNode struct {
	belongDelay time.Duration // 0: the usual one
	p           *testPool
	id          ident.NodeID
	brick       ident.BrickID
	journal     *quorumtest.Journal
	stable      *quorumtest.Stable
	link        *link.MemoryNode
	acc         *Acceptors
	boot        uint64
	stop        context.CancelFunc
	done        chan struct{}
	mayLive     func(ident.NodeID) bool
}

func newTestPool(t testing.TB, n int) *testPool {
	p := &testPool{t: t, net: link.NewMemory(1)}
	for i := range n {
		p.nodes = append(p.nodes, &testNode{p: p, id: ident.NodeID{byte(i + 1)},
			brick: ident.BrickID{byte(i + 1), 0xb}, journal: quorumtest.NewJournal(),
			stable: quorumtest.NewStable()})
	}
	for _, n := range p.nodes {
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range p.nodes {
			n.crash(false, 0)
		}
	})
	return p
}

func (n *testNode) member() Member { return Member{Node: n.id, Brick: n.brick} }

func (n *testNode) start() {
	n.p.t.Helper()
	n.boot++
	n.link = n.p.net.Node(n.id)
	n.acc = NewAcceptors(AcceptorsConfig{Transport: n.link, HolderMayLive: func(id ident.NodeID) bool {
		return n.mayLive != nil && n.mayLive(id)
	}})
	n.acc.delay, n.acc.belongDelay = 20*time.Millisecond, cmp.Or(n.belongDelay, 50*time.Millisecond)
	if err := n.acc.AddBrick(n.brick, n.journal, n.stable); err != nil {
		n.p.t.Fatal(err)
	}
	n.link.Start()
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		n.acc.Run(ctx)
	}()
}

// crash ends the node; with power, only what was synced and keep more records
// survive.
func (n *testNode) crash(power bool, keep int) {
	if n.link == nil {
		return
	}
	n.stop()
	<-n.done
	n.p.net.Crash(n.id)
	n.link.Close()
	n.link = nil
	n.journal = n.journal.Crash(power, keep)
}

func (p *testPool) config(n int) Config {
	c := Config{Version: 1}
	for _, node := range p.nodes[:n] {
		c.Members = append(c.Members, node.member())
	}
	return c
}

// create gives birth to the test group on the first n nodes.
func (p *testPool) create(n int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, node := range p.nodes[:n] {
		p.reach(p.nodes[0], node)
		if err := CreateOn(ctx, p.nodes[0].link, node.id, testGroup, p.config(n), []byte("birth")); err != nil {
			p.t.Fatal(err)
		}
	}
}

// reach waits for the connection between two nodes.
func (p *testPool) reach(a, b *testNode) {
	p.t.Helper()
	eventually(p.t, "a connection", func() bool { return a == b || a.link.Connected(b.id) })
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// testHolder is a proposer with its callbacks gathered.
type testHolder struct {
	*Proposer
	rec *Recovered

	mu                sync.Mutex
	cond              *sync.Cond
	received, durable uint64
	fenced            *Ballot
}

func (n *testNode) config(h *testHolder) ProposerConfig {
	h.cond = sync.NewCond(&h.mu)
	var seeds []ident.NodeID
	for _, o := range n.p.nodes {
		seeds = append(seeds, o.id)
	}
	return ProposerConfig{Group: testGroup, Transport: n.link, Local: n.acc, Self: n.id, Boot: n.boot,
		Seeds: seeds,
		OnProgress: func(received, durable uint64) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if received < h.received || durable < h.durable || durable > received {
				panic(fmt.Sprintf("progress from %d,%d to %d,%d", h.received, h.durable, received, durable))
			}
			h.received, h.durable = received, durable
			h.cond.Broadcast()
		},
		OnFenced: func(by Ballot) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.fenced != nil {
				panic("fenced twice")
			}
			h.fenced = &by
			h.cond.Broadcast()
		},
	}
}

// tryOpen opens the test group on n.
func (n *testNode) tryOpen(change func(*ProposerConfig)) (*testHolder, error) {
	h := &testHolder{}
	cfg := n.config(h)
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	h.Proposer, h.rec, err = Open(ctx, cfg)
	if err == nil {
		h.mu.Lock()
		h.received, h.durable = max(h.received, h.Received()), max(h.durable, h.Durable())
		h.mu.Unlock()
		n.p.t.Cleanup(h.Close)
	}
	return h, err
}

func (n *testNode) open() *testHolder {
	n.p.t.Helper()
	h, err := n.tryOpen(nil)
	if err != nil {
		n.p.t.Fatal(err)
	}
	return h
}

// wait blocks until ok, which is called under h.mu.
func (h *testHolder) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timer := time.AfterFunc(patience, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cond.Broadcast()
	})
	defer timer.Stop()
	end := time.Now().Add(patience)
	h.mu.Lock()
	defer h.mu.Unlock()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("no %s: received %d durable %d status %+v", what, h.received, h.durable, h.Status())
		}
		h.cond.Wait()
	}
}

// put proposes texts and waits until a majority has received them.
func (h *testHolder) put(t testing.TB, texts ...string) uint64 {
	t.Helper()
	var slot uint64
	for _, s := range texts {
		var err error
		if slot, err = h.Propose(EntryData, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	h.Kick()
	h.wait(t, "received", func() bool { return h.received >= slot })
	return slot
}

func (h *testHolder) flush(t testing.TB, slot uint64) {
	t.Helper()
	h.Sync(slot)
	h.Kick()
	h.wait(t, "durable", func() bool { return h.durable >= slot })
}

// texts are the data entries recovered.
func (h *testHolder) texts() string {
	var s []string
	for _, e := range h.rec.Entries {
		if e.Kind == EntryData {
			s = append(s, string(e.Body))
		}
	}
	return strings.Join(s, " ")
}

func (h *testHolder) want(t testing.TB, texts string) {
	t.Helper()
	if h.texts() != texts {
		t.Fatalf("recovered %q, not %q", h.texts(), texts)
	}
}

func wantKind(t testing.TB, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("error %v, not of kind %v", err, k)
	}
}

// Nothing of a closed node or proposer may go on running.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
