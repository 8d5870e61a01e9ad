package paxos

import (
	"github.com/gabion-storage/gabion/internal/mutant"
)

// Opening is phase 1: it collects promises until they are enough to know every
// entry that may have been chosen, and then says what the log is.
type Opening struct {
	ballot   Ballot
	hints    []Config // from asking around; only says whom to ask
	promises []promised
}

type promised struct {
	from Member
	p    *Promise
}

// NewOpening begins phase 1 of ballot b.
func NewOpening(b Ballot) *Opening { return &Opening{ballot: b} }

// Hint names members to ask.
func (o *Opening) Hint(c Config) {
	for _, h := range o.hints {
		if h.Equal(c) {
			return
		}
	}
	o.hints = append(o.hints, c)
}

// Add takes one member's promise; a later one replaces it.
func (o *Opening) Add(from Member, p *Promise) {
	o.Remove(from)
	o.promises = append(o.promises, promised{from, p})
}

// Remove forgets a member's promise, because its entries cannot be fetched. Any
// majority of promises is as good as another until the first entry is proposed.
func (o *Opening) Remove(from Member) {
	for i, p := range o.promises {
		if p.from.Same(from) {
			o.promises = append(o.promises[:i], o.promises[i+1:]...)
			return
		}
	}
}

// Promised tells whether a member's promise is held.
func (o *Opening) Promised(m Member) bool {
	for _, p := range o.promises {
		if p.from.Same(m) {
			return true
		}
	}
	return false
}

// required lists the configurations that must each have promised by majority. A
// configuration of version v is proposed only after one of v-1 was chosen, and
// a chosen one shows in any majority of its predecessor. So what counts is the
// highest version met and, unless that is known to be chosen, the version
// before; of each the one known to be chosen, or else every one met that no cut
// has killed.
func (o *Opening) required() []Config {
	type known struct {
		Config
		chosen bool
	}
	var top uint64
	var met []known
	meet := func(c Config, chosen bool) {
		top = max(top, c.Version)
		for i := range met {
			if met[i].Equal(c) {
				met[i].chosen = met[i].chosen || chosen
				return
			}
		}
		met = append(met, known{c, chosen})
	}
	var cuts []Cut
	promises := o.counted()
	for _, pr := range promises {
		cuts = addCuts(cuts, pr.p.Cuts)
	}
	for i, s := range alive(promises, cuts) {
		p := promises[i].p
		meet(p.Checkpoint.Config, true)
		for _, c := range p.Configs {
			if n := len(s.runs); n > 0 && c.Slot <= s.runs[n-1].To {
				meet(c.Config, p.decides(c.Slot))
			}
		}
	}
	var req []Config
	for v := top; v > 0 && v+1 >= top; v-- {
		chosen := false
		for _, c := range met {
			if c.Version == v && c.chosen {
				req, chosen = append(req, c.Config), true
			}
		}
		if chosen {
			break
		}
		for _, c := range met {
			if c.Version == v {
				req = append(req, c.Config)
			}
		}
	}
	return req
}

// Version is that of the newest configuration met.
func (o *Opening) Version() uint64 {
	v := uint64(0)
	for _, c := range o.required() {
		v = max(v, c.Version)
	}
	return v
}

// Ask lists the members whose promise is wanted and not held.
func (o *Opening) Ask() []Member {
	var ms []Member
	for _, c := range append(o.required(), o.hints...) {
	next:
		for _, m := range c.Members {
			if !votes(m.Role) || o.Promised(m) {
				continue
			}
			for _, have := range ms {
				if have.Same(m) {
					continue next
				}
			}
			ms = append(ms, m)
		}
	}
	return ms
}

// Done tells whether the promises suffice: majorities, and the body of every
// entry that may have been chosen at hand. Where only a witness knows of
// such an entry, a member with data has to be waited for.
func (o *Opening) Done() bool {
	req := o.required()
	return len(req) > 0 && o.enough(req) && o.plan(req) != nil
}

// enough tells whether the promises are majorities of all configurations.
func (o *Opening) enough(req []Config) bool {
	for _, c := range req {
		n := 0
		for _, m := range c.Members {
			if votes(m.Role) && o.promiseIn(m, c) != nil {
				n++
			}
		}
		if n < majority(c) {
			return false
		}
	}
	return true
}

// promiseIn is the promise of a member as far as it counts in c.
func (o *Opening) promiseIn(m Member, c Config) *Promise {
	for _, pr := range o.promises {
		if pr.from.Same(m) && pr.p.Since < c.Version {
			return pr.p
		}
	}
	return nil
}

// possible tells whether a slot may have been chosen at ballot b: whether those
// who have accepted it so, and those who have not said, are a majority.
func (o *Opening) possible(req []Config, slot uint64, b Ballot) bool {
	for _, c := range req {
		n := 0
		for _, m := range c.Members {
			if votes(m.Role) {
				if p := o.promiseIn(m, c); p == nil || p.accepted(slot, b) {
					n++
				}
			}
		}
		if n >= majority(c) {
			return true
		}
	}
	return false
}

func majority(c Config) int {
	if mutant.On("ack-at-one") {
		return 1
	}
	return c.Voters()/2 + 1
}

