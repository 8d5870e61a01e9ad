package paxos

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
)

// memJournal keeps records and can lose its end.
type memJournal struct {
	recs []Record
	fail error
}

func (j *memJournal) Append(r *Record) (int64, int, error) {
	if j.fail != nil {
		return 0, 0, j.fail
	}
	c := *r
	c.Body = append([]byte(nil), r.Body...)
	j.recs = append(j.recs, c)
	return int64(len(j.recs) - 1), 1, nil
}

func (j *memJournal) replay(t *testing.T, h Hard) *Acceptor {
	t.Helper()
	r := NewReplayer(h)
	for i := range j.recs {
		if err := r.Apply(&j.recs[i], int64(i), 1); err != nil {
			t.Fatal(err)
		}
	}
	a, err := r.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// trio is three acceptors with their journals, without any network.
type trio struct {
	t  *testing.T
	as []*Acceptor
	js []*memJournal
	c  Config
}

func newTrio(t *testing.T) *trio {
	x := &trio{t: t, c: Config{Version: 1}}
	for i := range 3 {
		x.c.Members = append(x.c.Members, Member{Node: ident.NodeID{byte(i + 1)}, Brick: ident.BrickID{byte(i + 1)}})
	}
	for range 3 {
		x.as = append(x.as, NewAcceptor(Hard{Checkpoint: Checkpoint{Config: x.c}}))
		x.js = append(x.js, &memJournal{})
	}
	return x
}

// holder is a proposer and the messages it wants to send, by peer.
type scripted struct {
	x    *trio
	core *Proposer
	sent []string
}

// open runs phase 1 of a ballot at the named acceptors.
func (x *trio) open(epoch, node int, at ...int) *scripted {
	x.t.Helper()
	b := Ballot{Epoch: uint64(epoch), Node: ident.NodeID{byte(node + 1)}}
	o := NewOpening(b)
	for _, i := range at {
		if s, _ := x.as[i].Prepare(b, true, true); s != OK {
			x.t.Fatalf("prepare %v at %d: %v", b, i, s)
		}
		p := x.as[i].Promise()
		o.Add(Member{Node: ident.NodeID{byte(i + 1)}, Brick: ident.BrickID{byte(i + 1)}}, &p)
	}
	if !o.Done() {
		x.t.Fatal("no majority promised")
	}
	plan := o.Plan()
	var entries []Entry
	for _, seg := range plan.Segments {
		from := int(seg.Sources[0].Node[0]) - 1
		for s := seg.From; s <= seg.To; s++ {
			w, _ := x.as[from].Locate(s)
			entries = append(entries, Entry{Slot: s, Kind: w.Kind, Body: x.js[from].recs[w.Pos].Body})
		}
	}
	core, err := NewProposer(plan, entries)
	if err != nil {
		x.t.Fatal(err)
	}
	return &scripted{x: x, core: core}
}

// feed connects a peer and carries messages to it and its answers back, at most
// n (all if negative); what was accepted is durable at once.
func (h *scripted) feed(i, n int) {
	h.x.t.Helper()
	h.sent = nil
	if !h.core.View(i).Connected {
		h.core.Connect(i, true)
	}
	a, j := h.x.as[i], h.x.js[i]
	for ; n != 0; n-- {
		out, ok := h.core.Pull(i)
		if !ok {
			return
		}
		b := h.core.Ballot()
		status := OK
		switch out.Kind {
		case OutProbe:
			h.sent = append(h.sent, "probe")
			s, st := a.State(b, out.Bare)
			if s == Fenced {
				h.core.OnFenced(a.Promised())
				return
			}
			h.core.OnState(i, out.Stream, s, st)
			continue
		case OutOpen:
			h.sent = append(h.sent, "open")
			status, _ = a.Open(b, out.Cuts, j)
		case OutAccept:
			h.sent = append(h.sent, fmt.Sprintf("accept %d", out.Slot))
			status, _ = a.Accept(&Accept{Ballot: b, Commit: out.Commit, Slot: out.Slot, Kind: out.EntryKind, Body: out.Body, Bare: out.Bare}, j)
		case OutRenew:
			for _, r := range out.Runs {
				h.sent = append(h.sent, fmt.Sprintf("renew %d-%d", r.From, r.To))
			}
			status, _ = a.Renew(&Renew{Ballot: b, Commit: out.Commit, Runs: out.Runs}, j)
		case OutSync:
			h.sent = append(h.sent, "sync")
		case OutInstall:
			h.sent = append(h.sent, fmt.Sprintf("install %d", out.Checkpoint.UpTo))
			hard := a.Hard()
			hard.Checkpoint = *out.Checkpoint
			a.Persisted(hard)
			h.core.OnInstalled(i, OK)
			continue
		}
		a.Check()
		if status == Fenced {
			h.core.OnFenced(a.Promised())
			return
		}
		a.Synced(a.Opened(), a.Received())
		h.core.OnAccepted(i, out.Stream, status, a.Received(), a.Durable())
		h.core.Check()
	}
}

func (h *scripted) propose(texts ...string) {
	h.x.t.Helper()
	for _, s := range texts {
		if _, err := h.core.Propose(EntryData, []byte(s)); err != nil {
			h.x.t.Fatal(err)
		}
	}
}

// tail is the data from the checkpoint on.
func (h *scripted) tail() string {
	var s []string
	for slot := h.core.Base() + 1; slot < h.core.Next(); slot++ {
		if e := h.core.Entry(slot); e.Kind == EntryData {
			s = append(s, string(e.Body))
		}
	}
	return strings.Join(s, " ")
}

func (h *scripted) want(tail string, sent ...string) {
	h.x.t.Helper()
	if h.tail() != tail {
		h.x.t.Fatalf("the tail is %q, not %q", h.tail(), tail)
	}
	if sent != nil && strings.Join(h.sent, ", ") != strings.Join(sent, ", ") {
		h.x.t.Fatalf("sent %q, not %q", h.sent, sent)
	}
}

func TestNewGroupIsProbedOpenedAndFed(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.feed(0, -1)
	h.want("", "probe", "open", "accept 1")
	h.propose("a", "b")
	h.feed(0, -1)
	h.want("a b", "accept 2", "accept 3")
	if h.core.Received() != 0 {
		t.Fatal("one of three is no majority")
	}
	h.feed(1, -1)
	if h.core.Received() != 3 || h.core.Commit() != 3 {
		t.Fatalf("received %d chosen %d", h.core.Received(), h.core.Commit())
	}
}

// What a member has already is taken again by its ballot, not sent again.
func TestRenewAvoidsResending(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.propose("a", "b", "c")
	h.feed(0, -1)
	h.feed(1, 4) // probe, open, two entries: up to "a"
	h2 := x.open(2, 1, 0, 1)
	h2.feed(0, -1)
	h2.want("a b c", "probe", "open", "renew 1-2", "renew 3-4", "accept 5")
	h2.feed(1, -1)
	h2.want("a b c", "probe", "open", "renew 1-2", "accept 3", "accept 4", "accept 5")
	h2.feed(2, -1)
	h2.want("a b c", "probe", "open", "accept 1", "accept 2", "accept 3", "accept 4", "accept 5")
	if h2.core.Commit() != 5 {
		t.Fatalf("chosen %d", h2.core.Commit())
	}
	h2.feed(2, -1)
	h2.want("a b c")
	h.feed(0, 1)
	h.propose("late")
	h.feed(0, -1)
	if h.core.Fenced() != h2.core.Ballot() {
		t.Fatal("the old holder is not fenced")
	}
}

// A stale entry looks like one that a dead opener learnt in its slot; only the
// cut of the opening before tells that it is a ghost. Two openers die in turn.
func TestGhostIsKnownByAnOlderCut(t *testing.T) {
	x := newTrio(t)
	h1 := x.open(1, 0, 0, 1)
	h1.feed(0, -1)
	h1.feed(1, -1)
	h1.propose("ghost") // slot 2, at member 0 alone
	h1.feed(0, -1)

	h2 := x.open(2, 1, 1, 2) // does not see it, and completes
	h2.want("")
	h2.feed(1, -1)
	h2.feed(2, -1)
	if h2.core.Commit() != 2 { // slot 2 is its own opening
		t.Fatalf("chosen %d", h2.core.Commit())
	}
	h3 := x.open(3, 1, 1, 2) // its opening is slot 3, at member 1 alone
	h3.propose("dies with h3")
	h3.feed(1, -1)
	h4 := x.open(4, 2, 1, 2) // learns h3's, of which member 2 has nothing; opens there and dies
	h4.want("dies with h3")
	h4.feed(2, 3)
	if got := x.as[2].Received(); got >= 4 {
		t.Fatalf("member 2 has slot %d", got)
	}
	h5 := x.open(5, 0, 0, 2)
	h5.want("")
	h5.feed(0, -1)
	h5.feed(2, -1)
	h5.want("")
}

func TestConfigurationStopsWhatFollows(t *testing.T) {
	x := newTrio(t)
	x.c.Members = x.c.Members[:2]
	for i := range x.as {
		x.as[i] = NewAcceptor(Hard{Checkpoint: Checkpoint{Config: x.c}})
	}
	third := Member{Node: ident.NodeID{3}, Brick: ident.BrickID{3}}
	h := x.open(1, 0, 0, 1)
	h.feed(0, -1)
	h.feed(1, -1)
	h.core.AddLearner(third)
	h.feed(2, -1)
	if !h.core.CaughtUp(2) {
		t.Fatal("the learner has not caught up")
	}
	next := Config{Version: 2, Members: append(append([]Member(nil), x.c.Members...), third)}
	slot, err := h.core.Propose(EntryConfig, AppendConfig(nil, next))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.core.Propose(EntryConfig, AppendConfig(nil, next)); err == nil {
		t.Fatal("two changes at once")
	}
	h.core.Sync(slot)
	h.propose("after")
	h.feed(0, -1)
	h.feed(2, -1)
	if h.core.Commit() >= slot || x.as[0].Last() != slot {
		t.Fatalf("chosen %d, member 0 has %d: the old majority is both members", h.core.Commit(), x.as[0].Last())
	}
	h.feed(1, -1)
	if h.core.Commit() != slot || h.core.Config().Version != 2 {
		t.Fatalf("chosen %d, configuration %d", h.core.Commit(), h.core.Config().Version)
	}
	h.feed(0, -1)
	h.feed(2, -1) // now these two are a majority
	if h.core.Commit() != slot+1 {
		t.Fatalf("chosen %d", h.core.Commit())
	}
	// Members 0 and 2 know that it is chosen: member 1, of the old pair, is not needed.
	h2 := x.open(2, 2, 0, 2)
	h2.want("after")
}

func TestCheckpointTruncatesAndInstalls(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.propose("a", "b", "c")
	h.feed(0, -1)
	h.feed(1, -1)
	slot, err := h.core.Propose(EntryCheckpoint, AppendCheckpointBody(nil, 3, []byte("ab")))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := x.as[0].Due(); ok {
		t.Fatal("due before it is chosen")
	}
	h.feed(0, -1)
	h.feed(1, -1)
	if h.core.Commit() != slot || h.core.Base() != 3 {
		t.Fatalf("chosen %d, tail from %d", h.core.Commit(), h.core.Base())
	}
	h.propose("d")
	h.feed(0, -1) // carries the commit
	c, ok := x.as[0].Due()
	if !ok || c.UpTo != 3 || string(c.Value) != "ab" {
		t.Fatalf("due: %+v %v", c, ok)
	}
	hard := x.as[0].Hard()
	hard.Checkpoint = c
	x.as[0].Persisted(hard)
	x.as[0].Check()
	h.feed(2, -1)
	h.want("c d", "probe", "install 3", "probe", "open", "accept 4", "accept 5", "accept 6")
	h2 := x.open(2, 2, 0, 2)
	h2.want("c d")
	if a := x.js[0].replay(t, hard); a.Checkpoint().UpTo != 3 || a.Last() != 6 {
		t.Fatalf("replayed: %d to %d", a.Checkpoint().UpTo, a.Last())
	}
}

// A failed append changes nothing.
func TestJournalErrorLeavesTheAcceptorAsItWas(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.propose("a", "b")
	h.feed(0, 4)
	x.js[0].fail = fmt.Errorf("full")
	a := x.as[0]
	before := fmt.Sprintf("%+v", a.Promise())
	b := h.core.Ballot()
	if s, err := a.Accept(&Accept{Ballot: b, Slot: a.Last() + 1, Body: []byte("x")}, x.js[0]); s != Full || err == nil {
		t.Fatalf("%v %v", s, err)
	}
	higher := testBallot(9)
	if s, err := a.Open(higher, []Cut{{higher, 5}}, x.js[0]); s != Full || err == nil {
		t.Fatalf("%v %v", s, err)
	}
	if after := fmt.Sprintf("%+v", a.Promise()); after != before || a.Promised() != b {
		t.Fatalf("%s\nbecame\n%s", before, after)
	}
}

func TestReplayRefusesAHole(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.propose("a", "b", "c")
	h.feed(0, -1)
	j := x.js[0]
	j.recs = append(j.recs[:2], j.recs[3:]...) // slot 2 is gone
	r := NewReplayer(x.as[0].Hard())
	for i := range j.recs {
		if err := r.Apply(&j.recs[i], int64(i), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Finish(); err == nil {
		t.Fatal("a log with a hole was taken up")
	}
}
