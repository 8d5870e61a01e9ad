package quorum

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum/paxos"
	"github.com/gabion-storage/gabion/quorum/quorumtest"
)

// The hazards of replicated blocks that others have met, each with a test that says
// that it is none here. Beside these: TestHazardGhostWrite, TestHazardHungDiskIsOneVoteLess,
// TestHazardLossOfQuorumIsNotTheEnd, and for ballots that are used again and promises that
// are forgotten the simulation of package paxos.

// A member that forgot a promise in a power cut would let two histories be chosen.
func TestHazardForgottenPromise(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.net.Isolate(p.nodes[0].id)
	p.reach(p.nodes[1], p.nodes[2])
	h2, err := p.nodes[1].tryOpen(func(c *ProposerConfig) { c.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	h2.Close()
	for _, n := range p.nodes[1:] {
		n.crash(true, 0)
		n.start()
	}
	p.net.Rejoin(p.nodes[0].id)
	p.reach(p.nodes[0], p.nodes[1])
	p.reach(p.nodes[0], p.nodes[2])
	if _, err := h.Propose(EntryData, []byte("late")); err == nil {
		h.Sync(h.Next() - 1)
		h.Kick()
	} else {
		wantKind(t, err, fault.Fenced)
	}
	h.wait(t, "fence", func() bool { return h.fenced != nil })
	h3 := p.nodes[2].open()
	h3.want(t, "a")
}

// The same promise, of an opening that died before it had proposed anything: nothing but
// the promise itself, on disk, tells of it after the power cut.
func TestHazardForgottenPromiseOfADeadOpening(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	promised := func(n *testNode) Ballot {
		g, _ := n.acc.Group(testGroup)
		return g.Promised
	}
	var h *testHolder
	var armed atomic.Bool
	p.nodes[2].stable.OnSet = func(string) error {
		if armed.Load() && h.Ballot().Less(promised(p.nodes[2])) {
			p.net.Cut(p.nodes[2].id, p.nodes[1].id) // the opener does not hear the answer
		}
		return nil
	}
	h = p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	armed.Store(true)
	p.net.Isolate(p.nodes[0].id)
	p.reach(p.nodes[1], p.nodes[2])
	ctx, cancel := context.WithCancel(within(t))
	opened := make(chan error, 1)
	go func() {
		_, _, err := Open(ctx, p.nodes[1].config(&testHolder{}))
		opened <- err
	}()
	eventually(t, "both promises", func() bool { return h.Ballot().Less(promised(p.nodes[1])) && h.Ballot().Less(promised(p.nodes[2])) })
	was := promised(p.nodes[2])
	cancel()
	if err := <-opened; err == nil {
		t.Fatal("it opened without a majority")
	}
	for _, n := range p.nodes[1:] {
		n.crash(true, 0)
		n.start()
		if got := promised(n); got.Less(was) {
			t.Errorf("node %v promised %v and knows of %v", n.id.Short(), was, got)
		}
	}
	p.net.Heal(p.nodes[2].id, p.nodes[1].id)
	p.net.Rejoin(p.nodes[0].id)
	if slot, err := h.Propose(EntryData, []byte("late")); err == nil {
		h.Sync(slot)
		h.Kick()
	}
	h.wait(t, "fence", func() bool { return h.fenced != nil })
}

// A write that one member has is not acknowledged because nobody else can be reached.
func TestHazardAcknowledgeWithOneCopy(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	last := h.put(t, "a")
	h.flush(t, last)
	p.nodes[1].crash(false, 0)
	p.nodes[2].crash(false, 0)
	slot, err := h.Propose(EntryData, []byte("alone"))
	if err != nil {
		t.Fatal(err)
	}
	h.Sync(slot)
	h.Kick()
	eventually(t, "the own copy", func() bool { return h.Status()[0].Durable >= slot })
	if h.Received() != last || h.Durable() != last {
		t.Fatalf("received %d durable %d with one copy of slot %d", h.Received(), h.Durable(), slot)
	}
	p.nodes[1].start()
	h.wait(t, "durable", func() bool { return h.durable >= slot })
}

// A member without room is one member less, not the end of the group.
func TestHazardFullDiskBlocksTheGroup(t *testing.T) {
	p := newTestPool(t, 3)
	p.nodes[2].crash(false, 0)
	p.nodes[2].journal.Max = 20 << 10
	p.nodes[2].start()
	p.create(3)
	h := p.nodes[0].open()
	for range 30 {
		h.flush(t, h.put(t, string(make([]byte, 4096))))
	}
	eventually(t, "a full journal", func() bool { return h.Status()[2].State == "full" })
	h.flush(t, h.put(t, "more"))
	ckpt, err := h.Checkpoint(h.Durable(), nil)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the member in step", func() bool { return h.Status()[2].Durable >= ckpt })
}

// Two that make the same group with members of their own do not both succeed: the
// members tell births apart.
func TestHazardSplitBirth(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(2)
	other := Config{Version: 1, Members: []Member{p.nodes[1].member(), p.nodes[2].member()}}
	p.reach(p.nodes[2], p.nodes[1])
	wantKind(t, CreateOn(within(t), p.nodes[2].link, p.nodes[1].id, testGroup, other, []byte("birth")), fault.Exists)
}

// A member is replaced without a moment of fewer voters: another one may be lost
// at any time, before, during and after.
func TestHazardShrinkThenGrow(t *testing.T) {
	for _, lost := range []int{1, 2} { // a bystander, or the one that leaves
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			p := newTestPool(t, 4)
			p.create(3)
			h := p.nodes[0].open()
			h.flush(t, h.put(t, "a"))
			p.reach(p.nodes[0], p.nodes[3])
			changed := make(chan error, 1)
			go func() { changed <- h.Replace(within(t), p.nodes[2].member(), p.nodes[3].member()) }()
			eventually(t, "the learner being fed", func() bool { return len(p.nodes[3].acc.Groups()) == 1 })
			p.nodes[lost].crash(true, 0)
			if err := <-changed; err != nil {
				t.Fatal(err)
			}
			h.flush(t, h.put(t, "b"))
			h.Close()
			changes := 0
			for _, e := range p.nodes[0].open().rec.Entries { // all that ever were
				if e.Kind != EntryConfig {
					continue
				}
				changes++
				if c, _, err := paxos.DecodeConfig(e.Body); err != nil || c.Voters() != 3 {
					t.Errorf("in between: %v, %v", c, err)
				}
			}
			if changes != 1 {
				t.Errorf("%d configurations for one member in the place of another", changes)
			}
		})
	}
}

