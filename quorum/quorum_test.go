package quorum

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func TestEntriesAreReceivedThenDurable(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5} {
		p := newTestPool(t, n)
		p.create(n)
		h := p.nodes[0].open()
		h.want(t, "")
		if string(h.rec.Checkpoint.Value) != "birth" {
			t.Fatalf("birth value %q", h.rec.Checkpoint.Value)
		}
		slot := h.put(t, "a", "b", "c")
		h.flush(t, slot)
		eventually(t, "durability on all members", func() bool {
			for _, s := range h.Status() {
				if s.Durable < slot || s.State != "ok" {
					return false
				}
			}
			return true
		})
		h.Close()
		p.nodes[n-1].open().want(t, "a b c")
	}
}

func TestReceivedSurvivesTheDeathOfEveryProcess(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.put(t, "a", "b")
	h.Close()
	for _, n := range p.nodes {
		n.crash(false, 0)
	}
	for _, n := range p.nodes {
		n.start()
	}
	p.nodes[1].open().want(t, "a b")
}

func TestHazardNoSyncAnywhere(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	h.Close()
	for _, n := range p.nodes {
		n.crash(true, 0)
	}
	for _, n := range p.nodes[1:] { // and one never comes back
		n.start()
	}
	p.nodes[2].open().want(t, "a")
}

// A takeover learns what was only received by a majority, although the holder
// is gone with its copy, and makes it durable before the first read.
func TestPitfallBlockFlipsBackAfterATakeover(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.put(t, "a")
	h.Close()
	p.nodes[0].crash(true, 0)
	h2 := p.nodes[1].open()
	h2.want(t, "a")
	h2.Close()
	p.nodes[1].crash(true, 0)
	p.nodes[2].crash(true, 0)
	p.nodes[1].start()
	p.nodes[2].start()
	p.nodes[2].open().want(t, "a")
}

// A write that only a minority has, and that a takeover did not see, must not
// come back when that minority does.
func TestHazardGhostWrite(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "kept"))
	eventually(t, "all members", func() bool { return h.Status()[1].Durable >= 2 && h.Status()[2].Durable >= 2 })
	p.net.Isolate(p.nodes[0].id)
	ghost, err := h.Propose(EntryData, []byte("ghost"))
	if err != nil {
		t.Fatal(err)
	}
	h.Sync(ghost)
	h.Kick()
	eventually(t, "the ghost in the local journal", func() bool {
		gs := p.nodes[0].acc.Groups()
		return gs[0].Last >= ghost
	})
	h2 := p.nodes[1].open() // nodes 1 and 2 promise
	h2.want(t, "kept")
	h2.Close()
	h.Close()
	// Now the second holder's node dies and the first one's comes back.
	p.nodes[1].crash(false, 0)
	p.net.Rejoin(p.nodes[0].id)
	h3, err := p.nodes[0].tryOpen(nil)
	if err != nil {
		t.Fatal(err)
	}
	h3.want(t, "kept")
	h3.flush(t, h3.put(t, "new"))
	h3.Close()
	p.nodes[1].start()
	p.nodes[2].open().want(t, "kept new")
}

func TestFencedHolderCannotCommit(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	old := p.nodes[0].open()
	old.flush(t, old.put(t, "a"))
	h := p.nodes[1].open() // its node says that it is at work: but nobody asks about leases here
	h.want(t, "a")
	slot, err := old.Propose(EntryData, []byte("late"))
	if err == nil {
		old.Sync(slot)
		old.Kick()
	}
	old.wait(t, "fencing", func() bool { return old.fenced != nil })
	if *old.fenced != h.Ballot() {
		t.Fatalf("fenced by %v, not %v", old.fenced, h.Ballot())
	}
	if err == nil && old.Durable() >= slot {
		t.Fatal("a fenced holder committed")
	}
	_, err = old.Propose(EntryData, []byte("later"))
	wantKind(t, err, fault.Fenced)
	h.flush(t, h.put(t, "b"))
	h.Close()
	p.nodes[2].open().want(t, "a b")
}

