package paxos

// Status is a member's answer in one byte. The numbers cross the wire and are
// append only.
type Status uint8

const (
	// OK: done, or already done.
	OK Status = iota
	// Fenced: the member promised a higher ballot.
	Fenced
	// Gap: the member lacks the slot before; ask its State and go on from there.
	Gap
	// Busy: the promised holder may be alive.
	Busy
	// NoGroup: the brick is here but does not know the group; it can be installed.
	NoGroup
	// NoBrick: this node does not have the brick.
	NoBrick
	// Dropped: the group was dropped here and never comes back.
	Dropped
	// Full: the brick's journal has no space.
	Full
	// Broken: the brick failed.
	Broken
	// Removed: the copy here left the group, or is not of the kind that is meant
	// (with data or a witness). It takes part again only by joining anew.
	Removed
	statusCount
)

var statusNames = [statusCount]string{"ok", "fenced", "gap", "busy", "no group", "no brick",
	"dropped", "full", "broken", "removed"}

func (s Status) String() string {
	if s < statusCount {
		return statusNames[s]
	}
	return "unknown status"
}

// Valid tells whether s is a known number.
func (s Status) Valid() bool { return s < statusCount }

// Accept asks a member to take one entry at a ballot that it opened.
type Accept struct {
	Ballot Ballot
	Commit uint64 // every slot up to here is chosen
	Slot   uint64
	Body   []byte
	Stream uint32 // echoed in the answer
	Kind   EntryKind
	Sync   bool // start to sync at once
	Bare   bool // for a witness: a data entry comes without its body
}

// Renew asks a member to take, at Ballot, entries that it already has at lower
// ones. Runs ascend without overlap.
type Renew struct {
	Ballot Ballot
	Commit uint64
	Runs   []Run
	Stream uint32
	Sync   bool
}

// Promise is a member's phase 1 answer: its whole state but for the bodies.
// All of it is durable.
type Promise struct {
	Checkpoint Checkpoint
	Cuts       []Cut // of the openings it met; the last is the opened ballot's
	Commit     uint64
	Runs       []Run      // the log, ascending and contiguous from Checkpoint.UpTo+1
	Configs    []ConfigAt // config entries in the log, ascending
	// Since: the member votes in configurations of a higher version only; see Hard.
	Since   uint64
	Witness bool // it has no bodies of data entries
	// Full are the slots of a witness whose bodies are here nevertheless, all but the
	// data entries: ascending, no ballots, at most RunsMax.
	Full []Run
}

// decides tells whether the configuration of slot is chosen by what the promise
// shows. Nothing is ever proposed behind a configuration that is not chosen,
// so whatever stands there proves that it was; and the entry here, being of no
// lower ballot, has the chosen value.
func (p *Promise) decides(slot uint64) bool {
	return slot <= p.Commit || len(p.Runs) > 0 && slot < p.Runs[len(p.Runs)-1].To
}

// accepted tells whether the member has accepted a slot at ballot b.
func (p *Promise) accepted(slot uint64, b Ballot) bool {
	for _, r := range p.Runs {
		if r.From <= slot && slot <= r.To {
			return r.Ballot == b
		}
	}
	return false
}

// ConfigAt is a config entry's slot and meaning.
type ConfigAt struct {
	Slot   uint64
	Config Config
}

// State is a member's answer to a probe.
type State struct {
	Opened            bool   // it met the asked ballot's opening
	Received, Durable uint64 // contiguous at the asked ballot
	Runs              []Run  // the log beyond Received, at lower ballots
}

// RecordKind tells journal records apart. On disk; append only.
type RecordKind uint8

const (
	// RecordAccept: an entry was accepted.
	RecordAccept RecordKind = 1 + iota
	// RecordRenew: entries present were accepted again at a higher ballot.
	RecordRenew
	// RecordMove: an entry was copied to the end of the journal as it was.
	RecordMove
	// RecordCommit: slots up to Commit are chosen.
	RecordCommit
	// RecordOpen: a ballot was opened.
	RecordOpen
)

// Record is one journal record of one group. Ballot is the one opened.
type Record struct {
	Kind   RecordKind
	Ballot Ballot
	Commit uint64

	Slot        uint64 // RecordAccept, RecordMove
	EntryKind   EntryKind
	EntryBallot Ballot // RecordMove
	Body        []byte

	Runs []Run // RecordRenew
	Cuts []Cut // RecordOpen; the last is of Ballot
}

// Journal takes records into memory, in order, and tells where they are. Body is
// not kept.
type Journal interface {
	Append(r *Record) (pos int64, size int, err error)
}
