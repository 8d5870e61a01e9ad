package paxossim

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// change is one change of members, carried out step by step by its holder. When
// the holder dies, the next one begins with what it finds.
type change struct {
	add, remove *paxos.Member
	version     uint64 // proposed, or 0
	slot        uint64 // of the entry behind it, or 0
}

// reconfigure moves one step on.
func (h *holder) reconfigure() {
	w := h.n.w
	switch c := h.change; {
	case c == nil:
		if !h.core.Changing() {
			h.choose()
		}
	case c.version == 0:
		h.swap()
	case c.slot == 0 && h.core.Config().Version >= c.version:
		// One more entry tells a majority durably that the configuration is chosen.
		slot, err := h.core.Propose(paxos.EntryOpen, nil)
		if err != nil {
			w.fail("an entry after the configuration: %v", err)
		}
		c.slot = slot
		h.core.Sync(slot)
	case c.slot > 0 && h.core.Commit() >= c.slot:
		h.settled()
	}
}

// choose begins a change at random.
func (h *holder) choose() {
	w := h.n.w
	cfg := h.core.Config()
	c := &change{}
	outside := func() *paxos.Member {
		first := w.rng.IntN(len(w.nodes))
		for i := range w.nodes {
			o := w.nodes[(first+i)%len(w.nodes)]
			if !slices.ContainsFunc(cfg.Members, o.member.Same) && (w.connected(h.n.i, o.i) || w.rng.IntN(8) == 0) {
				m := o.member
				return &m
			}
		}
		return nil
	}
	inside := func() *paxos.Member {
		m := cfg.Members[w.rng.IntN(len(cfg.Members))]
		for _, l := range w.check.lost { // what is broken is mended first
			if cfg.Find(l.Node, l.Brick) >= 0 && w.rng.IntN(2) == 0 {
				m = l
			}
		}
		return &m
	}
	switch r := w.rng.IntN(10); {
	case r < 3 && len(cfg.Members) < 5:
		c.add = outside()
	case r < 8:
		c.add, c.remove = outside(), inside()
		if c.add == nil {
			return
		}
	case len(cfg.Members) > 1:
		c.remove = inside()
	}
	if c.add == nil && c.remove == nil {
		return
	}
	if _, err := h.next(c); err != nil && w.rng.IntN(4) > 0 {
		return
	}
	h.change = c
	if c.add != nil {
		h.core.AddLearner(*c.add)
		if o := h.nodeOf(*c.add); w.connected(h.n.i, o) {
			h.connect(o, true)
		}
		h.core.Sync(h.core.Next() - 1)
	}
}

// next is the configuration that a change leads to.
func (h *holder) next(c *change) (paxos.Config, error) {
	cfg := h.core.Config()
	next := paxos.Config{Version: cfg.Version + 1}
	for _, m := range cfg.Members {
		if c.remove == nil || !m.Same(*c.remove) {
			next.Members = append(next.Members, m)
		}
	}
	if c.add != nil {
		next.Members = append(next.Members, *c.add)
	}
	return next, next.Sound()
}

// swap proposes the configuration once it would be chosen soon, or gives up.
func (h *holder) swap() {
	w, c := h.n.w, h.change
	if c.add != nil {
		if i := h.core.Index(*c.add); i < 0 || !h.core.CaughtUp(i) {
			if w.rng.IntN(20) == 0 {
				h.abandon()
			}
			return
		}
	}
	next, _ := h.next(c)
	if !h.core.Ready(next) {
		if w.rng.IntN(20) == 0 {
			h.abandon()
		}
		return
	}
	slot, err := h.core.Propose(paxos.EntryConfig, paxos.AppendConfig(nil, next))
	if err != nil {
		if next.Sound() == nil && !h.core.Changing() {
			w.fail("change of members: %v", err)
		}
		h.abandon()
		return
	}
	w.trace("node %d proposes configuration %d in slot %d", h.n.i, next.Version, slot)
	w.check.configs = append(w.check.configs, next)
	c.version = next.Version
	h.core.Sync(slot)
	if mutant.On("two-changes") {
		h.change = nil
	}
}

// abandon stops feeding a learner, which is told to forget, or is not.
func (h *holder) abandon() {
	w := h.n.w
	if m := h.change.add; m != nil {
		h.core.RemoveLearner(*m)
		h.retire(*m, h.core.Config())
		w.trace("node %d gives up on %d", h.n.i, h.nodeOf(*m))
	}
	h.change = nil
}

func (h *holder) retire(m paxos.Member, c paxos.Config) {
	w := h.n.w
	if w.rng.IntN(4) > 0 && c.Find(m.Node, m.Brick) < 0 {
		to := w.nodes[h.nodeOf(m)]
		w.send(h.n.i, to.i, func() { to.retire(m, h.ballot, c) })
	}
}

// settled ends a change: a majority of the new members knows that it is chosen.
func (h *holder) settled() {
	w, c := h.n.w, h.change
	h.change = nil
	cfg := h.core.Config()
	if cfg.Version != c.version {
		w.fail("configuration %d came after %d", cfg.Version, c.version)
	}
	if w.check.settled.Version < cfg.Version {
		w.check.settled = cfg
	}
	w.trace("configuration %d is settled", cfg.Version)
	switch {
	case c.add != nil && c.remove != nil:
		w.stats.Replaces++
	case c.add != nil:
		w.stats.Joins++
	default:
		w.stats.Removes++
	}
	if c.add != nil && c.add.Role == paxos.Witness {
		w.stats.Witnesses++
	}
	if c.remove != nil {
		h.retire(*c.remove, cfg)
	}
}