// Two coordinators that mend the same group do not undo each other's work: only
// the holder can, and there is one.
func TestHazardDuellingMaintenance(t *testing.T) {
	p := newTestPool(t, 5)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.reach(p.nodes[0], p.nodes[3])
	p.reach(p.nodes[1], p.nodes[4])
	p.reach(p.nodes[1], p.nodes[2])
	old := make(chan error, 1)
	p.nodes[3].crash(false, 0) // the first change waits for it
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	go func() { old <- h.Replace(ctx, p.nodes[2].member(), p.nodes[3].member()) }()
	eventually(t, "the change", func() bool { return len(h.Status()) == 4 })
	wantKind(t, h.Replace(within(t), p.nodes[2].member(), p.nodes[4].member()), fault.Busy)
	h2, err := p.nodes[1].tryOpen(func(c *ProposerConfig) { c.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	p.replace(h2, p.nodes[2].member(), p.nodes[4].member())
	p.nodes[3].start()
	if err := <-old; !errors.Is(err, context.Canceled) && !fault.Is(err, fault.Fenced) {
		t.Fatal(err)
	}
	c := h2.Members()
	if c.Version != 2 || c.Find(p.nodes[4].id, p.nodes[4].brick) < 0 || c.Voters() != 3 {
		t.Fatalf("members %v", c)
	}
	h2.flush(t, h2.put(t, "b"))
}

// A disk that was wiped is another member: it votes only after it has joined, and
// then with everything.
func TestHazardWipedDiskVotes(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	was := p.nodes[2].member()
	p.nodes[2].crash(true, 0)
	p.nodes[2].journal, p.nodes[2].stable = quorumtest.NewJournal(), quorumtest.NewStable()
	p.nodes[2].brick[2]++ // another incarnation
	p.nodes[2].start()
	h.flush(t, h.put(t, "b"))
	if st := h.Status()[2]; st.Durable >= h.Durable() {
		t.Fatalf("the wiped disk has %+v", st)
	}
	p.replace(h, was, p.nodes[2].member())
	h.flush(t, h.put(t, "c"))
	h.Close()
	p.nodes[1].crash(true, 0)
	p.reach(p.nodes[2], p.nodes[0])
	p.nodes[2].open().want(t, "a b c")
}
