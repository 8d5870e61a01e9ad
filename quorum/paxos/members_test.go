package paxos

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
)

func testMember(i int, r Role) Member {
	return Member{Node: ident.NodeID{byte(i)}, Brick: ident.BrickID{byte(i)}, Role: r}
}

func testConfig(version uint64, ms ...Member) Config { return Config{Version: version, Members: ms} }

// {1, 2, 3} has replaced 3 by 4, through 2 and 3. Then 3 forgot the group and came again, from a
// checkpoint before that. Together with 1, which knows no better, it must not open
// the group: 2 and 4 have gone on.
func TestHazardRemovedMemberVotes(t *testing.T) {
	v5 := testConfig(5, testMember(1, Voter), testMember(2, Voter), testMember(3, Voter))
	v6 := testConfig(6, testMember(1, Voter), testMember(2, Voter), testMember(4, Voter))
	old := Checkpoint{UpTo: 9, Config: v5}
	left := NewAcceptor(Hard{Checkpoint: old})
	holder := Ballot{Epoch: 3, Node: ident.NodeID{1}}
	tomb, ok := left.Retire(testMember(3, Voter), holder, v6)
	if !ok {
		t.Fatal("it stays")
	}
	hard, status := tomb.Revive(holder, old, false)
	if status != OK {
		t.Fatal(status)
	}
	b := Ballot{Epoch: 4, Node: ident.NodeID{9}}
	o := NewOpening(b)
	for _, a := range []struct {
		i    int
		hard Hard
	}{{1, Hard{Checkpoint: old}}, {3, hard}} {
		acc := NewAcceptor(a.hard)
		if s, _ := acc.Prepare(b, true, false); s != OK {
			t.Fatal(s)
		}
		p := acc.Promise()
		o.Add(testMember(a.i, Voter), &p)
	}
	if o.Done() {
		t.Fatal("a member that had left, and one that was away, open the group")
	}
	known := NewAcceptor(Hard{Checkpoint: Checkpoint{UpTo: 20, Config: v6}})
	_, _ = known.Prepare(b, true, false)
	p := known.Promise()
	o.Add(testMember(2, Voter), &p)
	if !o.Done() || o.Plan().Checkpoint.Config.Version != 6 {
		t.Fatal("members 1 and 2 are a majority of 1, 2 and 4")
	}
}

// The word to leave comes late: a later holder feeds the copy, or it knows better.
func TestHazardLateWordToLeave(t *testing.T) {
	v2 := testConfig(2, testMember(1, Voter), testMember(2, Voter))
	v4 := testConfig(4, testMember(1, Voter), testMember(3, Voter))
	low, high := Ballot{Epoch: 1, Node: ident.NodeID{1}}, Ballot{Epoch: 2, Node: ident.NodeID{1}}
	three := testMember(3, Voter)
	for _, c := range []struct {
		what string
		hard Hard
		by   Ballot
	}{
		{"by a holder that is over", Hard{Promised: high, Checkpoint: Checkpoint{Config: v2}}, low},
		{"of an older configuration", Hard{Promised: low, Checkpoint: Checkpoint{UpTo: 7, Config: v4}}, low},
		{"of the one by which it had left before", Hard{Promised: low, Since: 2, Checkpoint: Checkpoint{Config: testConfig(1, three)}}, low},
	} {
		if _, ok := NewAcceptor(c.hard).Retire(three, c.by, v2); ok {
			t.Errorf("it leaves on the word %s", c.what)
		}
	}
	a := NewAcceptor(Hard{Promised: low, Checkpoint: Checkpoint{Config: testConfig(1, three)}})
	if _, ok := a.Retire(three, high, testConfig(2, three)); ok {
		t.Error("it leaves by a configuration that names it")
	}
	if tomb, ok := a.Retire(three, high, v2); !ok || tomb.Promised != low || tomb.Config.Version != 2 {
		t.Errorf("%+v %v", tomb, ok)
	}
}

