package quorum

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// stray leaves a promise at one node alone, as an opening does that got no further.
func (n *testNode) stray(to *testNode, epoch uint64) Ballot {
	n.p.t.Helper()
	b := Ballot{Epoch: epoch, Node: n.id, Boot: n.boot}
	m := prepareCall{group: testGroup, brick: to.brick, ballot: b, force: true}
	if _, err := to.acc.onPrepare(context.Background(), n.id, appendPrepare(nil, &m)); err != nil {
		n.p.t.Fatal(err)
	}
	return b
}

func livePool(t *testing.T) (*testPool, *testNode, *testNode, *testNode) {
	p := newTestPool(t, 3)
	p.create(3)
	for _, n := range p.nodes {
		n.mayLive = func(ident.NodeID) bool { return true }
	}
	return p, p.nodes[0], p.nodes[1], p.nodes[2]
}

// The consent of a node whose opening failed is not that of the holder, though
// its ballot is the higher one.
func TestConsentIsThatOfTheHolder(t *testing.T) {
	_, a, b, c := livePool(t)
	h := a.open()
	h.put(t, "a")
	over := c.stray(c, 9)
	_, err := b.tryOpen(nil)
	wantKind(t, err, fault.Busy)
	_, err = b.tryOpen(func(cfg *ProposerConfig) { cfg.Over = over })
	wantKind(t, err, fault.Busy)
}

// Nor is the consent of an earlier holder that of the one after it.
func TestConsentEndsWithItsBallot(t *testing.T) {
	_, a, b, c := livePool(t)
	first := a.open()
	first.put(t, "a")
	first.Close()
	second := b.open()
	_, err := c.tryOpen(func(cfg *ProposerConfig) { cfg.Over = first.Ballot() })
	wantKind(t, err, fault.Busy)
	second.flush(t, second.put(t, "b"))
}

// A node whose own opening failed once can open when the holder is at work no
// longer, though that node lives.
func TestOwnFailedOpeningDoesNotHideTheHolder(t *testing.T) {
	for _, at := range []int{0, 1} {
		p, a, b, c := livePool(t)
		h := a.open()
		h.flush(t, h.put(t, "a"))
		h.Close()
		b.stray(p.nodes[at], 9)
		if at == 1 {
			c.crash(false, 0)
		}
		b.open().want(t, "a")
	}
}

// A copy is left of a change of members that was never chosen, and its own members do not object.
// Those who count do, for the sake of a holder that let go: it is asked all the same.
func TestUnchosenMembersDoNotHideTheHolder(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	a, b, c, d := p.nodes[0], p.nodes[1], p.nodes[2], p.nodes[3]
	var dead atomic.Bool
	for _, n := range p.nodes {
		n.mayLive = func(id ident.NodeID) bool { return id != b.id || !dead.Load() }
	}
	d.crash(false, 0)
	d.belongDelay = time.Hour // it would find out that it is left over
	d.start()
	p.reach(b, d)
	first := b.open()
	first.flush(t, first.put(t, "a"))
	a.crash(false, 0)
	c.crash(false, 0)
	ctx, cancel := context.WithCancel(within(t))
	replaced := make(chan error, 1)
	go func() { replaced <- first.Replace(ctx, c.member(), d.member()) }()
	version := func(n *testNode) uint64 {
		g, _ := n.acc.Group(testGroup)
		return g.Config.Version
	}
	eventually(t, "a copy with the new members", func() bool { return version(d) == 2 })
	b.crash(false, 0)
	dead.Store(true)
	cancel()
	if err := <-replaced; err == nil {
		t.Fatal("it was chosen")
	}
	first.Close()
	a.start()
	c.start()
	p.reach(a, c)
	p.net.Isolate(d.id)
	second := a.open()
	second.flush(t, second.put(t, "b"))
	b.start()
	eventually(t, "the old members everywhere else", func() bool { return version(b) == 1 })
	p.net.Rejoin(d.id)
	for _, n := range p.nodes[:3] {
		p.reach(d, n)
	}
	second.Close()
	d.stray(a, 99) // as an opening leaves that found b and c unwilling
	if version(d) != 2 {
		t.Fatal("the copy is gone")
	}
	d.open().want(t, "a b")
}

// Two open at once, and the slower one has the promise of one member. It gets no further, since
// the other has a majority; and that one is not thrown out when it is at work. The member is one
// that answers late, or the opener's own.
func TestStrayPromiseOfALateMember(t *testing.T)  { openPastStray(t, 1) }
func TestStrayPromiseOfTheOwnMember(t *testing.T) { openPastStray(t, 0) }

// openPastStray has a node open the group, with a promise to another one at the member `at` that
// is made while the second member is being asked for its promise, which then does nothing for a
// while.
func openPastStray(t *testing.T, at int) {
	p := newTestPool(t, 4)
	p.create(3)
	a, c, d := p.nodes[0], p.nodes[2], p.nodes[3]
	for _, n := range p.nodes[:3] {
		p.reach(a, n)
	}
	first := c.open()
	first.flush(t, first.put(t, "a"))
	first.Close()
	late := p.nodes[1]
	claimed := func() bool { // until then it is the survey that asks
		a.acc.mu.RLock()
		defer a.acc.mu.RUnlock()
		return a.acc.epochs[testGroup] > 0
	}
	var straying, strayed atomic.Bool
	late.mayLive = func(ident.NodeID) bool {
		if strayed.Load() {
			<-time.After(slowMember) // no survey waits for it
		}
		if claimed() && !straying.Swap(true) {
			d.stray(p.nodes[at], 1<<20) // not to be reached one by one
			strayed.Store(true)
			g := late.acc.group(testGroup, late.brick)
			g.mu.Lock()
			<-time.After(slowMember)
			g.mu.Unlock()
		}
		return true
	}
	h, err := a.tryOpen(func(cfg *ProposerConfig) { cfg.Over = first.Ballot() })
	if err != nil {
		t.Fatal(err)
	}
	if !strayed.Load() {
		t.Fatal("nobody else had a promise")
	}
	h.want(t, "a")
	slot := h.put(t, "b")
	h.flush(t, slot)
	fenced := func() *Ballot {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.fenced
	}
	eventually(t, "all members with it", func() bool {
		return fenced() != nil || !slices.ContainsFunc(h.Status(), func(m MemberStatus) bool { return m.Durable < slot })
	})
	if by := fenced(); by != nil {
		t.Fatalf("fenced by %v, whose opening got nowhere", by)
	}
}

// slowMember is for how long a member keeps others waiting, who have their majority without it.
const slowMember = 20 * time.Millisecond
