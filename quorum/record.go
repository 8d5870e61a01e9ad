package quorum

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// A journal record of a group. The frame around it has length and checksum.
// Little endian.
//
//	 0  group      [16]
//	16  kind       u8   1 accept, 2 renew, 3 move, 4 commit, 5 open
//	17  entry kind u8
//	18  version    u8   1
//	19  zero       u8
//	20  zero       u32
//	24  ballot     the one opened
//	56  commit     u64
//	64  slot       u64
//	72  move: entry ballot
//	..  accept, move: body to the end; renew: count u32, runs; open: count u32, cuts
const (
	recordSize     = 72
	recordMoveSize = recordSize + paxos.BallotSize
	recordVersion  = 1
)

// appendRecordHeader appends everything but the body.
func appendRecordHeader(b []byte, group ident.GroupID, r *paxos.Record) []byte {
	b = append(b, group[:]...)
	b = append(b, byte(r.Kind), byte(r.EntryKind), recordVersion, 0, 0, 0, 0, 0)
	b = paxos.AppendBallot(b, r.Ballot)
	b = binary.LittleEndian.AppendUint64(b, r.Commit)
	b = binary.LittleEndian.AppendUint64(b, r.Slot)
	switch r.Kind {
	case paxos.RecordMove:
		b = paxos.AppendBallot(b, r.EntryBallot)
	case paxos.RecordRenew:
		b = appendRuns(b, r.Runs)
	case paxos.RecordOpen:
		b = appendCuts(b, r.Cuts)
	}
	return b
}

// decodeRecord's body is part of b.
func decodeRecord(b []byte) (group ident.GroupID, r paxos.Record, err error) {
	if len(b) < recordSize {
		return group, r, errShort
	}
	group = ident.GroupID(b[:16])
	r = paxos.Record{Kind: paxos.RecordKind(b[16]), EntryKind: EntryKind(b[17]),
		Ballot: paxos.DecodeBallot(b[24:]), Commit: binary.LittleEndian.Uint64(b[56:]),
		Slot: binary.LittleEndian.Uint64(b[64:])}
	if b[18] != recordVersion || b[19] != 0 || binary.LittleEndian.Uint32(b[20:]) != 0 {
		return group, r, errors.New("a journal record of another version")
	}
	b = b[recordSize:]
	switch r.Kind {
	case paxos.RecordMove:
		if len(b) < paxos.BallotSize {
			return group, r, errShort
		}
		r.EntryBallot, b = paxos.DecodeBallot(b), b[paxos.BallotSize:]
		fallthrough
	case paxos.RecordAccept:
		if r.Slot == 0 {
			return group, r, errValue
		}
		if err := paxos.CheckBody(r.Slot, r.EntryKind, b); err != nil {
			return group, r, err
		}
		r.Body = b
	case paxos.RecordRenew:
		r.Runs, b, err = decodeRuns(b)
	case paxos.RecordOpen:
		r.Cuts, b, err = decodeCuts(b)
	case paxos.RecordCommit:
	default:
		return group, r, errValue
	}
	if err == nil && r.Body == nil && len(b) != 0 {
		err = errLong
	}
	return group, r, err
}

// The stable store of a brick has these keys:
//
//	groups     the groups on the brick:
//	           version u8 (1), zero [3], count u32, count x group [16], CRC32C u32
//	g/HEX      one group, HEX its id:
//	           version u8 (1), flags u8 (1: dropped, 2: left, 4: witness, 8: came again),
//	           zero [2], promised ballot, birth [32], if it came again { since u64, after
//	           u64 }, cuts (count u32, cuts), checkpoint, CRC32C u32
//	           left: version u8, flags u8, zero [2], promised ballot, config, CRC32C u32
//
// A dropped group's record keeps nothing but the flag, and stays for ever. That of a
// group that was left says what paxos.Tomb does. A copy that came again has left
// records of an earlier life in the journal, before the position after; they are nothing.
// birth is the SHA-256 of the encoded Create, zero if the group came by Install.
const (
	stableVersion = 1
	stableDropped = 1
	stableLeft    = 2
	stableWitness = 4
	stableAgain   = 8
	stableHeader  = 4 + paxos.BallotSize + 32
	keyGroups     = "groups"
)

