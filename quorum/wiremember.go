package quorum

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// configCall tells one member of a configuration. Retire: it is settled, without the
// member; answer: status u8. Force: the member is to put it in force against all the
// others; answer: status u8, promised ballot.
//
//	0   group   [16]
//	16  brick   [16]
//	32  ballot  of the holder; of Force not zero
//	64  config  of Force a sound one
type configCall struct {
	group  ident.GroupID
	brick  ident.BrickID
	ballot Ballot
	config Config
}

func appendConfigCall(b []byte, m *configCall) []byte {
	b = append(b, m.group[:]...)
	b = append(b, m.brick[:]...)
	return paxos.AppendConfig(paxos.AppendBallot(b, m.ballot), m.config)
}

func decodeRetire(b []byte) (m configCall, err error) {
	if len(b) < 32+paxos.BallotSize {
		return m, errShort
	}
	m.group, m.brick = ident.GroupID(b[:16]), ident.BrickID(b[16:32])
	m.ballot = paxos.DecodeBallot(b[32:])
	m.config, b, err = paxos.DecodeConfig(b[32+paxos.BallotSize:])
	if err == nil && len(b) != 0 {
		err = errLong
	}
	return m, err
}

func decodeForce(b []byte) (m configCall, err error) {
	if m, err = decodeRetire(b); err == nil && m.ballot.IsZero() {
		err = errValue
	}
	if err == nil {
		err = m.config.Sound()
	}
	return m, err
}

// Inspect asks a node for its copies of a group; body: group [16]. Its answer is
// u8 count, then for each:
//
//	0    brick     [16]
//	16   flags     u8   1: witness
//	17   promised  ballot
//	49   opened    ballot
//	81   upTo      u64  of the checkpoint
//	89   commit    u64
//	97   durable   u64  contiguous at the opened ballot
//	105  last      u64
//	113  config    newest known
const inspectSize = 16 + 1 + 2*paxos.BallotSize + 4*8

// inspectMax bounds the copies of one group on one node.
const inspectMax = 64

func appendInspectReply(b []byte, ss []Survivor) []byte {
	b = append(b, byte(len(ss)))
	for i := range ss {
		s := &ss[i]
		b = append(b, s.Member.Brick[:]...)
		b = append(b, bit(s.Witness))
		b = paxos.AppendBallot(b, s.Promised)
		b = paxos.AppendBallot(b, s.Opened)
		for _, v := range []uint64{s.UpTo, s.Commit, s.Durable, s.Last} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = paxos.AppendConfig(b, s.Config)
	}
	return b
}

// decodeInspectReply leaves Member.Node and Member.Role to the caller.
func decodeInspectReply(b []byte) (ss []Survivor, err error) {
	if len(b) < 1 {
		return nil, errShort
	}
	n := int(b[0])
	if b = b[1:]; n > inspectMax {
		return nil, errLong
	}
	for ; n > 0; n-- {
		if len(b) < inspectSize {
			return nil, errShort
		}
		s := Survivor{Witness: b[16] == 1, Promised: paxos.DecodeBallot(b[17:]), Opened: paxos.DecodeBallot(b[17+paxos.BallotSize:])}
		if b[16] > 1 {
			return nil, errValue
		}
		s.Member.Brick = ident.BrickID(b[:16])
		at := 17 + 2*paxos.BallotSize
		for _, v := range []*uint64{&s.UpTo, &s.Commit, &s.Durable, &s.Last} {
			*v = binary.LittleEndian.Uint64(b[at:])
			at += 8
		}
		if s.Config, b, err = paxos.DecodeConfig(b[at:]); err != nil {
			return nil, err
		}
		ss = append(ss, s)
	}
	if len(b) != 0 {
		return nil, errLong
	}
	return ss, nil
}
