package quorum

import (
	"encoding/binary"
	"errors"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Message types. 0x20-0x2f go one way, 0x30-0x3f are calls.
const (
	typeAccept   link.Type = 0x20 // proposer to member
	typeRenew    link.Type = 0x21
	typeSync     link.Type = 0x22
	typeProbe    link.Type = 0x23
	typeAccepted link.Type = 0x24 // member to proposer
	typeState    link.Type = 0x25
	typeOpen     link.Type = 0x26 // proposer to member
	typeQuery    link.Type = 0x30
	typePrepare  link.Type = 0x31
	typeFetch    link.Type = 0x32
	typeInstall  link.Type = 0x33
	typeCreate   link.Type = 0x34
	typeRetire   link.Type = 0x35
	typeInspect  link.Type = 0x36
	typeForce    link.Type = 0x37
)

// A request is what a proposer sends one way. Integers are little endian.
//
//	 0  group      [16]
//	16  brick      [16]  the member meant
//	32  ballot     epoch u64, node [16], boot u64
//	64  stream     u32   echoed
//	68  flags      u8    1: sync; 2: bare: the member meant is a witness
//	69  kind       u8    of the entry (Accept)
//	70  zero       u16
//	72  commit     u64
//	80  Accept: slot u64, body; Renew: count u32, runs; Open: count u32, cuts;
//	    Sync, Probe: nothing
const (
	requestSize = 80
	acceptSize  = requestSize + 8
	flagSync    = 1
	flagBare    = 2
)

// A run on the wire and on disk: from u64, to u64, ballot; 48 bytes.
const runSize = 8 + 8 + paxos.BallotSize

// A cut: ballot, slot u64; 40 bytes.
const cutSize = paxos.BallotSize + 8

// An answer is what a member sends one way.
//
//	 0  group     [16]
//	16  brick     [16]  the member
//	32  ballot    the asker's
//	64  stream    u32
//	68  status    u8
//	69  flags     u8    1: the member met the ballot's opening (State); 2: its journal is
//	                    more than half full
//	70  zero      u16
//	72  received  u64
//	80  durable   u64
//	88  status fenced: promised ballot; State: count u32, runs; else nothing
const answerSize = 88

var (
	errShort = errors.New("message too short")
	errLong  = errors.New("message too long")
	errValue = errors.New("message with a field out of range")
)

type request struct {
	group  ident.GroupID
	brick  ident.BrickID
	ballot Ballot
	stream uint32
	sync   bool
	bare   bool
	kind   EntryKind
	commit uint64
}

func appendRequest(b []byte, r *request) []byte {
	b = append(b, r.group[:]...)
	b = append(b, r.brick[:]...)
	b = paxos.AppendBallot(b, r.ballot)
	b = binary.LittleEndian.AppendUint32(b, r.stream)
	b = append(b, bit(r.sync)*flagSync|bit(r.bare)*flagBare, byte(r.kind), 0, 0)
	return binary.LittleEndian.AppendUint64(b, r.commit)
}

func decodeRequest(b []byte, r *request) (rest []byte, err error) {
	if len(b) < requestSize {
		return nil, errShort
	}
	r.group, r.brick = ident.GroupID(b[:16]), ident.BrickID(b[16:32])
	r.ballot = paxos.DecodeBallot(b[32:])
	r.stream = binary.LittleEndian.Uint32(b[64:])
	r.sync, r.bare, r.kind = b[68]&flagSync != 0, b[68]&flagBare != 0, EntryKind(b[69])
	r.commit = binary.LittleEndian.Uint64(b[72:])
	if b[68] > flagSync|flagBare || b[70] != 0 || b[71] != 0 || r.ballot.IsZero() {
		return nil, errValue
	}
	return b[requestSize:], nil
}

// decodeAccept reads slot and body behind a request; body is part of b.
func decodeAccept(b []byte, r *request, m *paxos.Accept) error {
	rest, err := decodeRequest(b, r)
	if err != nil {
		return err
	}
	if len(rest) < 8 {
		return errShort
	}
	*m = paxos.Accept{Ballot: r.ballot, Commit: r.commit, Stream: r.stream,
		Sync: r.sync, Bare: r.bare, Kind: r.kind, Slot: binary.LittleEndian.Uint64(rest), Body: rest[8:]}
	if m.Slot == 0 {
		return errValue
	}
	return paxos.CheckBody(m.Slot, m.Kind, m.Body)
}

func decodeRenew(b []byte, r *request, m *paxos.Renew) error {
	rest, err := decodeRequest(b, r)
	if err != nil {
		return err
	}
	*m = paxos.Renew{Ballot: r.ballot, Commit: r.commit, Stream: r.stream, Sync: r.sync}
	m.Runs, rest, err = decodeRuns(rest)
	if err == nil && len(rest) != 0 {
		err = errLong
	}
	return err
}

func decodeOpen(b []byte, r *request) (cuts []paxos.Cut, err error) {
	rest, err := decodeRequest(b, r)
	if err != nil {
		return nil, err
	}
	cuts, rest, err = decodeCuts(rest)
	if err == nil && len(rest) != 0 {
		err = errLong
	}
	return cuts, err
}

// decodeBare reads a Sync or Probe.
func decodeBare(b []byte, r *request) error {
	rest, err := decodeRequest(b, r)
	if err == nil && len(rest) != 0 {
		err = errLong
	}
	return err
}

func appendRuns(b []byte, runs []paxos.Run) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(runs)))
	for _, r := range runs {
		b = binary.LittleEndian.AppendUint64(b, r.From)
		b = binary.LittleEndian.AppendUint64(b, r.To)
		b = paxos.AppendBallot(b, r.Ballot)
	}
	return b
}