func groupKeyOf(g ident.GroupID) string { return "g/" + hex.EncodeToString(g[:]) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func unseal(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, errShort
	}
	n := len(b) - 4
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return nil, errors.New("checksum mismatch")
	}
	return b[:n], nil
}

type stableGroup struct {
	hard    paxos.Hard
	birth   [32]byte
	after   int64
	dropped bool
	tomb    *paxos.Tomb // left
}

// gone tells whether the group is no longer here.
func (g *stableGroup) gone() bool { return g.dropped || g.tomb != nil }

func appendStableGroup(b []byte, g *stableGroup) []byte {
	if g.dropped {
		return seal(append(b, stableVersion, stableDropped, 0, 0))
	}
	if g.tomb != nil {
		b = append(b, stableVersion, stableLeft, 0, 0)
		return seal(paxos.AppendConfig(paxos.AppendBallot(b, g.tomb.Promised), g.tomb.Config))
	}
	again := g.hard.Since > 0 || g.after > 0
	b = append(b, stableVersion, bit(g.hard.Witness)*stableWitness|bit(again)*stableAgain, 0, 0)
	b = paxos.AppendBallot(b, g.hard.Promised)
	b = append(b, g.birth[:]...)
	if again {
		b = binary.LittleEndian.AppendUint64(b, g.hard.Since)
		b = binary.LittleEndian.AppendUint64(b, uint64(g.after))
	}
	b = appendCuts(b, g.hard.Cuts)
	return seal(appendCheckpoint(b, g.hard.Checkpoint))
}

func decodeStableGroup(b []byte) (g stableGroup, err error) {
	if b, err = unseal(b); err != nil {
		return g, err
	}
	if len(b) < 4 {
		return g, errShort
	}
	if b[0] != stableVersion || b[1] > stableWitness|stableAgain {
		return g, errors.New("a group record of another version")
	}
	flags := b[1]
	switch {
	case flags == stableDropped:
		g.dropped = true
		return g, nil
	case flags == stableLeft:
		return decodeTomb(b[4:])
	case flags&(stableDropped|stableLeft) != 0:
		return g, errValue
	case len(b) < stableHeader:
		return g, errShort
	}
	g.hard.Witness = flags&stableWitness != 0
	g.hard.Promised = paxos.DecodeBallot(b[4:])
	copy(g.birth[:], b[stableHeader-32:])
	b = b[stableHeader:]
	if flags&stableAgain != 0 {
		if len(b) < 16 {
			return g, errShort
		}
		g.hard.Since, g.after = binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:]))
		if b = b[16:]; g.after < 0 || g.hard.Since == 0 && g.after == 0 {
			return g, errValue
		}
	}
	if g.hard.Cuts, b, err = decodeCuts(b); err != nil {
		return g, err
	}
	g.hard.Checkpoint, b, err = decodeCheckpoint(b)
	if err == nil && len(b) != 0 {
		err = errLong
	}
	return g, err
}

func decodeTomb(b []byte) (g stableGroup, err error) {
	if len(b) < paxos.BallotSize {
		return g, errShort
	}
	t := &paxos.Tomb{Promised: paxos.DecodeBallot(b)}
	t.Config, b, err = paxos.DecodeConfig(b[paxos.BallotSize:])
	if err == nil && len(b) != 0 {
		err = errLong
	}
	g.tomb = t
	return g, err
}

func appendStableList(b []byte, ids []ident.GroupID) []byte {
	b = append(b, stableVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(ids)))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return seal(b)
}

func decodeStableList(b []byte) (ids []ident.GroupID, err error) {
	if b, err = unseal(b); err != nil {
		return nil, err
	}
	if len(b) < 8 || b[0] != stableVersion {
		return nil, errors.New("a group list of another version")
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	if b = b[8:]; n > GroupsMax || len(b) != n*16 {
		return nil, errValue
	}
	for ; n > 0; n-- {
		ids = append(ids, ident.GroupID(b[:16]))
		b = b[16:]
	}
	return ids, nil
}
