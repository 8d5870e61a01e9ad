package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

func (n *testNode) witness() Member { return Member{Node: n.id, Brick: n.brick, Role: Witness} }

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (p *testPool) replace(h *testHolder, old, m Member) {
	p.t.Helper()
	p.reach(p.at(h.cfg.Self), p.at(m.Node))
	if err := h.Replace(within(p.t), old, m); err != nil {
		p.t.Fatal(err)
	}
}

func (p *testPool) at(id ident.NodeID) *testNode {
	for _, n := range p.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// left waits until a node has no copy of the test group any more.
func (n *testNode) left() {
	n.p.t.Helper()
	eventually(n.p.t, fmt.Sprintf("node %v without the group", n.id.Short()), func() bool { return len(n.acc.Groups()) == 0 })
}

func TestReplaceUnderLoad(t *testing.T) {
	p := newTestPool(t, 5)
	p.create(3)
	h := p.nodes[0].open()
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			h.flush(t, h.put(t, fmt.Sprint(i)))
			if i%100 == 99 {
				if _, err := h.Checkpoint(h.Durable(), []byte("x")); err != nil {
					panic(err)
				}
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); load.Wait() })
	defer end()
	p.replace(h, p.nodes[2].member(), p.nodes[3].member())
	p.replace(h, p.nodes[2].member(), p.nodes[3].member()) // again
	p.replace(h, p.nodes[1].member(), p.nodes[4].member())
	p.replace(h, p.nodes[0].member(), p.nodes[1].member()) // the holder's own
	end()
	if c := h.Members(); c.Version != 4 || c.Voters() != 3 {
		t.Fatalf("members %v", c)
	}
	p.nodes[0].left()
	p.nodes[2].left()
	h.flush(t, h.put(t, "last"))
	h.Close()
	p.nodes[3].crash(true, 0)
	// Those who left know the way, but one of them an old one.
	h2, err := p.nodes[2].tryOpen(func(c *ProposerConfig) { c.Seeds = []ident.NodeID{p.nodes[2].id} })
	if err != nil {
		t.Fatal(err)
	}
	if es := h2.rec.Entries; string(es[len(es)-2].Body) != "last" || h2.rec.Config.Version != 4 {
		t.Fatalf("recovered up to %q, configuration %v", es[len(es)-2].Body, h2.rec.Config)
	}
}

// Whoever knows only members that have all been replaced, and wiped, asks everybody.
func TestFallbackFindsTheGroup(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(1)
	h := p.nodes[0].open()
	p.replace(h, p.nodes[0].member(), p.nodes[1].member())
	h.Close()
	p.nodes[0].left()
	p.nodes[0].crash(false, 0)
	p.nodes[0].journal, p.nodes[0].stable = newEmpty()
	p.nodes[0].start()
	p.reach(p.nodes[0], p.nodes[1])
	p.reach(p.nodes[0], p.nodes[2])
	seeds := func(c *ProposerConfig) { c.Seeds = c.Seeds[:1] }
	_, err := p.nodes[0].tryOpen(seeds)
	wantKind(t, err, fault.NotFound)
	all := []ident.NodeID{p.nodes[0].id, p.nodes[1].id, p.nodes[2].id}
	if _, err := p.nodes[0].tryOpen(func(c *ProposerConfig) { seeds(c); c.Fallback = all }); err != nil {
		t.Fatal(err)
	}
	_, c, err := Holder(within(t), p.nodes[0].link, all[:1], testGroup, all...)
	if err != nil || c.Version != 2 {
		t.Fatal(c, err)
	}
}

// Whoever was away while the others were replaced knows itself and members that are gone;
// it may be the one whom all take for the right opener.
func TestMemberThatWasAwayFindsTheMajority(t *testing.T) {
	p := newTestPool(t, 5)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.nodes[2].crash(true, 0)
	p.replace(h, p.nodes[1].member(), p.nodes[3].member())
	p.replace(h, p.nodes[0].member(), p.nodes[4].member())
	h.flush(t, h.put(t, "b"))
	h.Close()
	p.nodes[0].crash(true, 0)
	p.nodes[1].crash(true, 0)
	p.nodes[2].start()
	p.reach(p.nodes[2], p.nodes[3])
	p.reach(p.nodes[2], p.nodes[4])
	h2, err := p.nodes[2].tryOpen(func(c *ProposerConfig) {
		c.Seeds = []ident.NodeID{p.nodes[0].id, p.nodes[1].id, p.nodes[2].id}
		c.Fallback = append(c.Seeds[:3:3], p.nodes[3].id, p.nodes[4].id)
	})
	if err != nil {
		t.Fatal(err)
	}
	if es := h2.rec.Entries; string(es[len(es)-2].Body) != "b" || h2.rec.Config.Version != 3 {
		t.Fatalf("recovered up to %q, configuration %v", es[len(es)-2].Body, h2.rec.Config)
	}
}