// With a witness, both members with data are waited for while they keep up: what is
// acknowledged is not on one copy alone. One that is silent is not waited for.
func TestHazardOneCopyAndAWitness(t *testing.T) {
	x := newTrio(t)
	x.c.Members[2].Role = Witness
	for i := range x.as {
		x.as[i] = NewAcceptor(Hard{Checkpoint: Checkpoint{Config: x.c}, Witness: i == 2})
	}
	h := x.open(1, 0, 0, 1)
	for i := range 3 {
		h.feed(i, -1)
	}
	h.propose("a")
	h.feed(0, -1)
	h.feed(2, -1)
	if got := h.core.Received(); got != 1 {
		t.Fatalf("received %d with one copy of the data and another member in reach", got)
	}
	h.feed(1, -1)
	if h.core.Received() != 2 || h.core.Commit() != 2 {
		t.Fatalf("received %d, chosen %d", h.core.Received(), h.core.Commit())
	}
	h.propose("b")
	h.feed(0, -1)
	h.feed(2, -1)
	if _, ok := h.core.Pull(1); !ok { // sent, and not answered for two ticks
		t.Fatal("nothing to send")
	}
	h.core.Tick()
	if !h.core.Tick() || h.core.Commit() != 3 {
		t.Fatalf("chosen %d without the silent member", h.core.Commit())
	}
	if len(x.js[2].recs) == 0 {
		t.Fatal("the witness has nothing")
	}
	for _, r := range x.js[2].recs {
		if r.EntryKind == EntryData && len(r.Body) > 0 {
			t.Fatalf("the witness has the data of slot %d", r.Slot)
		}
	}
}

// What only a witness shows is waited for if it may have been chosen, and passed over if not.
func TestWitnessAloneShowsASlot(t *testing.T) {
	c := testConfig(1, testMember(1, Voter), testMember(2, Voter), testMember(3, Witness))
	b := Ballot{Epoch: 1, Node: ident.NodeID{1}}
	promise := func(to uint64, witness bool) *Promise {
		p := &Promise{Checkpoint: Checkpoint{Config: c}, Witness: witness}
		if to > 0 {
			p.Runs = []Run{{1, to, b}}
		}
		return p
	}
	o := NewOpening(Ballot{Epoch: 2})
	o.Add(c.Members[1], promise(4, false))
	o.Add(c.Members[2], promise(5, true))
	if o.Done() {
		t.Fatal("slot 5 may be chosen by members 1 and 3")
	}
	o.Add(c.Members[0], promise(4, false))
	if !o.Done() || o.Plan().Recovered != 4 {
		t.Fatal("slot 5 is not chosen: members 1 and 2 do not have it")
	}
	o.Remove(c.Members[1])
	o.Add(c.Members[0], promise(5, false))
	plan := o.Plan()
	if !o.Done() || plan.Recovered != 5 || len(plan.Segments) != 1 || len(plan.Segments[0].Sources) != 1 {
		t.Fatalf("member 1 has it: %+v", plan)
	}
}

func TestConfigurationsFollowOneByOne(t *testing.T) {
	c := testConfig(1, testMember(1, Voter), testMember(2, Voter))
	for _, next := range []Config{
		testConfig(3, testMember(1, Voter), testMember(2, Voter), testMember(3, Voter)),
		testConfig(2, testMember(1, Voter), testMember(2, Voter)),
		testConfig(2, testMember(3, Voter), testMember(4, Voter)),
		testConfig(2, testMember(1, Voter), testMember(2, Voter), testMember(3, Voter), testMember(4, Voter)),
		testConfig(2, testMember(1, Voter), testMember(2, Witness), testMember(3, Voter)),
		testConfig(2, testMember(1, Learner), testMember(2, Voter)),
	} {
		if c.follows(next) == nil {
			t.Errorf("%v follows %v", next, c)
		}
	}
	for _, next := range []Config{
		testConfig(2, testMember(1, Voter)),
		testConfig(2, testMember(1, Voter), testMember(3, Voter)),
		testConfig(2, testMember(1, Voter), testMember(2, Voter), testMember(3, Witness)),
		testConfig(2, testMember(1, Voter), testMember(3, Witness)),
	} {
		if err := c.follows(next); err != nil {
			t.Errorf("%v does not follow %v: %v", next, c, err)
		}
	}
}

