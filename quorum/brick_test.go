package quorum

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"testing"
	"time"

	dhtbrick "github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// brickNode is a node with a real brick on an in-memory disk.
type brickNode struct {
	i      int
	net    *link.Memory
	id     ident.NodeID
	disk   *vfs.Mem
	stable *dhtbrick.MemStable
	brick  *dhtbrick.Brick
	link   *link.MemoryNode
	acc    *Acceptors
	boot   uint64
	stop   context.CancelFunc
	done   chan struct{}
}

const torturePool = 64 << 10 // bytes of journal on each brick

func (n *brickNode) start(t *testing.T) {
	t.Helper()
	var err error
	n.brick, err = dhtbrick.Open(dhtbrick.Config{FS: n.disk, Pool: ident.PoolID{1}, Node: n.id, Stable: n.stable,
		JournalSegmentSize: 16 << 10, JournalMax: 4 * torturePool, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	n.boot++
	n.link = n.net.Node(n.id)
	n.acc = NewAcceptors(AcceptorsConfig{Transport: n.link})
	n.acc.delay = 2 * time.Millisecond
	if err := n.acc.AddBrick(n.brick.ID(), JournalOf(n.brick.Journal()), n.brick.Stable()); err != nil {
		t.Fatalf("node %d: %v", n.i, err)
	}
	n.link.Start()
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		n.acc.Run(ctx)
	}()
}

func (n *brickNode) crash(rng *rand.Rand, power bool) {
	if n.link == nil {
		return
	}
	after := n.disk.Kill
	if power {
		after = func() *vfs.Mem { return n.disk.Crash(rng) }
	}
	disk := after()
	n.stop()
	n.net.Crash(n.id)
	n.link.Close()
	<-n.done
	_ = n.brick.Close() // of the dead disk
	n.disk, n.link = disk, nil
}

// TestTortureOverRealBricks opens, writes, flushes, checkpoints, kills and cuts
// the power over small journals, so that they are trimmed, copied forward and
// full, and compares with what was acknowledged. GABION_TORTURE_SEEDS widens it.
func TestTortureOverRealBricks(t *testing.T) {
	seeds := int64(4)
	if s := os.Getenv("GABION_TORTURE_SEEDS"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { torture(t, seed) })
	}
}

type tortureModel struct {
	durable  map[uint64]string // slot to body
	received map[uint64]string
	power    bool // power was cut since the last opening
}