// Everybody is asked again after everybodyInterval, however many rounds go by in between.
func TestEverybodyIsAskedAgain(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	p.nodes[1].crash(true, 0)
	p.nodes[2].crash(true, 0)
	all := []ident.NodeID{p.nodes[0].id, p.nodes[1].id, p.nodes[2].id, p.nodes[3].id}
	o := &opener{cfg: ProposerConfig{Group: testGroup, Transport: p.nodes[0].link, Local: p.nodes[0].acc, Self: all[0],
		Seeds: all[:1], Fallback: all}, over: map[Ballot]bool{}}
	// A round asks, unless the machine stands still for as long as it may take.
	asked := func(ok func(time.Time) bool) bool {
		for range 50 {
			ctx, cancel := context.WithTimeout(t.Context(), surveyMax/4)
			err := o.survey(ctx)
			cancel()
			if err == nil {
				t.Fatal("one of three was enough")
			}
			if ok(o.asked) {
				return true
			}
		}
		return false
	}
	if !asked(func(at time.Time) bool { return !at.IsZero() }) {
		t.Fatal("not asked")
	}
	late := time.Now().Add(time.Hour) // so that the interval does not end meanwhile
	o.asked = late
	if !asked(func(at time.Time) bool { return at.Equal(late) }) {
		t.Fatal("asked again at once, or taken for it")
	}
	first := time.Now().Add(-everybodyInterval)
	o.asked = first
	if !asked(func(at time.Time) bool { return at.After(first) }) {
		t.Fatal("not asked again")
	}
}

func TestReplacedMemberThatWasAwayLeaves(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.nodes[2].crash(true, 0)
	p.replace(h, p.nodes[2].member(), p.nodes[3].member())
	h.flush(t, h.put(t, "b"))
	p.nodes[2].start()
	p.nodes[2].left()
	if got := p.nodes[3].acc.Groups(); len(got) != 1 || !got[0].Member {
		t.Fatalf("groups %+v", got)
	}
	// Nor does it come back by a restart.
	p.nodes[2].crash(false, 0)
	p.nodes[2].start()
	if got := p.nodes[2].acc.Groups(); len(got) != 0 {
		t.Fatalf("groups %+v", got)
	}
	wantKind(t, p.nodes[2].acc.Create(testGroup, p.config(3), []byte("birth")), fault.Conflict)
}

// A learner whose holder died forgets the group again; a member stays, fed or not. If the learner,
// and nobody else, has a configuration that names it, only a later one tells that it never came to be.
func TestLearnerOfADeadHolderLeaves(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(2)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.nodes[1].crash(false, 0) // so that nothing can be chosen
	ctx, cancel := context.WithCancel(within(t))
	p.reach(p.nodes[0], p.nodes[2])
	joined := make(chan error, 1)
	go func() { joined <- h.Join(ctx, p.nodes[2].member()) }()
	eventually(t, "the learner being fed", func() bool { return len(p.nodes[2].acc.Groups()) == 1 })
	p.nodes[0].crash(false, 0)
	cancel()
	if err := <-joined; err == nil {
		t.Fatal("it joined")
	}
	h.Close()
	p.nodes[0].start()
	p.nodes[1].start()
	p.reach(p.nodes[1], p.nodes[0])
	h2 := p.nodes[1].open()
	h2.want(t, "a")
	if h2.rec.Config.Version == 1 {
		eventually(t, "the end of the learner", func() bool {
			g, ok := p.nodes[2].acc.Group(testGroup)
			return !ok || g.Config.Version > 1
		})
		p.reach(p.nodes[1], p.nodes[3])
		if err := h2.Join(within(t), p.nodes[3].member()); err != nil {
			t.Fatal(err)
		}
		h2.flush(t, h2.put(t, "b"))
		p.nodes[2].left()
	}
	for _, n := range p.nodes[:2] {
		if len(n.acc.Groups()) != 1 {
			t.Fatal("a member left")
		}
	}
}

