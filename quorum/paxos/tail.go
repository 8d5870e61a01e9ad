package paxos

// tail keeps the entries since the checkpoint, bodies and all, at the proposer.
type tail struct {
	base    uint64 // slot of entries[head] minus 1
	head    int
	entries []tailEntry
	end     uint64 // bytes ever appended
	freed   uint64 // of those, let go
}

type tailEntry struct {
	body  []byte
	begin uint64 // tail.end before it: how many bytes lie ahead of it
	kind  EntryKind
}

// entryOverhead stands for the header of an entry on the wire, so that empty
// bodies count against windows too.
const entryOverhead = 128

func (t *tail) last() uint64 { return t.base + uint64(len(t.entries)-t.head) }

func (t *tail) at(slot uint64) *tailEntry { return &t.entries[t.head+int(slot-t.base-1)] }

func (t *tail) append(kind EntryKind, body []byte) {
	if len(t.entries) == cap(t.entries) && t.head > len(t.entries)/2 {
		n := copy(t.entries, t.entries[t.head:])
		clear(t.entries[n:])
		t.entries, t.head = t.entries[:n], 0
	}
	t.entries = append(t.entries, tailEntry{body, t.end, kind})
	t.end += uint64(len(body)) + entryOverhead
}

// between counts the bytes of the slots from+1..to, as far as they are kept.
func (t *tail) between(from, to uint64) uint64 {
	from, to = max(from, t.base), min(to, t.last())
	if from >= to {
		return 0
	}
	e := t.at(to)
	return e.begin + uint64(len(e.body)) + entryOverhead - t.at(from+1).begin
}

func (t *tail) release(upTo uint64) {
	upTo = min(upTo, t.last())
	for t.base < upTo {
		e := &t.entries[t.head]
		t.freed += uint64(len(e.body)) + entryOverhead
		*e = tailEntry{}
		t.head++
		t.base++
	}
}
