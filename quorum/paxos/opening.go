package paxos

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
// highest version met and, unless that is known to be chosen, every
// configuration of that version and of the version before.
func (o *Opening) required() []Config {
	var top, chosen uint64
	var met []Config
	meet := func(c Config, isChosen bool) {
		top = max(top, c.Version)
		if isChosen {
			chosen = max(chosen, c.Version)
		}
		for _, m := range met {
			if m.Equal(c) {
				return
			}
		}
		met = append(met, c)
	}
	for _, pr := range o.promises {
		meet(pr.p.Checkpoint.Config, true)
		for _, c := range pr.p.Configs {
			meet(c.Config, c.Slot <= pr.p.Commit)
		}
	}
	var req []Config
	for _, c := range met {
		if c.Version == top || (c.Version+1 == top && chosen < top) {
			req = append(req, c)
		}
	}
	return req
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

// Done tells whether the promises suffice.
func (o *Opening) Done() bool {
	req := o.required()
	for _, c := range req {
		n := 0
		for _, m := range c.Members {
			if votes(m.Role) && o.Promised(m) {
				n++
			}
		}
		if n < majority(c) {
			return false
		}
	}
	return len(req) > 0
}

func majority(c Config) int {
	if mutation == mutateAckAtOne {
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
	Sources []Member
}

// Plan selects, for each slot, the value of the highest ballot. Only call it when Done.
//
// Entries that are dead by a cut that any of the members met are ignored, and
// all those cuts are handed on together with this ballot's own.
func (o *Opening) Plan() *Plan {
	plan := &Plan{Ballot: o.ballot}
	for i, pr := range o.promises {
		if i == 0 || pr.p.Checkpoint.UpTo > plan.Checkpoint.UpTo {
			plan.Checkpoint = pr.p.Checkpoint
		}
		plan.Cuts = addCuts(plan.Cuts, pr.p.Cuts)
		plan.Commit = max(plan.Commit, pr.p.Commit)
	}
	type source struct {
		from Member
		runs []Run
	}
	var sources []source
	plan.Recovered = plan.Checkpoint.UpTo
	for _, pr := range o.promises {
		s := source{from: pr.from}
		for _, r := range pr.p.Runs {
			for _, c := range plan.Cuts {
				if r.Ballot.Less(c.Ballot) && mutation != mutateCarryStale {
					r.To = min(r.To, c.Slot)
				}
			}
			if r.From <= r.To {
				s.runs = append(s.runs, r)
				plan.Recovered = max(plan.Recovered, r.To)
			}
		}
		sources = append(sources, s)
	}
	plan.Commit = max(min(plan.Commit, plan.Recovered), plan.Checkpoint.UpTo)
	plan.Cuts = pruneCuts(addCut(plan.Cuts, Cut{o.ballot, plan.Recovered}), plan.Commit)
	for at := plan.Checkpoint.UpTo + 1; at <= plan.Recovered; {
		seg := Segment{Run: Run{From: at, To: plan.Recovered}}
		for _, s := range sources {
			for _, r := range s.runs {
				switch {
				case r.From > at: // what is best may change where it begins
					seg.To = min(seg.To, r.From-1)
				case r.To >= at:
					seg.To = min(seg.To, r.To)
					if seg.Ballot.Less(r.Ballot) {
						seg.Ballot, seg.Sources = r.Ballot, seg.Sources[:0]
					}
					if seg.Ballot == r.Ballot {
						seg.Sources = append(seg.Sources, s.from)
					}
				}
			}
		}
		if len(seg.Sources) == 0 {
			panic("paxos: a promised log has a hole")
		}
		plan.Segments = append(plan.Segments, seg)
		at = seg.To + 1
	}
	return plan
}