// A member that left and joins again, on the same brick, has nothing of its earlier life
// but the promise; records of both lives lie in one journal.
func TestMemberComesAgain(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a", "b", "c"))
	for i := range 3 {
		p.replace(h, p.nodes[2].member(), p.nodes[3].member())
		p.nodes[2].left()
		h.flush(t, h.put(t, fmt.Sprint("d", i)))
		p.replace(h, p.nodes[3].member(), p.nodes[2].member())
		p.nodes[3].left()
		h.flush(t, h.put(t, fmt.Sprint("e", i)))
		p.nodes[2].crash(true, 0)
		p.nodes[2].start()
		p.reach(p.nodes[0], p.nodes[2])
	}
	eventually(t, "the member in step", func() bool { return h.Status()[2].Durable == h.Durable() })
	h.Close()
	p.nodes[0].crash(true, 0)
	p.reach(p.nodes[2], p.nodes[1])
	h2 := p.nodes[2].open()
	h2.want(t, "a b c d0 e0 d1 e1 d2 e2")
	if v := h2.rec.Config.Version; v != 7 {
		t.Fatalf("configuration %d", v)
	}
}

func TestRemoveKeepsWhatIsAskedFor(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	wantKind(t, h.Remove(within(t), p.nodes[2].member(), 3), fault.Invalid)
	for _, n := range p.nodes[1:] {
		p.reach(p.nodes[0], n)
		if err := h.Remove(within(t), n.member(), 1); err != nil {
			t.Fatal(err)
		}
		n.left()
	}
	wantKind(t, h.Remove(within(t), p.nodes[0].member(), 0), fault.Invalid)
	h.flush(t, h.put(t, "alone"))
	if err := h.Remove(within(t), p.nodes[1].member(), 1); err != nil {
		t.Fatal(err)
	}
}