// Plan is the outcome of phase 1.
type Plan struct {
	Ballot     Ballot
	Checkpoint Checkpoint // newest one met; chosen
	Recovered  uint64     // last slot learnt
	Commit     uint64     // known to be chosen
	Cuts       []Cut      // what members must know; the last is this ballot's
	// Segments cover Checkpoint.UpTo+1..Recovered: the value of each slot is
	// the one accepted at the segment's ballot.
	Segments []Segment
}

// Segment is a run of slots and the members that have it.
type Segment struct {
	Run
	Sources []Member // with data
}

// Plan selects, for each slot, the value of the highest ballot. Only call it when Done.
//
// Entries that are dead by a cut that any of the members met are ignored, and
// all those cuts are handed on together with this ballot's own.
func (o *Opening) Plan() *Plan { return o.plan(o.required()) }

// source is a promise with what is left of its runs.
type source struct {
	from Member
	bare bool  // no bodies of data entries
	full []Run // if bare: where there are bodies nevertheless
	runs []Run
}

// at tells whether the body of a slot is there, and to where that holds.
func (s *source) at(slot uint64) (full bool, to uint64) {
	if !s.bare {
		return true, ^uint64(0)
	}
	for _, r := range s.full {
		switch {
		case slot < r.From:
			return false, r.From - 1
		case slot <= r.To:
			return true, r.To
		}
	}
	return false, ^uint64(0)
}

// plan returns nil if an entry that may have been chosen has no source with data.
func (o *Opening) plan(req []Config) *Plan {
	plan := &Plan{Ballot: o.ballot}
	promises := o.counted()
	for i, pr := range promises {
		if i == 0 || pr.p.Checkpoint.UpTo > plan.Checkpoint.UpTo ||
			pr.p.Checkpoint.UpTo == plan.Checkpoint.UpTo && pr.p.Checkpoint.Config.Version > plan.Checkpoint.Config.Version {
			plan.Checkpoint = pr.p.Checkpoint
		}
		plan.Cuts = addCuts(plan.Cuts, pr.p.Cuts)
		plan.Commit = max(plan.Commit, pr.p.Commit)
	}
	for _, pr := range promises { // a forced configuration is in force whatever slots a checkpoint covers
		if c := pr.p.Checkpoint.Config; c.Version > plan.Checkpoint.Config.Version {
			plan.Checkpoint.Config = c
		}
	}
	sources := alive(promises, plan.Cuts)
	plan.Recovered = plan.Checkpoint.UpTo
	for {
		seg, ok := o.segment(req, sources, plan.Recovered+1)
		if !ok {
			return nil
		}
		if len(seg.Sources) == 0 {
			break
		}
		plan.Segments = append(plan.Segments, seg)
		plan.Recovered = seg.To
	}
	if plan.Commit > plan.Recovered {
		return nil // what is known to be chosen is not here yet
	}
	plan.Commit = max(plan.Commit, plan.Checkpoint.UpTo)
	plan.Cuts = pruneCuts(addCut(plan.Cuts, Cut{o.ballot, plan.Recovered}), plan.Commit)
	return plan
}

// alive lists what no cut has killed.
func alive(promises []promised, cuts []Cut) []source {
	var out []source
	for _, pr := range promises {
		s := source{from: pr.from, bare: pr.p.Witness && !mutant.On("witness-source"), full: pr.p.Full}
		for _, r := range pr.p.Runs {
			for _, c := range cuts {
				if r.Ballot.Less(c.Ballot) && !mutant.On("carry-stale") {
					r.To = min(r.To, c.Slot)
				}
			}
			if r.From <= r.To {
				s.runs = append(s.runs, r)
			}
		}
		out = append(out, s)
	}
	return out
}

// segment is what begins at a slot: the entries of the highest ballot, unless
// no source has their data and they cannot have been chosen; then the next
// lower ones. Without sources, nothing is there. Not ok: they may have been chosen,
// and nobody here has their data.
func (o *Opening) segment(req []Config, sources []source, at uint64) (seg Segment, ok bool) {
	seg.Run = Run{From: at, To: at}
	var below *Ballot // what was passed over
	for {
		to, met := ^uint64(0), false
		seg.Ballot, seg.Sources = Ballot{}, nil
		for _, s := range sources {
			full, until := s.at(at)
			to = min(to, until)
			for _, r := range s.runs {
				switch {
				case r.From > at: // what is best may change where it begins
					to = min(to, r.From-1)
				case r.To >= at:
					to = min(to, r.To)
					if below != nil && !r.Ballot.Less(*below) {
						continue
					}
					met = true
					if seg.Ballot.Less(r.Ballot) {
						seg.Ballot, seg.Sources = r.Ballot, nil
					}
					if seg.Ballot == r.Ballot && full {
						seg.Sources = append(seg.Sources, s.from)
					}
				}
			}
		}
		if !met || len(seg.Sources) > 0 {
			seg.To = to
			return seg, true
		}
		if o.possible(req, at, seg.Ballot) {
			return seg, false
		}
		b := seg.Ballot
		below = &b
	}
}