// A forced configuration makes those in the log void, and phase 1 asks it alone.
func TestForcedConfigurationVoidsTheLog(t *testing.T) {
	x := newTrio(t)
	h := x.open(1, 0, 0, 1)
	h.feed(0, -1)
	next := Config{Version: 2, Members: x.c.Members[:2]}
	if _, err := h.core.Propose(EntryConfig, AppendConfig(nil, next)); err != nil {
		t.Fatal(err)
	}
	h.feed(0, -1)
	m := x.c.Members[0]
	a := x.as[0]
	f := Config{Version: 100, Members: []Member{m}}
	hard, status := a.Force(m, Ballot{Epoch: 50, Node: ident.NodeID{9}}, f)
	if status != OK {
		t.Fatal(status)
	}
	a.Forced(hard)
	if a.Config().Version != 100 || a.Settled().Version != 100 {
		t.Fatalf("configuration %v", a.Config())
	}
	if _, s := a.Force(m, Ballot{Epoch: 49}, Config{Version: 101, Members: f.Members}); s != Fenced {
		t.Fatal(s)
	}
	h2 := x.open(51, 1, 0)
	h2.feed(0, -1)
	if h2.core.Commit()+1 != h2.core.Next() || h2.core.Config().Version != 100 || h2.core.Changing() {
		t.Fatalf("chosen %d of %d by %v", h2.core.Commit(), h2.core.Next()-1, h2.core.Config())
	}
}

// A member that was given up answers the first to open the group since, perhaps from the
// same node. What it has beyond the survivor was given up, however it came to have it.
func TestHazardWhatWasGivenUpComesBack(t *testing.T) {
	const forced = 7 * ForcedVersions
	old := testConfig(3, testMember(1, Voter), testMember(2, Voter), testMember(4, Voter))
	one := testConfig(forced+3, testMember(1, Voter))
	two := testConfig(forced+3, testMember(1, Voter), testMember(2, Voter))
	b := func(epoch uint64) Ballot { return Ballot{Epoch: epoch, Node: ident.NodeID{byte(epoch)}} }
	survivor := func(c Config) *Promise {
		return &Promise{Checkpoint: Checkpoint{80, nil, c}, Runs: []Run{{81, 84, b(1)}}, Commit: 82}
	}
	for _, c := range []struct {
		name            string
		in              Config
		other           int
		has             *Promise
		upTo, recovered uint64
	}{
		{"an entry more", one, 4, &Promise{Checkpoint: Checkpoint{80, nil, old}, Runs: []Run{{81, 85, b(1)}}, Commit: 85}, 80, 84},
		{"another entry in its place", one, 4, &Promise{Checkpoint: Checkpoint{80, nil, old}, Runs: []Run{{81, 84, b(2)}}}, 80, 84},
		{"a later checkpoint", one, 4, &Promise{Checkpoint: Checkpoint{100, nil, old}, Commit: 100}, 80, 84},
		{"an opening that found less", one, 4, &Promise{Checkpoint: Checkpoint{80, nil, old}, Cuts: []Cut{{b(2), 82}}, Commit: 82}, 80, 84},
		{"what came afterwards", one, 4, &Promise{Checkpoint: Checkpoint{80, nil, old}, Runs: []Run{{81, 86, b(forced + 1)}, {87, 90, b(1)}}}, 80, 86},
		{"a later checkpoint of one who goes on too", two, 2, &Promise{Checkpoint: Checkpoint{100, nil, old}, Runs: []Run{{101, 103, b(1)}}}, 100, 103},
	} {
		o := NewOpening(b(forced + 9))
		o.Add(testMember(c.other, Voter), c.has)
		o.Add(testMember(1, Voter), survivor(c.in))
		if !o.Done() {
			t.Errorf("%s: it waits for %v", c.name, o.Ask())
			continue
		}
		plan := o.Plan()
		if plan.Checkpoint.UpTo != c.upTo || !plan.Checkpoint.Config.Equal(c.in) || plan.Recovered != c.recovered {
			t.Errorf("%s: goes on from slot %d after checkpoint %d with %v", c.name, plan.Recovered, plan.Checkpoint.UpTo, plan.Checkpoint.Config)
		}
		if n := len(plan.Segments); n == 0 || plan.Segments[n-1].To != c.recovered {
			t.Errorf("%s: %+v", c.name, plan.Segments)
		}
		for _, s := range plan.Segments {
			if c.in.Equal(one) && s.Ballot.Epoch < forced && (len(s.Sources) != 1 || !s.Sources[0].Same(testMember(1, Voter))) {
				t.Errorf("%s: %+v", c.name, s)
			}
		}
	}
}
