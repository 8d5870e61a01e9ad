package paxossim

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"github.com/gabion-storage/gabion/quorum/paxos"
)

// checker knows what was acknowledged. It demands:
//
//  1. One value for each chosen slot, ever.
//  2. What was chosen is in every later opening.
//  3. What was only received is too, unless the power was cut since.
//  4. What an opening did not have, and was proposed below it, never returns.
//  5. A checkpoint's value is the state at its slot.
//  6. A value is chosen in the slot that it was proposed for.
//  7. An acceptor never forgets a promise, nor what it reported with one (node.remembers).
type checker struct {
	birth   paxos.Config
	configs []paxos.Config // proposed
	settled paxos.Config   // newest of which a majority knows that it is chosen
	lost    []paxos.Member // disks that are gone, or never had the group
	log     map[uint64]*chosen
	high    uint64
	digests map[uint64][]byte
	folded  uint64 // digests are known up to here
	acks    map[uint64]ack
	power   int                     // power cuts so far
	origins map[uint64]paxos.Ballot // of each value: who proposed it first
	slots   map[uint64]uint64       // and where
	newest  *opening
}

type chosen struct {
	kind   paxos.EntryKind
	body   []byte
	ballot paxos.Ballot // lowest known to have seen it chosen
}

type ack struct {
	body   []byte
	ballot paxos.Ballot
	power  int
}

// opening is what a completed phase 1 and 2 served from.
type opening struct {
	ballot paxos.Ballot
	upTo   uint64
	last   uint64
	values map[uint64]uint64 // slot to value
}

func (c *checker) init() []byte {
	c.log = make(map[uint64]*chosen)
	c.digests = map[uint64][]byte{0: {0}}
	c.acks = make(map[uint64]ack)
	c.origins = make(map[uint64]paxos.Ballot)
	c.slots = make(map[uint64]uint64)
	return c.digests[0]
}

func (c *checker) powerCut() { c.power++ }

// expendable tells whether a member's disk may be lost for ever: every
// configuration that may still matter keeps a majority, and where a witness votes
// the data may be on one member alone.
func (c *checker) expendable(m paxos.Member) bool {
	safe := func(cfg paxos.Config) bool {
		lost, witness := 1, false
		for _, v := range cfg.Members {
			witness = witness || v.Role == paxos.Witness
			if !v.Same(m) && slices.ContainsFunc(c.lost, v.Same) {
				lost++
			}
		}
		return cfg.Find(m.Node, m.Brick) < 0 || 2*lost < cfg.Voters() && (!witness || m.Role == paxos.Witness)
	}
	for _, cfg := range c.configs {
		if cfg.Version > c.settled.Version && !safe(cfg) {
			return false
		}
	}
	return safe(c.settled)
}

// digestAt is the state after a chosen slot: a hash over all entries so far.
func (c *checker) digestAt(slot uint64) []byte {
	for c.folded < slot {
		e := c.log[c.folded+1]
		if e == nil {
			return nil
		}
		f := fnv.New64a()
		_, _ = f.Write(c.digests[c.folded])
		_, _ = f.Write(e.body)
		c.folded++
		c.digests[c.folded] = binary.LittleEndian.AppendUint64([]byte{byte(e.kind)}, f.Sum64())
	}
	return c.digests[slot]
}

func valueOf(e paxos.Entry) (uint64, bool) {
	if e.Kind != paxos.EntryData || len(e.Body) != 8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(e.Body), true
}

func (w *World) proposed(b paxos.Ballot, slot, value uint64) {
	w.check.origins[value], w.check.slots[value] = b, slot
}

// chosen is called when a holder sees that a slot is durable on a majority.
func (w *World) chosen(b paxos.Ballot, e paxos.Entry) {
	c := &w.check
	w.stats.Chosen++
	if v, ok := valueOf(e); ok && c.slots[v] != e.Slot {
		w.fail("value %d, proposed for slot %d, was chosen in slot %d", v, c.slots[v], e.Slot)
	}
	if old := c.log[e.Slot]; old != nil {
		if old.kind != e.Kind || !bytes.Equal(old.body, e.Body) {
			w.fail("slot %d was chosen twice: %v %x at %v and %v %x at %v", e.Slot,
				old.kind, old.body, old.ballot, e.Kind, e.Body, b)
		}
		if b.Less(old.ballot) {
			old.ballot = b
		}
	} else {
		c.log[e.Slot] = &chosen{e.Kind, e.Body, b}
		if e.Kind == paxos.EntryConfig {
			w.stats.Configs++
		}
		c.high = max(c.high, e.Slot)
	}
	if o := c.newest; o != nil && b.Less(o.ballot) {
		if e.Slot > o.last {
			w.fail("slot %d was chosen at %v, which %v had fenced", e.Slot, b, o.ballot)
		}
		if v, ok := valueOf(e); ok && e.Slot > o.upTo && o.values[e.Slot] != v {
			w.fail("slot %d chosen at %v is not what %v serves", e.Slot, b, o.ballot)
		}
	}
}

// received is called when a majority has received a slot.
func (w *World) received(b paxos.Ballot, e paxos.Entry) {
	w.stats.Received++
	w.check.acks[e.Slot] = ack{e.Body, b, w.check.power}
}

// opened is called when a holder has finished its opening.
func (w *World) opened(b paxos.Ballot, ckpt paxos.Checkpoint, tail []paxos.Entry) {
	c := &w.check
	o := &opening{ballot: b, upTo: ckpt.UpTo, last: ckpt.UpTo, values: make(map[uint64]uint64)}
	for _, e := range tail {
		o.last = e.Slot
		if v, ok := valueOf(e); ok {
			o.values[e.Slot] = v
		}
	}
	for s, was := range c.log {
		if s > o.last && was.ballot.Less(b) {
			w.fail("slot %d, chosen at %v, is missing in the opening of %v", s, was.ballot, b)
		}
	}
	for s, a := range c.acks {
		if a.power != c.power || !a.ballot.Less(b) || s <= ckpt.UpTo {
			continue
		}
		if s > o.last || !bytes.Equal(tail[s-ckpt.UpTo-1].Body, a.body) {
			w.fail("slot %d, received by a majority at %v, is missing in the opening of %v", s, a.ballot, b)
		}
	}
	clear(c.acks)
	for _, e := range tail {
		w.chosen(b, e)
		v, ok := valueOf(e)
		if last := c.newest; ok && last != nil && last.ballot.Less(b) && c.origins[v].Less(last.ballot) &&
			e.Slot > last.upTo && last.values[e.Slot] != v {
			w.fail("ghost: value %d of %v is in slot %d of %v, but %v in between did not have it",
				v, c.origins[v], e.Slot, b, last.ballot)
		}
	}
	if want := c.digestAt(ckpt.UpTo); want == nil || !bytes.Equal(want, ckpt.Value) {
		w.fail("the checkpoint at %d opened by %v is not the state there", ckpt.UpTo, b)
	}
	if c.newest == nil || c.newest.ballot.Less(b) {
		c.newest = o
	}
}
