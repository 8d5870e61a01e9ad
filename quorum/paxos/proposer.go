package paxos

import (
	"fmt"
	"sort"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// Proposer is phase 2: the holder's side of a group, from the end of its
// Opening until it is fenced. It is not safe for concurrent use.
//
// It is pulled: Pull says what to send to one peer next. Answers are pushed with
// On...; afterwards Received and Commit may have risen.
//
// Invariants:
//  1. One value for each slot at this ballot, ever.
//  2. Nothing beyond the first configuration entry that is not yet chosen is sent,
//     except what phase 1 found there.
//  3. commit <= what a majority of every configuration concerned has durable.
type Proposer struct {
	ballot    Ballot
	recovered uint64
	cuts      []Cut
	ckpt      Checkpoint // newest chosen
	tail      tail       // from ckpt.UpTo+1, or earlier until it is released
	origin    []Run      // ballots at which phase 1 found the slots up to recovered
	configs   []ConfigAt // in the tail, ascending
	ckpts     []special  // in the tail, ascending
	peers     []Peer
	views     []view // majorities to count: [0] in force, then those of configs not yet chosen
	commit    uint64
	received  uint64
	fenced    Ballot
	eager     bool
}

// view is a configuration with its voters' places among the peers.
type view struct {
	from   uint64 // the slot that decides it; slots above it are counted by it
	config Config
	voters []int
	need   int
	data   []int // the voters with data, if there is a witness; see reached
}

// NewProposer takes over from phase 1. entries are the bodies of the plan's
// segments, slots ascending and complete; they are kept. It proposes an
// EntryOpen and wants everything durable; the opening is complete when
// Commit reaches Next()-1.
func NewProposer(plan *Plan, entries []Entry) (*Proposer, error) {
	p := &Proposer{ballot: plan.Ballot, recovered: plan.Recovered, cuts: plan.Cuts, ckpt: plan.Checkpoint,
		commit: plan.Commit, received: plan.Commit}
	p.tail.base = plan.Checkpoint.UpTo
	for _, s := range plan.Segments {
		p.origin = append(p.origin, s.Run)
	}
	if uint64(len(entries)) != plan.Recovered-plan.Checkpoint.UpTo {
		return nil, fmt.Errorf("%d entries fetched for slots %d to %d", len(entries),
			plan.Checkpoint.UpTo+1, plan.Recovered)
	}
	for i, e := range entries {
		if e.Slot != p.tail.last()+1 {
			return nil, fmt.Errorf("entry %d has slot %d", i, e.Slot)
		}
		if err := CheckBody(e.Slot, e.Kind, e.Body); err != nil {
			return nil, fmt.Errorf("slot %d: %w", e.Slot, err)
		}
		p.add(e.Kind, e.Body)
	}
	if n := len(entries); mutant.On("carry-slot") && n > 0 && entries[n-1].Kind == EntryData {
		p.add(EntryData, entries[n-1].Body)
	}
	p.add(EntryOpen, nil)
	p.recount()
	p.settle()
	for i := range p.peers {
		p.peers[i].syncWant = p.tail.last()
	}
	return p, nil
}

// add appends an entry that passed CheckBody.
func (p *Proposer) add(kind EntryKind, body []byte) uint64 {
	p.tail.append(kind, body)
	slot := p.tail.last()
	if isSpecial(kind) {
		s, err := newSpecial(slot, kind, body)
		if err != nil {
			panic("paxos: unchecked body: " + err.Error())
		}
		if kind == EntryConfig {
			p.configs = append(p.configs, ConfigAt{slot, s.config})
		} else {
			p.ckpts = append(p.ckpts, s)
		}
	}
	return slot
}

func (p *Proposer) Ballot() Ballot         { return p.ballot }
func (p *Proposer) Checkpoint() Checkpoint { return p.ckpt }
func (p *Proposer) Next() uint64           { return p.tail.last() + 1 }
func (p *Proposer) Base() uint64           { return p.tail.base }
func (p *Proposer) Fenced() Ballot         { return p.fenced }
func (p *Proposer) TailBytes() int64       { return int64(p.tail.end - p.tail.freed) }

// Commit is the last chosen slot: durable on a majority.
func (p *Proposer) Commit() uint64 { return p.commit }

// Received is the last slot that a majority has received.
func (p *Proposer) Received() uint64 { return p.received }

// Config is the newest chosen configuration.
func (p *Proposer) Config() Config { return p.views[0].config }

// Changing tells whether a configuration waits to be chosen.
func (p *Proposer) Changing() bool { return len(p.views) > 1 }

// newest is the newest configuration, chosen or not.
func (p *Proposer) newest() Config { return p.views[len(p.views)-1].config }

// Ready tells whether next would be chosen soon: a majority of its members has
// durably all but the last few entries. One that is proposed earlier would hold
// up everything behind it. Next to a witness all members with data must have caught
// up: where it stands in for one of them, no other may be missing.
func (p *Proposer) Ready(next Config) bool {
	n, data := 0, 0
	for i := range p.peers {
		at := next.Find(p.peers[i].Member.Node, p.peers[i].Member.Brick)
		if at < 0 || !votes(next.Members[at].Role) || !p.CaughtUp(i) {
			continue
		}
		n++
		if next.Members[at].Role == Voter {
			data++
		}
	}
	return n >= majority(next) && (next.Witnesses() == 0 || data+next.Witnesses() == next.Voters())
}

// Entry returns a slot of the tail.
func (p *Proposer) Entry(slot uint64) Entry {
	e := p.tail.at(slot)
	return Entry{Slot: slot, Kind: e.kind, Body: e.body}
}

// SetEager makes members sync with every entry.
func (p *Proposer) SetEager(on bool) { p.eager = on }

// Propose gives an entry, which passed CheckBody, the next slot. A configuration must be the
// successor of the one in force, and only one may wait at a time.
func (p *Proposer) Propose(kind EntryKind, body []byte) (uint64, error) {
	if kind == EntryConfig {
		c, err := decodeConfigBody(body)
		if err != nil {
			return 0, err
		}
		if p.Changing() && !mutant.On("two-changes") {
			return 0, fmt.Errorf("configuration %d waits to be chosen", p.views[1].config.Version)
		}
		if err := p.newest().follows(c); err != nil {
			return 0, err
		}
	}
	slot := p.add(kind, body)
	if kind == EntryConfig {
		p.recount()
	}
	return slot, nil
}

// Sync wants everything up to slot durable at every member.
func (p *Proposer) Sync(slot uint64) {
	slot = min(slot, p.tail.last())
	for i := range p.peers {
		p.peers[i].syncWant = max(p.peers[i].syncWant, slot)
	}
}

// sendLimit is the last slot that may be sent. A configuration entry stops
// everything behind it, lest two sets of members decide about one slot.
func (p *Proposer) sendLimit() uint64 {
	if len(p.views) > 1 && !mutant.On("two-changes") {
		return max(p.recovered, p.views[1].from)
	}
	return p.tail.last()
}

// recount rebuilds the views, and the peers they need, after a configuration was
// proposed or chosen.
func (p *Proposer) recount() {
	in := p.ckpt.Config
	from := uint64(0)
	p.views = p.views[:0]
	for _, c := range p.configs {
		if c.Slot <= p.commit && c.Config.Version > in.Version {
			in, from = c.Config, c.Slot
		}
	}
	p.views = append(p.views, view{from: from, config: in})
	for _, c := range p.configs {
		if c.Slot > p.commit && c.Config.Version > p.newest().Version {
			p.views = append(p.views, view{from: c.Slot, config: c.Config})
		}
	}
	for _, v := range p.views {
		for _, m := range v.config.Members {
			p.addPeer(m)
		}
	}
	p.dropPeers()
	for i := range p.views {
		v := &p.views[i]
		v.count(p.peers)
	}
}

// count finds the voters among the peers.
func (v *view) count(peers []Peer) {
	v.need, v.voters, v.data = majority(v.config), nil, nil
	for k := range peers {
		at := v.config.Find(peers[k].Member.Node, peers[k].Member.Brick)
		if at >= 0 && votes(v.config.Members[at].Role) ||
			mutant.On("count-learner") && peers[k].Member.Role == Learner {
			v.voters = append(v.voters, k)
			if at >= 0 && v.config.Members[at].Role == Voter {
				v.data = append(v.data, k)
			}
		}
	}
	if len(v.data) == len(v.voters) {
		v.data = nil
	}
}

// watermark walks the configurations: each counts the slots after its own entry
// up to and including the next one's, and an entry that changes the
// configuration needs the majorities of both.
func (p *Proposer) watermark(of func(*Peer) uint64, floor uint64) uint64 {
	w := p.views[0].reached(p.peers, of)
	for _, next := range p.views[1:] {
		if w < next.from {
			return max(w, floor)
		}
		n := next.reached(p.peers, of)
		if n < next.from {
			return max(next.from-1, floor)
		}
		w = n
	}
	return max(w, floor)
}

// reached is the highest slot that a majority of the view's voters has reached.
// With a witness, a majority may have the data once. So everything waits for all
// members with data that keep up, and what is acknowledged is on one alone
// only while the others are away.
func (v *view) reached(peers []Peer, of func(*Peer) uint64) uint64 {
	var marks [2 * MembersMax]uint64
	n := 0
	for _, k := range v.voters {
		m := of(&peers[k])
		i := n
		for i > 0 && marks[i-1] < m {
			marks[i] = marks[i-1]
			i--
		}
		marks[i] = m
		n++
	}
	if v.need > n {
		return 0
	}
	reached := marks[v.need-1]
	for _, k := range v.data {
		if peers[k].insync && !mutant.On("one-copy") {
			reached = min(reached, of(&peers[k]))
		}
	}
	return reached
}

func peerReceived(p *Peer) uint64 { return p.received }
func peerDurable(p *Peer) uint64  { return p.durable }

// advance recomputes the watermarks after an answer and reports whether one rose.
func (p *Proposer) advance() bool {
	received := min(p.watermark(peerReceived, p.received), p.tail.last())
	rose := received > p.received
	p.received = received
	commit := min(p.watermark(peerDurable, p.commit), p.tail.last())
	if commit <= p.commit {
		return rose
	}
	p.commit = commit
	p.received = max(p.received, commit)
	p.settle()
	return true
}

// settle draws the consequences of a risen commit: configurations come into
// force and checkpoints let the tail go.
func (p *Proposer) settle() {
	if len(p.views) > 1 && p.views[1].from <= p.commit {
		p.recount()
		p.announce()
	}
	n := sort.Search(len(p.ckpts), func(i int) bool { return p.ckpts[i].slot > p.commit })
	if n == 0 {
		return
	}
	s := p.ckpts[n-1]
	p.ckpts = append(p.ckpts[:0], p.ckpts[n:]...)
	p.announce()
	if s.upTo <= p.ckpt.UpTo {
		return
	}
	c := Checkpoint{UpTo: s.upTo, Value: s.value, Config: p.ckpt.Config}
	gone := 0
	for _, at := range p.configs {
		if at.Slot <= s.upTo {
			if at.Config.Version > c.Config.Version {
				c.Config = at.Config
			}
			gone++
		}
	}
	p.configs = append(p.configs[:0], p.configs[gone:]...)
	p.ckpt = c
	p.tail.release(c.UpTo)
	for len(p.origin) > 0 && p.origin[0].To <= c.UpTo {
		p.origin = p.origin[1:]
	}
}

// announce makes every peer hear of the present commit even if nothing else is
// to be sent.
func (p *Proposer) announce() {
	for i := range p.peers {
		p.peers[i].commitWant = p.commit
	}
}

// Check panics if an invariant does not hold.
func (p *Proposer) Check() {
	if !mutant.None() {
		return
	}
	must := func(ok bool, what string) {
		if !ok {
			panic("paxos: proposer: " + what)
		}
	}
	must(p.commit <= p.received && p.received <= p.tail.last(), "watermarks out of order")
	must(p.tail.base <= p.ckpt.UpTo, "tail begins after the checkpoint")
	must(p.ckpt.UpTo <= p.commit, "checkpoint not chosen")
	for i := range p.peers {
		q := &p.peers[i]
		must(q.state != peerStreaming || q.next <= p.tail.last()+1, "peer ahead")
		must(q.durable <= p.tail.last() && q.received <= p.tail.last(), "peer has too much")
	}
}