// decodeCount reads how many values of size bytes follow, all of which are there.
func decodeCount(b []byte, size int) (n int, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, errShort
	}
	n, rest = int(binary.LittleEndian.Uint32(b)), b[4:]
	switch {
	case n > paxos.RunsMax:
		return 0, nil, errLong
	case len(rest) < n*size:
		return 0, nil, errShort
	}
	return n, rest, nil
}

// decodeRuns reads ascending runs.
func decodeRuns(b []byte) (runs []paxos.Run, rest []byte, err error) {
	n, b, err := decodeCount(b, runSize)
	if err != nil {
		return nil, nil, err
	}
	last := uint64(0)
	for ; n > 0; n-- {
		r := paxos.Run{From: binary.LittleEndian.Uint64(b), To: binary.LittleEndian.Uint64(b[8:]),
			Ballot: paxos.DecodeBallot(b[16:])}
		if r.From <= last || r.To < r.From || r.To == ^uint64(0) {
			return nil, nil, errValue
		}
		last = r.To
		runs = append(runs, r)
		b = b[runSize:]
	}
	return runs, b, nil
}

func appendCuts(b []byte, cuts []paxos.Cut) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(cuts)))
	for _, c := range cuts {
		b = paxos.AppendBallot(b, c.Ballot)
		b = binary.LittleEndian.AppendUint64(b, c.Slot)
	}
	return b
}

// decodeCuts reads a staircase: ballots and slots ascend.
func decodeCuts(b []byte) (cuts []paxos.Cut, rest []byte, err error) {
	n, b, err := decodeCount(b, cutSize)
	if err != nil {
		return nil, nil, err
	}
	for i := range n {
		c := paxos.Cut{Ballot: paxos.DecodeBallot(b), Slot: binary.LittleEndian.Uint64(b[paxos.BallotSize:])}
		if c.Ballot.IsZero() || i > 0 && (!cuts[i-1].Ballot.Less(c.Ballot) || c.Slot <= cuts[i-1].Slot) {
			return nil, nil, errValue
		}
		cuts = append(cuts, c)
		b = b[cutSize:]
	}
	return cuts, b, nil
}

type answer struct {
	group    ident.GroupID
	brick    ident.BrickID
	ballot   Ballot
	stream   uint32
	status   paxos.Status
	opened   bool // State
	tight    bool
	received uint64
	durable  uint64
	promised Ballot      // if status is Fenced
	runs     []paxos.Run // State
}

func appendAnswer(b []byte, a *answer, state bool) []byte {
	b = append(b, a.group[:]...)
	b = append(b, a.brick[:]...)
	b = paxos.AppendBallot(b, a.ballot)
	b = binary.LittleEndian.AppendUint32(b, a.stream)
	b = append(b, byte(a.status), bit(a.opened)|bit(a.tight)<<1, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, a.received)
	b = binary.LittleEndian.AppendUint64(b, a.durable)
	switch {
	case a.status == paxos.Fenced:
		b = paxos.AppendBallot(b, a.promised)
	case state:
		b = appendRuns(b, a.runs)
	}
	return b
}

func decodeAnswer(b []byte, a *answer, state bool) error {
	if len(b) < answerSize {
		return errShort
	}
	*a = answer{group: ident.GroupID(b[:16]), brick: ident.BrickID(b[16:32]),
		ballot: paxos.DecodeBallot(b[32:]), stream: binary.LittleEndian.Uint32(b[64:]),
		status: paxos.Status(b[68]), opened: b[69]&1 != 0, tight: b[69]&2 != 0, received: binary.LittleEndian.Uint64(b[72:]),
		durable: binary.LittleEndian.Uint64(b[80:])}
	if !a.status.Valid() || b[69] > 3 || b[70] != 0 || b[71] != 0 || a.durable > a.received {
		return errValue
	}
	rest := b[answerSize:]
	var err error
	switch {
	case a.status == paxos.Fenced:
		if len(rest) < paxos.BallotSize {
			return errShort
		}
		a.promised, rest = paxos.DecodeBallot(rest), rest[paxos.BallotSize:]
	case state:
		a.runs, rest, err = decodeRuns(rest)
	}
	if err == nil && len(rest) != 0 {
		err = errLong
	}
	return err
}