// A change that would not be chosen soon is not proposed: everything would wait for it.
func TestPitfallNewMemberCountsTooEarly(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.nodes[1].crash(false, 0)
	p.nodes[3].crash(false, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	wantKind(t, h.Remove(ctx, p.nodes[2].member(), 2), fault.Timeout) // the other one is away
	wantKind(t, h.Replace(ctx, p.nodes[1].member(), p.nodes[3].member()), fault.Timeout)
	h.flush(t, h.put(t, "b"))
	if c := h.Members(); c.Version != 1 {
		t.Fatalf("configuration %v", c)
	}
}

func TestWitnessVotesWithoutData(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(2)
	h := p.nodes[0].open()
	p.reach(p.nodes[0], p.nodes[2])
	if err := h.Join(within(t), p.nodes[2].witness()); err != nil {
		t.Fatal(err)
	}
	big := string(make([]byte, 64<<10))
	h.flush(t, h.put(t, big))
	eventually(t, "the witness in step", func() bool { return h.Status()[2].Durable == h.Durable() })
	if got := p.nodes[2].acc.Groups()[0]; !got.Witness || got.Last != h.Durable() || got.LogBytes > 4<<10 {
		t.Fatalf("the witness has %+v", got)
	}
	p.nodes[1].crash(false, 0)
	h.flush(t, h.put(t, "with the witness"))
	h.Close()

	// The witness knows that more was chosen than node 1 has: together they are a
	// majority, and must not open.
	p.nodes[0].crash(true, 0)
	p.nodes[2].crash(true, 0)
	p.nodes[1].start()
	p.nodes[2].start()
	p.reach(p.nodes[1], p.nodes[2])
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h2 := &testHolder{}
	_, _, err := Open(ctx, p.nodes[1].config(h2))
	wantKind(t, err, fault.Unavailable)
	p.nodes[0].start()
	p.reach(p.nodes[1], p.nodes[0])
	h3 := p.nodes[1].open()
	if es := h3.rec.Entries; string(es[len(es)-2].Body) != "with the witness" {
		t.Fatalf("recovered up to %q", es[len(es)-2].Body)
	}
	// What both have, either opens with the witness.
	h3.flush(t, h3.put(t, "both"))
	// A flush waits for a voter that keeps up, not for one that was silent for a tick.
	eventually(t, "both voters in step", func() bool { return h3.Status()[0].Durable == h3.Durable() })
	h3.Close()
	p.nodes[1].crash(true, 0)
	p.reach(p.nodes[0], p.nodes[2])
	h4 := p.nodes[0].open()
	if es := h4.rec.Entries; string(es[len(es)-2].Body) != "both" {
		t.Fatalf("recovered up to %q", es[len(es)-2].Body)
	}
}

func TestTwoWitnessesAreNotSound(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(1)
	h := p.nodes[0].open()
	p.reach(p.nodes[0], p.nodes[1])
	if err := h.Join(within(t), p.nodes[1].witness()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, h.Join(within(t), p.nodes[2].witness()), fault.Invalid)
	wantKind(t, h.Remove(within(t), p.nodes[0].member(), 0), fault.Invalid)
}

func (p *testPool) ids() (ids []ident.NodeID) {
	for _, n := range p.nodes {
		ids = append(ids, n.id)
	}
	return ids
}

// openFor tries to open for a second.
func openFor(n *testNode, change func(*ProposerConfig)) (*testHolder, error) {
	h := &testHolder{}
	cfg := n.config(h)
	change(&cfg)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var err error
	h.Proposer, h.rec, err = Open(ctx, cfg)
	if err == nil {
		n.p.t.Cleanup(h.Close)
	}
	return h, err
}

// What the journal has of an earlier life is nothing to the next one.
func TestEarlierLifeIsNotReplayed(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a", "b", "c"))
	n := p.nodes[2]
	eventually(t, "the member in step", func() bool { return h.Status()[2].Durable == h.Durable() })
	p.replace(h, n.member(), p.nodes[3].member())
	n.left()
	ballot := h.Ballot()
	h.Close()
	ckpt := Checkpoint{Value: []byte("birth"), Config: p.config(3)}
	low := installCall{group: testGroup, brick: n.brick, ballot: Ballot{Epoch: 0, Node: ballot.Node, Boot: 1}, checkpoint: ckpt}
	if s, _, err := n.acc.install(&low); err != nil || s != paxos.Fenced {
		t.Fatalf("it comes again below its promise: %v %v", s, err)
	}
	if s, _, err := n.acc.install(&installCall{group: testGroup, brick: n.brick, ballot: ballot, checkpoint: ckpt}); err != nil || s != paxos.OK {
		t.Fatal(s, err)
	}
	for range 2 {
		n.crash(true, 0)
		n.start()
		if g, ok := n.acc.Group(testGroup); !ok || g.Last != 0 || g.LogBytes != 0 || g.Promised != ballot {
			t.Fatalf("%+v", g)
		}
	}
}

// counted counts the promises that are asked for.
type counted struct {
	link.Transport
	prepares atomic.Int64
}

func (c *counted) Call(ctx context.Context, to ident.NodeID, typ link.Type, bufs ...[]byte) ([]byte, error) {
	if typ == typePrepare {
		c.prepares.Add(1)
	}
	return c.Transport.Call(ctx, to, typ, bufs...)
}

// An opening that knows only an old configuration asks a member that left it again,
// but not without a pause: its own copy would answer as fast as it is asked.
func TestMemberThatLeftIsAskedNowAndThen(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	old := h.rec.Config
	p.replace(h, p.nodes[2].member(), p.nodes[3].member())
	p.nodes[2].left()
	for _, n := range []int{0, 1, 3} {
		p.nodes[n].crash(false, 0)
	}
	cfg := p.nodes[2].config(&testHolder{})
	c := &counted{Transport: cfg.Transport}
	cfg.Transport, cfg.Log = c, slog.New(slog.DiscardHandler)
	o := &opener{cfg: cfg, config: Config{Version: old.Version, Members: []Member{p.nodes[2].member()}}, over: map[Ballot]bool{}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*AskInterval/2)
	defer cancel()
	if _, _, err := o.learn(ctx, Ballot{Epoch: 9, Node: p.nodes[2].id, Boot: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("opened without members: %v", err)
	}
	// Of the members of the configuration that it tells, each is asked thrice at most.
	if n := c.prepares.Load(); n == 0 || n > 12 {
		t.Fatalf("%d promises were asked for in %v", n, 5*AskInterval/2)
	}
}