func torture(t *testing.T, seed int64) {
	rng := rand.New(rand.NewSource(seed))
	net := link.NewMemory(uint64(seed))
	net.RetryMin = time.Millisecond
	var nodes []*brickNode
	cfg := Config{Version: 1}
	for i := range 3 {
		n := &brickNode{i: i, net: net, id: ident.NodeID{byte(i + 1)}, disk: vfs.NewMemSeed(seed), stable: dhtbrick.NewMemStable()}
		n.start(t)
		nodes = append(nodes, n)
		cfg.Members = append(cfg.Members, Member{Node: n.id, Brick: n.brick.ID()})
	}
	defer func() {
		for _, n := range nodes {
			n.crash(rng, false)
		}
	}()
	quiet := ident.GroupID{8} // a second group that nobody checkpoints pins old segments
	for _, n := range nodes {
		for _, g := range []ident.GroupID{testGroup, quiet} {
			if err := n.acc.Create(g, cfg, []byte("0")); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := func(n *brickNode, g ident.GroupID) (*testHolder, error) {
		h := &testHolder{}
		tn := &testNode{p: &testPool{}, link: n.link, acc: n.acc, id: n.id, boot: n.boot}
		c := tn.config(h)
		c.Group = g
		for _, m := range cfg.Members {
			c.Seeds = append(c.Seeds, m.Node)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var err error
		h.Proposer, h.rec, err = Open(ctx, c)
		return h, err
	}
	hq, err := open(nodes[0], quiet)
	if err != nil {
		t.Fatal(err)
	}
	pinned := hq.put(t, "pinned")
	hq.flush(t, pinned)
	hq.Close()
	m := &tortureModel{durable: map[uint64]string{}, received: map[uint64]string{}}
	for round := range 12 {
		n := nodes[rng.Intn(3)]
		h, err := open(n, testGroup)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		m.check(t, round, h.rec)
		m.load(t, rng, h)
		h.Close()
		m.fault(t, rng, nodes)
	}
	for _, n := range nodes {
		n.crash(rng, true)
	}
	for _, n := range nodes {
		n.start(t)
	}
	if hq, err = open(nodes[2], quiet); err != nil {
		t.Fatal(err)
	}
	hq.want(t, "pinned")
	hq.Close()
}

func (m *tortureModel) check(t *testing.T, round int, rec *Recovered) {
	t.Helper()
	if string(rec.Checkpoint.Value) != strconv.FormatUint(rec.Checkpoint.UpTo, 10) {
		t.Fatalf("round %d: checkpoint %d has the value %q", round, rec.Checkpoint.UpTo, rec.Checkpoint.Value)
	}
	got := map[uint64]string{}
	for _, e := range rec.Entries {
		got[e.Slot] = string(e.Body)
	}
	want := func(what string, log map[uint64]string) {
		for s, body := range log {
			if s > rec.Checkpoint.UpTo && got[s] != body {
				t.Fatalf("round %d: slot %d, %s, is lost: %.20q, not %.20q", round, s, what, got[s], body)
			}
		}
	}
	want("durable", m.durable)
	if !m.power {
		want("received", m.received)
	}
	clear(m.received)
	m.power = false
	for _, e := range rec.Entries {
		if e.Kind == EntryData {
			m.durable[e.Slot] = string(e.Body)
		}
	}
}

// load writes several journals full.
func (m *tortureModel) load(t *testing.T, rng *rand.Rand, h *testHolder) {
	t.Helper()
	h.SetEagerSync(rng.Intn(2) == 0)
	for range rng.Intn(150) {
		body := fmt.Sprintf("%x", rng.Int63())
		if rng.Intn(4) == 0 {
			body += string(make([]byte, rng.Intn(4096)))
		}
		slot := h.put(t, body)
		m.received[slot] = body
		if rng.Intn(5) == 0 {
			h.flush(t, slot)
			for s, b := range m.received {
				m.durable[s] = b
			}
		}
		if h.TailBytes() > torturePool/2 || rng.Intn(30) == 0 {
			d := h.Durable()
			ckpt, err := h.Checkpoint(d, []byte(strconv.FormatUint(d, 10)))
			if err != nil {
				t.Fatal(err)
			}
			h.wait(t, "checkpoint", func() bool { return h.durable >= ckpt })
		}
	}
}

func (m *tortureModel) fault(t *testing.T, rng *rand.Rand, nodes []*brickNode) {
	t.Helper()
	everywhere := rng.Intn(4) == 0
	for _, n := range nodes {
		if !everywhere && rng.Intn(3) > 0 {
			continue
		}
		power := rng.Intn(2) == 0
		m.power = m.power || power
		n.crash(rng, power)
	}
	for _, n := range nodes {
		if n.link == nil {
			n.start(t)
		}
	}
}

// A journal that nobody can trim says that it is tight, and then full; the
// member recovers as soon as a checkpoint makes room.
func TestFullJournalRecovers(t *testing.T) {
	p := newTestPool(t, 1)
	p.nodes[0].crash(false, 0)
	p.nodes[0].journal.Max = 40 << 10
	p.nodes[0].start()
	p.create(1)
	h := p.nodes[0].open()
	body := make([]byte, 4096)
	var slot uint64
	for !h.Status()[0].Tight {
		slot = h.put(t, string(body))
	}
	h.flush(t, slot)
	ckpt, err := h.Checkpoint(slot, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.wait(t, "checkpoint", func() bool { return h.durable >= ckpt })
	eventually(t, "room", func() bool {
		oldest, next, _ := p.nodes[0].journal.Live()
		return next-oldest < 8<<10
	})
	for range 20 { // more than fits, without a checkpoint
		if slot, err = h.Propose(EntryData, body); err != nil {
			t.Fatal(err)
		}
	}
	h.Kick()
	eventually(t, "a full journal", func() bool { return h.Status()[0].State == "full" })
	if h.Received() >= slot {
		t.Fatal("all of it was taken")
	}
	wantKind(t, errFullJournal(p.nodes[0]), fault.NoSpace)
}

func errFullJournal(n *testNode) error {
	_, err := n.journal.Append(make([]byte, 40<<10))
	return err
}

// While the end of a group is being written, a power cut may still undo it: until then its
// part of the journal stays. And whatever makes a record needless is durable before it goes.
func TestJournalIsNotTrimmedBeforeItsEndIsDurable(t *testing.T) {
	p := newTestPool(t, 1)
	p.create(1)
	n := p.nodes[0]
	h := n.open()
	h.flush(t, h.put(t, "a", "b"))
	h.Close()
	g := n.acc.group(testGroup, n.brick)
	_, next, _ := n.journal.Live()
	g.mu.Lock()
	oldest, ok := g.core.OldestPos()
	g.dropped = true // as dropOn and leave do before they write it down
	g.mu.Unlock()
	if floor := floorOf([]*group{g}, next); !ok || floor > oldest {
		t.Errorf("the journal is trimmed to %d, the group's oldest record is at %d", floor, oldest)
	}
	if _, err := n.journal.Append([]byte("not synced")); err != nil {
		t.Fatal(err)
	}
	before := n.journal.Syncs()
	if err := trim(g.brick, []*group{g}, oldest); err != nil || n.journal.Syncs() == before {
		t.Errorf("trimmed without a sync: %v", err)
	}
	g.mu.Lock()
	g.dropped = false
	g.mu.Unlock()
}
