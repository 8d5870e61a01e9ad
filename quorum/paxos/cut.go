package paxos

// Cut is what one opening knows: phase 1 of Ballot found nothing beyond Slot, so
// an entry beyond it of a lower ballot was not chosen, never will be, and must
// never come back: the holder of Ballot may have served reads without it.
type Cut struct {
	Ballot Ballot
	Slot   uint64
}

// kills tells whether an entry is dead by c.
func (c Cut) kills(slot uint64, b Ballot) bool { return slot > c.Slot && b.Less(c.Ballot) }

// A set of cuts is kept as a staircase: ballots and slots both ascend, as a cut
// of a higher ballot and a slot no higher says all that a lower one does. The
// last one is of the ballot opened last.
//
// One cut is not enough. Let c have opened with everything up to slot 29, and
// two later openers have died in turn, the second of which learnt the first
// one's entry in slot 30. Whoever met the second only knows that something was in slot 30.
// A stale entry in slot 30 of a ballot below c looks like it, unless the
// cut of c is remembered too.

// addCut returns the staircase with c in it. cuts is not changed.
func addCut(cuts []Cut, c Cut) []Cut {
	out := make([]Cut, 0, len(cuts)+1)
	placed := false
	for _, old := range cuts {
		switch {
		case !old.Ballot.Less(c.Ballot) && old.Slot <= c.Slot:
			return cuts // it says as much
		case !c.Ballot.Less(old.Ballot) && c.Slot <= old.Slot:
			continue // c says as much
		case !placed && c.Ballot.Less(old.Ballot):
			out, placed = append(out, c), true
		}
		out = append(out, old)
	}
	if !placed {
		out = append(out, c)
	}
	return out
}

func addCuts(cuts, more []Cut) []Cut {
	for _, c := range more {
		cuts = addCut(cuts, c)
	}
	return cuts
}

// pruneCuts drops what no longer tells anything once all slots up to commit are
// chosen: there, the chosen value wins by its ballot; beyond, the highest of
// the cuts at or below commit says all that the others do.
func pruneCuts(cuts []Cut, commit uint64) []Cut {
	for len(cuts) > 1 && cuts[1].Slot <= commit {
		cuts = cuts[1:]
	}
	return cuts
}

func lastCut(cuts []Cut) Cut {
	if len(cuts) == 0 {
		return Cut{}
	}
	return cuts[len(cuts)-1]
}