func TestPrepareIsRefusedWhileTheHolderMayLive(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	for _, n := range p.nodes {
		n.mayLive = func(ident.NodeID) bool { return true }
	}
	h := p.nodes[0].open()
	h.put(t, "a")
	_, err := p.nodes[1].tryOpen(nil)
	wantKind(t, err, fault.Busy)
	if fe := err.(*fault.Error); fe.Subject != p.nodes[0].id.String() {
		t.Fatalf("busy names %q", fe.Subject)
	}
	h.flush(t, h.put(t, "b")) // not disturbed
	forced, err := p.nodes[1].tryOpen(func(c *ProposerConfig) { c.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	forced.want(t, "a b")
	h.Kick()
	// A holder that let go consents, without force.
	forced.Close()
	p.nodes[2].open().want(t, "a b")
}

func TestMemberThatWasDownCatchesUp(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	p.nodes[2].crash(false, 0)
	slot := h.put(t, "a", "b", "c")
	h.flush(t, slot)
	p.nodes[2].start()
	eventually(t, "catching up", func() bool { return h.Status()[2].Durable >= slot })
	h.Close()
	p.nodes[1].crash(true, 0)
	p.nodes[2].open().want(t, "a b c")
}

func TestMemberFarBehindIsInstalled(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	p.nodes[2].crash(false, 0)
	slot := h.put(t, "a", "b", "c")
	h.flush(t, slot)
	ckpt, err := h.Checkpoint(slot-1, []byte("ab"))
	if err != nil {
		t.Fatal(err)
	}
	h.wait(t, "checkpoint", func() bool { return h.durable >= ckpt })
	eventually(t, "truncation", func() bool { return p.nodes[0].acc.Groups()[0].UpTo == slot-1 })
	p.nodes[2].start()
	last := h.put(t, "d")
	h.flush(t, last)
	eventually(t, "install", func() bool { return h.Status()[2].Durable >= last })
	h.Close()
	p.nodes[1].crash(true, 0)
	p.nodes[0].crash(true, 0)
	p.nodes[1].start()
	h2 := p.nodes[2].open()
	h2.want(t, "c d")
	if string(h2.rec.Checkpoint.Value) != "ab" || h2.rec.Checkpoint.UpTo != slot-1 {
		t.Fatalf("checkpoint %+v", h2.rec.Checkpoint)
	}
}

func TestVoterThatMissedTheBirthIsInstalled(t *testing.T) {
	p := newTestPool(t, 3)
	for _, n := range p.nodes[:2] {
		if err := n.acc.Create(testGroup, p.config(3), nil); err != nil {
			t.Fatal(err)
		}
	}
	p.reach(p.nodes[0], p.nodes[1])
	h := p.nodes[0].open()
	slot := h.put(t, "a")
	h.flush(t, slot)
	eventually(t, "install", func() bool { return h.Status()[2].Durable >= slot })
}

// A wiped disk is another brick: it does not vote in the old one's name.
func TestWipedDiskDoesNotVote(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	p.nodes[2].crash(false, 0)
	h.flush(t, h.put(t, "a"))
	h.Close()
	p.nodes[1].crash(true, 0)
	old := p.nodes[1].brick
	p.nodes[1].brick = ident.BrickID{0xee}
	p.nodes[1].journal, p.nodes[1].stable = newEmpty()
	p.nodes[1].start()
	p.nodes[2].start()
	p.nodes[0].crash(false, 0)
	// Node 1 lost its copy; node 2 never had "a". Together they are no majority.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	th := &testHolder{}
	_, _, err := Open(ctx, p.nodes[2].config(th))
	wantKind(t, err, fault.Unavailable)
	if gs := p.nodes[1].acc.Groups(); len(gs) != 0 {
		t.Fatalf("the new brick took up %v of %v", gs, old)
	}
	p.nodes[0].start()
	p.nodes[2].open().want(t, "a")
}

func TestBirthIsIdempotentAndDropIsForEver(t *testing.T) {
	p := newTestPool(t, 1)
	p.create(1)
	p.create(1)
	a := p.nodes[0].acc
	wantKind(t, a.Create(testGroup, p.config(1), []byte("other")), fault.Exists)
	wantKind(t, a.Create(ident.GroupID{9}, Config{Version: 1, Members: []Member{{Node: ident.NodeID{1}}}}, nil), fault.NotFound)
	wantKind(t, a.Create(ident.GroupID{9}, Config{Version: 1}, nil), fault.Invalid)
	h := p.nodes[0].open()
	h.put(t, "a")
	if err := a.Drop(testGroup); err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(testGroup); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Propose(EntryData, []byte("b")); err != nil {
		t.Fatal(err)
	}
	h.Kick()
	h.Close()
	for range 2 {
		wantKind(t, a.Create(testGroup, p.config(1), []byte("birth")), fault.Conflict)
		_, err := p.nodes[0].tryOpen(nil)
		wantKind(t, err, fault.NotFound)
		if len(a.Groups()) != 0 {
			t.Fatal("a dropped group is listed")
		}
		p.nodes[0].crash(false, 0)
		p.nodes[0].start()
		a = p.nodes[0].acc
	}
}

func TestHolderNamesTheHighestPromise(t *testing.T) {
	p := newTestPool(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	seeds := []ident.NodeID{p.nodes[1].id}
	p.reach(p.nodes[2], p.nodes[1])
	_, _, err := Holder(ctx, p.nodes[2].link, seeds, testGroup)
	wantKind(t, err, fault.NotFound)
	p.create(3)
	h := p.nodes[0].open()
	b, c, err := Holder(ctx, p.nodes[2].link, seeds, testGroup)
	if err != nil || b != h.Ballot() || len(c.Members) != 3 {
		t.Fatalf("%v %v %v", b, c, err)
	}
}

// Openers at once: all end. One that met another's promise may have ended the
// holder that came before and then given up itself; whoever is next holds it.
func TestDuellingOpenersEnd(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	for _, n := range p.nodes {
		for _, o := range p.nodes {
			p.reach(n, o)
		}
	}
	type end struct {
		h   *testHolder
		err error
	}
	ends := make(chan end)
	for _, n := range p.nodes {
		go func() {
			h, err := n.tryOpen(nil)
			ends <- end{h, err}
		}()
	}
	var best *testHolder
	for range p.nodes {
		if e := <-ends; e.err == nil && (best == nil || best.Ballot().Less(e.h.Ballot())) {
			best = e.h
		}
	}
	if best != nil && best.serves(t) {
		return
	}
	next := p.nodes[0].open()
	next.flush(t, next.put(t, "b"))
}

// serves writes something durably; false if another opener's ballot keeps it from that.
func (h *testHolder) serves(t *testing.T) bool {
	t.Helper()
	slot, err := h.Propose(EntryData, []byte("a"))
	if err != nil {
		wantKind(t, err, fault.Fenced)
		return false
	}
	h.Kick()
	h.wait(t, "end", func() bool { return h.fenced != nil || h.received >= slot })
	h.mu.Lock()
	fenced := h.fenced != nil
	h.mu.Unlock()
	if !fenced {
		h.flush(t, slot)
	}
	return !fenced
}

// Whoever waits for an opening is told that it gets on: a long log takes its time.
func TestOpeningTellsThatItGetsOn(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	h := p.nodes[0].open()
	text := strings.Repeat("x", 64<<10)
	for range 5 {
		h.flush(t, h.put(t, slices.Repeat([]string{text}, 32)...))
	}
	h.Close()
	p.nodes[0].crash(true, 0)
	var told atomic.Int64
	h, err := p.nodes[1].tryOpen(func(c *ProposerConfig) { c.OnOpening = func() { told.Add(1) } })
	if err != nil {
		t.Fatal(err)
	}
	n := told.Load()
	if n < 5 { // of 10 MiB, a few at a time
		t.Errorf("told %d times", n)
	}
	h.flush(t, h.put(t, "more"))
	if told.Load() != n {
		t.Error("told after it was open")
	}
}
