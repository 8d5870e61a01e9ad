package paxos

import (
	"fmt"
	"sort"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// Replayer rebuilds an acceptor from its stable state and its journal. Records
// come in journal order but slots may not: a moved entry lies behind younger ones,
// and the front of the journal may be gone. Hence the sparse map, which must
// have become contiguous by the end.
type Replayer struct {
	hard    Hard
	cuts    []Cut
	openPos int64
	commit  uint64
	slots   map[uint64]*replayed
}

type replayed struct {
	ballot Ballot
	meta   slotMeta
	sp     *special
}

// NewReplayer begins with what the stable store holds.
func NewReplayer(h Hard) *Replayer {
	return &Replayer{hard: h, cuts: h.Cuts, openPos: -1, slots: make(map[uint64]*replayed)}
}

// Apply takes the next record, found at pos with size bytes.
func (r *Replayer) Apply(rec *Record, pos int64, size int) error {
	if r.hard.Promised.Less(rec.Ballot) {
		r.hard.Promised = rec.Ballot
	}
	r.commit = max(r.commit, rec.Commit)
	switch rec.Kind {
	case RecordAccept, RecordMove:
		b := rec.Ballot
		if rec.Kind == RecordMove {
			b = rec.EntryBallot
		}
		if rec.Slot <= r.hard.Checkpoint.UpTo {
			return nil
		}
		e := &replayed{ballot: b, meta: slotMeta{pos, int32(size), int32(len(rec.Body)), rec.EntryKind}}
		if isSpecial(rec.EntryKind) {
			sp, err := newSpecial(rec.Slot, rec.EntryKind, rec.Body)
			if err != nil {
				return err
			}
			e.sp = &sp
		}
		r.slots[rec.Slot] = e
	case RecordRenew:
		for _, run := range rec.Runs {
			r.renew(run, rec.Ballot)
		}
	case RecordOpen:
		if lastCut(rec.Cuts).Ballot != rec.Ballot {
			return fmt.Errorf("the cuts of ballot %v end at another", rec.Ballot)
		}
		r.cuts = addCuts(r.cuts, rec.Cuts)
		if rec.Ballot == lastCut(r.cuts).Ballot && rec.Ballot != lastCut(r.hard.Cuts).Ballot {
			r.openPos = pos
		}
	case RecordCommit:
	default:
		return fmt.Errorf("unknown record kind %d", rec.Kind)
	}
	return nil
}

// bury removes what is dead by a cut.
func (r *Replayer) bury() {
	if mutant.On("carry-stale") {
		return
	}
	for s, e := range r.slots {
		for _, c := range r.cuts {
			if c.kills(s, e.ballot) {
				delete(r.slots, s)
				break
			}
		}
	}
}

func (r *Replayer) renew(run Run, b Ballot) {
	raise := func(s uint64) {
		if e := r.slots[s]; e != nil && e.ballot == run.Ballot {
			e.ballot = b
		}
	}
	if run.To-run.From < uint64(len(r.slots)) {
		for s := run.From; s <= run.To; s++ {
			raise(s)
		}
		return
	}
	for s := range r.slots {
		if run.From <= s && s <= run.To {
			raise(s)
		}
	}
}

// Finish returns the acceptor. The shell syncs the journal and then calls
// Synced with what it received.
func (r *Replayer) Finish() (*Acceptor, error) {
	// The stable store may know of an opening whose records a power cut took. What
	// is dead by any cut is dead, in whatever order they were met.
	r.bury()
	h := r.hard
	h.Cuts = r.cuts
	a := NewAcceptor(h)
	a.openPos = r.openPos
	order := make([]uint64, 0, len(r.slots))
	for s := range r.slots {
		order = append(order, s)
	}
	sort.Slice(order, func(i, j int) bool { return order[i] < order[j] })
	for i, s := range order {
		if want := h.Checkpoint.UpTo + 1 + uint64(i); s != want {
			return nil, fmt.Errorf("slot %d is missing before slot %d", want, s)
		}
		e := r.slots[s]
		a.log.append(e.meta)
		a.log.bytes += int64(e.meta.size)
		if e.sp != nil {
			a.log.special = append(a.log.special, *e.sp)
		}
		n := len(a.log.runs)
		switch {
		case n > 0 && a.log.runs[n-1].Ballot == e.ballot:
			a.log.runs[n-1].To = s
		case n > 0 && a.log.runs[n-1].Ballot.Less(e.ballot) && mutant.None():
			return nil, fmt.Errorf("slot %d has a higher ballot than the slot before it", s)
		default:
			a.log.runs = append(a.log.runs, Run{From: s, To: s, Ballot: e.ballot})
		}
	}
	a.commit = max(a.commit, min(r.commit, a.log.last()))
	return a, nil
}
