package paxos

// slotLog is the contiguous run of entries after a checkpoint, without their
// bodies (the journal has them), except for the few that the core reads itself.
//
// Invariants:
//  1. runs cover base+1..base+len exactly, ascending, and their ballots strictly
//     descend: entries of a ballot are taken contiguously from the front, so
//     whatever is older lies behind.
//  2. special lists the config and checkpoint entries present, ascending.
type slotLog struct {
	base    uint64 // the checkpoint's slot
	head    int    // entries[head] is slot base+1
	entries []slotMeta
	runs    []Run
	special []special
	bytes   int64
}

type slotMeta struct {
	pos  int64 // of the journal record
	size int32 // of the journal record, in bytes
	n    int32 // of the body, in bytes
	kind EntryKind
}

// special is an entry whose meaning matters to the core.
type special struct {
	slot   uint64
	kind   EntryKind
	config Config // EntryConfig
	upTo   uint64 // EntryCheckpoint
	value  []byte
}

func newSpecial(slot uint64, kind EntryKind, body []byte) (special, error) {
	s := special{slot: slot, kind: kind}
	var err error
	if kind == EntryConfig {
		s.config, err = decodeConfigBody(body)
	} else {
		s.upTo, s.value, err = DecodeCheckpointBody(body)
		s.value = append([]byte(nil), s.value...)
	}
	return s, err
}

func isSpecial(k EntryKind) bool { return k == EntryConfig || k == EntryCheckpoint }

func (l *slotLog) last() uint64 { return l.base + uint64(len(l.entries)-l.head) }

func (l *slotLog) at(slot uint64) *slotMeta { return &l.entries[l.head+int(slot-l.base-1)] }

// ballotAt returns the run that slot is in.
func (l *slotLog) runAt(slot uint64) Run {
	for _, r := range l.runs {
		if r.From <= slot && slot <= r.To {
			return r
		}
	}
	return Run{}
}

// put sets a slot in base+1..last+1 at ballot b; all before it are at b already.
func (l *slotLog) put(slot uint64, b Ballot, m slotMeta, sp *special) {
	l.dropSpecial(slot, slot)
	if slot == l.last()+1 {
		l.append(m)
	} else {
		e := l.at(slot)
		l.bytes -= int64(e.size)
		*e = m
	}
	l.bytes += int64(m.size)
	if sp != nil {
		i := len(l.special)
		for i > 0 && l.special[i-1].slot > slot {
			i--
		}
		l.special = append(l.special, special{})
		copy(l.special[i+1:], l.special[i:])
		l.special[i] = *sp
	}
	l.raise(slot, b)
}

func (l *slotLog) append(m slotMeta) {
	if len(l.entries) == cap(l.entries) && l.head > len(l.entries)/2 {
		n := copy(l.entries, l.entries[l.head:])
		l.entries, l.head = l.entries[:n], 0
	}
	l.entries = append(l.entries, m)
}

// raise makes base+1..to one run of ballot b.
func (l *slotLog) raise(to uint64, b Ballot) {
	if len(l.runs) > 0 && l.runs[0].Ballot == b {
		l.runs[0].To = to
	} else {
		l.runs = append(l.runs, Run{})
		copy(l.runs[1:], l.runs)
		l.runs[0] = Run{From: l.base + 1, To: to, Ballot: b}
	}
	i := 1
	for i < len(l.runs) && l.runs[i].To <= to {
		i++
	}
	if i > 1 {
		l.runs = append(l.runs[:1], l.runs[i:]...)
	}
	if len(l.runs) > 1 && l.runs[1].From <= to {
		l.runs[1].From = to + 1
	}
}

// cut drops the slots above to.
func (l *slotLog) cut(to uint64) {
	to = max(to, l.base)
	if to >= l.last() {
		return
	}
	for s := to + 1; s <= l.last(); s++ {
		l.bytes -= int64(l.at(s).size)
	}
	l.dropSpecial(to+1, l.last())
	l.entries = l.entries[:l.head+int(to-l.base)]
	for n := len(l.runs); n > 0 && l.runs[n-1].To > to; n-- {
		if l.runs[n-1].From > to {
			l.runs = l.runs[:n-1]
		} else {
			l.runs[n-1].To = to
		}
	}
}

// kill drops what is dead by c. Ballots descend along the log, so that is its end.
func (l *slotLog) kill(c Cut) {
	for _, r := range l.runs {
		if c.kills(r.To, r.Ballot) {
			l.cut(max(c.Slot, r.From-1))
			return
		}
	}
}

// advance drops the slots up to base, which a checkpoint stands for.
func (l *slotLog) advance(base uint64) {
	if base <= l.base {
		return
	}
	upTo := min(base, l.last())
	for s := l.base + 1; s <= upTo; s++ {
		l.bytes -= int64(l.at(s).size)
	}
	l.dropSpecial(0, base)
	if upTo < base {
		l.entries, l.head, l.runs = l.entries[:0], 0, l.runs[:0]
	} else {
		l.head += int(base - l.base)
		for len(l.runs) > 0 && l.runs[0].To <= base {
			l.runs = append(l.runs[:0], l.runs[1:]...)
		}
		if len(l.runs) > 0 {
			l.runs[0].From = base + 1
		}
	}
	l.base = base
}

func (l *slotLog) dropSpecial(from, to uint64) {
	if len(l.special) == 0 {
		return
	}
	kept := l.special[:0]
	for _, s := range l.special {
		if s.slot < from || s.slot > to {
			kept = append(kept, s)
		}
	}
	clear(l.special[len(kept):])
	l.special = kept
}
