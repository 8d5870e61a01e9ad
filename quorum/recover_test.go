package quorum

import (
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Two of three are gone for good. The third goes on by the word of a person; when
// the two come back after all, they get nowhere and drop what they have.
func TestHazardLossOfQuorumIsNotTheEnd(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.flush(t, h.put(t, "a"))
	p.nodes[2].crash(true, 0)
	h.flush(t, h.put(t, "b"))
	eventually(t, "node 1 in step", func() bool { return h.Status()[1].Durable == h.Durable() })
	h.Close()
	p.nodes[0].crash(true, 0)
	p.nodes[2].start()
	p.nodes[2].crash(true, 0)
	p.reach(p.nodes[3], p.nodes[1])

	ss, err := Survivors(within(t), p.nodes[3].link, p.ids(), testGroup)
	if err != nil || len(ss) != 1 || ss[0].Member != p.nodes[1].member() || ss[0].Durable != ss[0].Last || ss[0].Last < 3 {
		t.Fatalf("survivors %+v %v", ss, err)
	}
	one := []Member{p.nodes[1].member()}
	_, err = Recover(within(t), p.nodes[3].link, p.ids(), testGroup, p.nodes[3].member(), one, p.nodes[3].boot)
	wantKind(t, err, fault.Invalid)
	r, err := Recover(within(t), p.nodes[3].link, p.ids(), testGroup, one[0], one, p.nodes[3].boot)
	if err != nil || r.Kept != ss[0].Last || r.Seen != r.Kept {
		t.Fatalf("%+v %v", r, err)
	}
	p.nodes[1].crash(true, 0) // it is durable
	p.nodes[1].start()
	p.reach(p.nodes[3], p.nodes[1])
	h2 := p.nodes[3].open()
	h2.want(t, "a b")
	if b := h2.Ballot(); b.Epoch <= r.Ballot.Epoch-1 || h2.rec.Config.Voters() != 1 {
		t.Fatalf("ballot %v, configuration %v", b, h2.rec.Config)
	}
	if err := h2.Join(within(t), p.nodes[3].member()); err != nil {
		t.Fatal(err)
	}
	h2.flush(t, h2.put(t, "c"))

	// The others come back, first without being able to meet a member.
	p.apart(true, []int{0, 2}, []int{1, 3})
	p.nodes[0].start()
	p.nodes[2].start()
	p.reach(p.nodes[0], p.nodes[2])
	_, err = openFor(p.nodes[0], func(c *ProposerConfig) { c.AtLeast = r.Config.Version })
	wantKind(t, err, fault.Unavailable)
	p.apart(false, []int{0, 2}, []int{1, 3})
	p.nodes[0].left()
	p.nodes[2].left()
	h2.flush(t, h2.put(t, "d"))
}

// A voter that missed the newest holder, and then got its checkpoint, has more than one that
// stopped half way through what that holder wrote.
func TestSurvivorWithTheNewestCheckpointComesFirst(t *testing.T) {
	met := func(node byte, epoch, upTo, last uint64) Survivor {
		return Survivor{Member: Member{Node: ident.NodeID{node}}, Opened: Ballot{Epoch: epoch}, UpTo: upTo, Last: last}
	}
	witness := met(9, 9, 900, 900)
	witness.Witness = true
	for _, c := range []struct {
		name string
		all  []Survivor
		want []byte
	}{
		{"the newest ballot", []Survivor{met(1, 42, 0, 300), met(2, 44, 0, 205)}, []byte{2, 1}},
		{"the longer log of it", []Survivor{met(1, 44, 0, 204), met(2, 44, 0, 205)}, []byte{2, 1}},
		{"a checkpoint beyond it", []Survivor{met(1, 42, 210, 210), met(2, 44, 190, 205), met(3, 43, 0, 400)}, []byte{1, 2, 3}},
		{"one that it has too", []Survivor{met(1, 42, 205, 205), met(2, 44, 190, 205)}, []byte{2, 1}},
		{"the newer of two", []Survivor{met(1, 41, 220, 220), met(2, 42, 210, 230), met(3, 44, 0, 205)}, []byte{1, 3, 2}},
		{"never a witness", []Survivor{witness, met(2, 44, 190, 205)}, []byte{2, 9}},
		{"nobody", nil, nil},
	} {
		best(c.all)
		var got []byte
		for _, s := range c.all {
			got = append(got, s.Member.Node[0])
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRecoveryIsRefusedWithAMajority(t *testing.T) {
	p := newTestPool(t, 3)
	p.create(3)
	p.nodes[0].crash(false, 0)
	p.reach(p.nodes[1], p.nodes[2])
	m := p.nodes[1].member()
	_, err := Recover(within(t), p.nodes[1].link, p.ids(), testGroup, m, []Member{m}, 1)
	wantKind(t, err, fault.Conflict)
	_, err = Survivors(within(t), p.nodes[1].link, p.ids(), [16]byte{99})
	wantKind(t, err, fault.NotFound)
}

// The members that were given up had, unseen, changed their configuration several
// times. The forced one is newer all the same.
func TestForcedConfigurationOutlivesItsRivals(t *testing.T) {
	p := newTestPool(t, 5)
	p.create(3)
	h := p.nodes[0].open()
	h.allDurable(t, h.put(t, "a"))
	p.nodes[2].crash(true, 0) // it knows the first configuration alone
	for range 2 {
		p.replace(h, p.nodes[1].member(), p.nodes[3].member())
		p.replace(h, p.nodes[3].member(), p.nodes[1].member())
	}
	h.flush(t, h.put(t, "lost"))
	h.Close()
	for _, n := range []int{0, 1, 3} {
		p.nodes[n].crash(true, 0)
	}
	p.nodes[2].start()
	p.reach(p.nodes[4], p.nodes[2])
	one := []Member{p.nodes[2].member()}
	if _, err := Recover(within(t), p.nodes[4].link, p.ids(), testGroup, one[0], one, p.nodes[4].boot); err != nil {
		t.Fatal(err)
	}
	h2 := p.nodes[4].open()
	h2.want(t, "a")
	for _, n := range []int{0, 1} {
		p.nodes[n].start()
		p.nodes[n].left()
	}
	h2.flush(t, h2.put(t, "b"))
}

// Those who were given up may have promised a ballot beyond the forced one, to
// somebody who had met that: whoever carried on with them beyond it would be obeyed by
// those who went on, and what these have would be cut off.
func TestForcedBallotIsNotOutbidByThoseGivenUp(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.allDurable(t, h.put(t, "a"))
	h.Close()
	p.nodes[0].crash(true, 0)
	p.nodes[1].crash(true, 0)
	p.reach(p.nodes[3], p.nodes[2])
	one := []Member{p.nodes[2].member()}
	r, err := Recover(within(t), p.nodes[3].link, p.ids(), testGroup, one[0], one, p.nodes[3].boot)
	if err != nil {
		t.Fatal(err)
	}
	h2 := p.nodes[3].open()
	h2.flush(t, h2.put(t, "b"))
	h2.Close()
	p.apart(true, []int{0, 1}, []int{2, 3})
	p.nodes[0].start()
	p.nodes[1].start()
	p.reach(p.nodes[0], p.nodes[1])
	beyond := prepareCall{group: testGroup, brick: p.nodes[1].brick, force: true,
		ballot: Ballot{Epoch: r.Ballot.Epoch + 10, Node: p.nodes[0].id, Boot: p.nodes[0].boot}}
	if _, err := p.nodes[0].link.Call(within(t), p.nodes[1].id, typePrepare, appendPrepare(nil, &beyond)); err != nil {
		t.Fatal(err)
	}
	_, err = openFor(p.nodes[0], func(*ProposerConfig) {})
	wantKind(t, err, fault.Unavailable)
	p.apart(false, []int{0, 1}, []int{2, 3})
	p.reach(p.nodes[0], p.nodes[2])
	h3 := p.nodes[0].open()
	h3.want(t, "a b")
	h3.flush(t, h3.put(t, "c"))
}

// apart cuts, or heals, the ways between the nodes of the one side and of the other.
func (p *testPool) apart(cut bool, one, other []int) {
	for _, a := range one {
		for _, b := range other {
			for _, w := range [][2]int{{a, b}, {b, a}} {
				if cut {
					p.net.Cut(p.nodes[w[0]].id, p.nodes[w[1]].id)
				} else {
					p.net.Heal(p.nodes[w[0]].id, p.nodes[w[1]].id)
				}
			}
		}
	}
}

// One that was given up comes back with a checkpoint of slots that the survivor never had, and
// is taken in again before it has learnt that it was given up. What is in these slots now
// is what came since.
func TestHazardGivenUpCheckpointIsNotTakenForOurs(t *testing.T) {
	p := newTestPool(t, 4)
	p.create(3)
	h := p.nodes[0].open()
	h.allDurable(t, h.put(t, "a"))
	p.nodes[2].crash(true, 0)
	for range 8 {
		h.flush(t, h.put(t, "lost"))
	}
	ckpt, err := h.Checkpoint(h.Durable(), []byte("lost"))
	if err != nil {
		t.Fatal(err)
	}
	h.flush(t, ckpt)
	eventually(t, "a checkpoint at node 1", func() bool {
		return p.nodes[1].acc.query(testGroup, ident.NodeID{}).upTo == ckpt-1
	})
	h.Close()
	p.nodes[0].crash(true, 0)
	p.nodes[1].crash(true, 0)
	p.nodes[2].start()
	p.reach(p.nodes[3], p.nodes[2])
	one := []Member{p.nodes[2].member()}
	if _, err := Recover(within(t), p.nodes[3].link, p.ids(), testGroup, one[0], one, p.nodes[3].boot); err != nil {
		t.Fatal(err)
	}
	h2 := p.nodes[3].open()
	h2.want(t, "a")
	for h2.Next() <= ckpt {
		h2.flush(t, h2.put(t, "b"))
	}
	want := h2.texts()
	for slot := h2.rec.Checkpoint.UpTo + uint64(len(h2.rec.Entries)) + 1; slot < h2.Next(); slot++ {
		want += " b"
	}
	p.nodes[1].belongDelay = time.Hour // it does not ask by itself
	p.nodes[1].start()
	p.reach(p.nodes[3], p.nodes[1])
	for _, n := range []int{1, 3} {
		if err := h2.Join(within(t), p.nodes[n].member()); err != nil {
			t.Fatal(err)
		}
	}
	h2.Close()
	p.nodes[2].crash(false, 0)
	p.nodes[3].open().want(t, want)
}

// Three of seven go on, from the log of the one that has most. It dies before anybody has opened the
// group: the other two are a majority of those who go on, but without it they do not have
// what the recovery was said to keep.
func TestForcedRecoveryGoesOnFromItsSurvivor(t *testing.T) {
	p := newTestPool(t, 8)
	p.create(7)
	h := p.nodes[0].open()
	h.allDurable(t, h.put(t, "a"))
	p.nodes[5].crash(true, 0)
	p.nodes[6].crash(true, 0)
	slot := h.put(t, "b")
	h.flush(t, slot)
	eventually(t, "node 4 in step", func() bool { return h.Status()[4].Durable >= slot })
	h.Close()
	for i := range 4 {
		p.nodes[i].crash(true, 0)
	}
	var voters []Member
	for i := 4; i < 7; i++ {
		if i > 4 {
			p.nodes[i].start()
		}
		p.reach(p.nodes[7], p.nodes[i])
		voters = append(voters, p.nodes[i].member())
	}
	r, err := Recover(within(t), p.nodes[7].link, p.ids(), testGroup, voters[0], voters, p.nodes[7].boot)
	if err != nil || r.Kept < slot {
		t.Fatalf("%+v %v", r, err)
	}
	p.nodes[4].crash(true, 0)
	_, err = openFor(p.nodes[7], func(c *ProposerConfig) { c.AtLeast = r.Config.Version })
	wantKind(t, err, fault.Unavailable)
	p.nodes[4].start()
	p.reach(p.nodes[7], p.nodes[4])
	h2 := p.nodes[7].open()
	h2.want(t, "a b")
	h2.flush(t, h2.put(t, "c"))
}
