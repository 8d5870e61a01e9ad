package quorum

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Query asks a node what it knows of a group; body: group [16], brick [16], which is that of
// a copy at the asker or zero.
//
// Its answer:
//
//	0   flags     u8   1: has the group; 2: objects to a new holder, since the promised one may
//	                   live; 4: this node's own proposer holds the group; 8: dropped here;
//	                   16: the copy here left the group, by the configuration told; 32: the
//	                   configuration is settled; 64: this node's proposer feeds the asker's brick
//	1   brick     [16]
//	17  promised  ballot
//	49  upTo      u64  of the checkpoint
//	57  last      u64  slot
//	65  config    newest known, chosen or not (no members if it knows none)
type queryReply struct {
	found, objects, holding, dropped bool
	removed, settled, feeds          bool
	broken                           bool // it has a copy, on a brick that fails: as good as away
	brick                            ident.BrickID
	promised                         Ballot
	upTo, last                       uint64
	config                           Config
}

const queryReplySize = 1 + 16 + paxos.BallotSize + 8 + 8

func appendQueryReply(b []byte, q *queryReply) []byte {
	var flags byte
	for i, f := range []bool{q.found, q.objects, q.holding, q.dropped, q.removed, q.settled, q.feeds, q.broken} {
		if f {
			flags |= 1 << i
		}
	}
	b = append(b, flags)
	b = append(b, q.brick[:]...)
	b = paxos.AppendBallot(b, q.promised)
	b = binary.LittleEndian.AppendUint64(b, q.upTo)
	b = binary.LittleEndian.AppendUint64(b, q.last)
	return paxos.AppendConfig(b, q.config)
}

func decodeQueryReply(b []byte) (q queryReply, err error) {
	if len(b) < queryReplySize {
		return q, errShort
	}
	q.found, q.objects, q.holding, q.dropped = b[0]&1 != 0, b[0]&2 != 0, b[0]&4 != 0, b[0]&8 != 0
	q.removed, q.settled, q.feeds = b[0]&16 != 0, b[0]&32 != 0, b[0]&64 != 0
	q.broken = b[0]&128 != 0
	q.brick = ident.BrickID(b[1:17])
	q.promised = paxos.DecodeBallot(b[17:])
	q.upTo = binary.LittleEndian.Uint64(b[49:])
	q.last = binary.LittleEndian.Uint64(b[57:])
	q.config, b, err = paxos.DecodeConfig(b[queryReplySize:])
	if err == nil && len(b) != 0 {
		err = errLong
	}
	return q, err
}

// Prepare:
//
//	0   group   [16]
//	16  brick   [16]
//	32  ballot
//	64  flags   u8  1: force
//	65  ballot  whose holder consented, or zero
//
// Its answer: status u8, promised ballot; if the status is removed, the configuration by
// which the member left; and if the status is ok the promise:
//
//	0   commit     u64
//	8   since      u64
//	16  flags      u8  1: witness
//	17  checkpoint: upTo u64, config, value length u32, value
//	..  cuts: count u32, cuts
//	..  runs: count u32, runs
//	..  full: count u32, runs without ballots
//	..  configs: count u16, count x { slot u64, config }
type prepareCall struct {
	group  ident.GroupID
	brick  ident.BrickID
	ballot Ballot
	force  bool   // pass over the lease check
	over   Ballot // pass over it if this is what is promised; zero: never
}

const prepareSize = 16 + 16 + 2*paxos.BallotSize + 1

func appendPrepare(b []byte, m *prepareCall) []byte {
	b = append(b, m.group[:]...)
	b = append(b, m.brick[:]...)
	b = paxos.AppendBallot(b, m.ballot)
	b = append(b, bit(m.force))
	return paxos.AppendBallot(b, m.over)
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func decodePrepare(b []byte) (m prepareCall, err error) {
	if len(b) != prepareSize {
		return m, errShort
	}
	m.group, m.brick = ident.GroupID(b[:16]), ident.BrickID(b[16:32])
	const flag = 32 + paxos.BallotSize
	m.ballot, m.force, m.over = paxos.DecodeBallot(b[32:]), b[flag] == 1, paxos.DecodeBallot(b[flag+1:])
	if b[flag] > 1 || m.ballot.IsZero() {
		return m, errValue
	}
	return m, nil
}

type prepareReply struct {
	status   paxos.Status
	promised Ballot
	left     Config // if status is Removed
	promise  paxos.Promise
}

const configsMax = 1024 // config entries in one log

func appendPrepareReply(b []byte, m *prepareReply) []byte {
	b = append(b, byte(m.status))
	b = paxos.AppendBallot(b, m.promised)
	switch m.status {
	case paxos.OK:
	case paxos.Removed:
		return paxos.AppendConfig(b, m.left)
	default:
		return b
	}
	p := &m.promise
	b = binary.LittleEndian.AppendUint64(b, p.Commit)
	b = binary.LittleEndian.AppendUint64(b, p.Since)
	b = append(b, bit(p.Witness))
	b = appendCheckpoint(b, p.Checkpoint)
	b = appendCuts(b, p.Cuts)
	b = appendRuns(b, p.Runs)
	b = appendRuns(b, p.Full)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(p.Configs)))
	for _, c := range p.Configs {
		b = binary.LittleEndian.AppendUint64(b, c.Slot)
		b = paxos.AppendConfig(b, c.Config)
	}
	return b
}

func decodePrepareReply(b []byte) (m prepareReply, err error) {
	if len(b) < 1+paxos.BallotSize {
		return m, errShort
	}
	m.status, m.promised = paxos.Status(b[0]), paxos.DecodeBallot(b[1:])
	b = b[1+paxos.BallotSize:]
	if !m.status.Valid() {
		return m, errValue
	}
	if m.status == paxos.Removed {
		m.left, b, err = paxos.DecodeConfig(b)
	}
	if m.status != paxos.OK {
		if err == nil && len(b) != 0 {
			err = errLong
		}
		return m, err
	}
	return m, decodePromise(b, &m.promise)
}

func decodePromise(b []byte, p *paxos.Promise) (err error) {
	if len(b) < 17 {
		return errShort
	}
	p.Commit, p.Since, p.Witness = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), b[16] == 1
	if b[16] > 1 {
		return errValue
	}
	if p.Checkpoint, b, err = decodeCheckpoint(b[17:]); err != nil {
		return err
	}
	if p.Cuts, b, err = decodeCuts(b); err != nil {
		return err
	}
	if p.Runs, b, err = decodeRuns(b); err != nil {
		return err
	}
	// A promise's log begins right after its checkpoint and has no hole.
	next := p.Checkpoint.UpTo + 1
	for _, r := range p.Runs {
		if r.From != next {
			return errValue
		}
		next = r.To + 1
	}
	if p.Full, b, err = decodeRuns(b); err != nil {
		return err
	}
	if len(b) < 2 {
		return errShort
	}
	n := int(binary.LittleEndian.Uint16(b))
	if b = b[2:]; n > configsMax {
		return errLong
	}
	for ; n > 0; n-- {
		if len(b) < 8 {
			return errShort
		}
		c := paxos.ConfigAt{Slot: binary.LittleEndian.Uint64(b)}
		if c.Config, b, err = paxos.DecodeConfig(b[8:]); err != nil {
			return err
		}
		p.Configs = append(p.Configs, c)
	}
	if len(b) != 0 {
		return errLong
	}
	return nil
}

func appendCheckpoint(b []byte, c Checkpoint) []byte {
	b = binary.LittleEndian.AppendUint64(b, c.UpTo)
	b = paxos.AppendConfig(b, c.Config)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.Value)))
	return append(b, c.Value...)
}

// decodeCheckpoint copies the value.
func decodeCheckpoint(b []byte) (c Checkpoint, rest []byte, err error) {
	if len(b) < 8 {
		return c, nil, errShort
	}
	c.UpTo = binary.LittleEndian.Uint64(b)
	if c.UpTo == ^uint64(0) {
		return c, nil, errValue
	}
	if c.Config, b, err = paxos.DecodeConfig(b[8:]); err != nil {
		return c, nil, err
	}
	if len(b) < 4 {
		return c, nil, errShort
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if n > ValueMax {
		return c, nil, errLong
	}
	if len(b) < int(n) {
		return c, nil, errShort
	}
	c.Value = append([]byte(nil), b[:n]...)
	return c, b[n:], nil
}

// Fetch:
//
//	0   group  [16]
//	16  brick  [16]
//	32  from   u64
//	40  to     u64
//
// Its answer: status u8, then entries until the end:
//
//	slot u64, ballot, kind u8, length u32, body
type fetchCall struct {
	group    ident.GroupID
	brick    ident.BrickID
	from, to uint64
}

const (
	fetchSize   = 16 + 16 + 8 + 8
	fetchHeader = 8 + paxos.BallotSize + 1 + 4
)

func appendFetch(b []byte, m *fetchCall) []byte {
	b = append(b, m.group[:]...)
	b = append(b, m.brick[:]...)
	b = binary.LittleEndian.AppendUint64(b, m.from)
	return binary.LittleEndian.AppendUint64(b, m.to)
}

func decodeFetch(b []byte) (m fetchCall, err error) {
	if len(b) != fetchSize {
		return m, errShort
	}
	m.group, m.brick = ident.GroupID(b[:16]), ident.BrickID(b[16:32])
	m.from, m.to = binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])
	if m.from == 0 || m.to < m.from || m.to == ^uint64(0) {
		return m, errValue
	}
	return m, nil
}

type fetched struct {
	entry  Entry
	ballot Ballot
}

func appendFetched(b []byte, f *fetched) []byte {
	b = binary.LittleEndian.AppendUint64(b, f.entry.Slot)
	b = paxos.AppendBallot(b, f.ballot)
	b = append(b, byte(f.entry.Kind))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.entry.Body)))
	return append(b, f.entry.Body...)
}

// decodeFetchReply's bodies are part of b.
func decodeFetchReply(b []byte) (status paxos.Status, fs []fetched, err error) {
	if len(b) < 1 {
		return 0, nil, errShort
	}
	status = paxos.Status(b[0])
	if b = b[1:]; !status.Valid() {
		return 0, nil, errValue
	}
	for len(b) > 0 {
		if len(b) < fetchHeader {
			return 0, nil, errShort
		}
		f := fetched{entry: Entry{Slot: binary.LittleEndian.Uint64(b), Kind: EntryKind(b[40])},
			ballot: paxos.DecodeBallot(b[8:])}
		n := binary.LittleEndian.Uint32(b[41:])
		if b = b[fetchHeader:]; n > BodyMax {
			return 0, nil, errLong
		}
		if len(b) < int(n) {
			return 0, nil, errShort
		}
		f.entry.Body, b = b[:n:n], b[n:]
		fs = append(fs, f)
	}
	return status, fs, nil
}

// Install gives a member the checkpoint it is too far behind for, and the group
// itself if it has none. Answer: status u8, promised ballot.
//
//	0   group   [16]
//	16  brick   [16]
//	32  ballot
//	64  flags   u8    1: as a witness
//	65  checkpoint
type installCall struct {
	group      ident.GroupID
	brick      ident.BrickID
	ballot     Ballot
	witness    bool
	checkpoint Checkpoint
}

func appendInstall(b []byte, m *installCall) []byte {
	b = append(b, m.group[:]...)
	b = append(b, m.brick[:]...)
	b = append(paxos.AppendBallot(b, m.ballot), bit(m.witness))
	return appendCheckpoint(b, m.checkpoint)
}

func decodeInstall(b []byte) (m installCall, err error) {
	if len(b) < 65 {
		return m, errShort
	}
	m.group, m.brick = ident.GroupID(b[:16]), ident.BrickID(b[16:32])
	m.ballot, m.witness = paxos.DecodeBallot(b[32:]), b[64] == 1
	if m.ballot.IsZero() || b[64] > 1 {
		return m, errValue
	}
	m.checkpoint, b, err = decodeCheckpoint(b[65:])
	if err == nil && len(b) != 0 {
		err = errLong
	}
	return m, err
}

// Create: group [16], config, value. Answer: nothing; its failure is an error.
func appendCreate(b []byte, group ident.GroupID, c Config, value []byte) []byte {
	b = append(b, group[:]...)
	return append(paxos.AppendConfig(b, c), value...)
}

func decodeCreate(b []byte) (group ident.GroupID, c Config, value []byte, err error) {
	if len(b) < 16 {
		return group, c, nil, errShort
	}
	group = ident.GroupID(b[:16])
	c, value, err = paxos.DecodeConfig(b[16:])
	if err == nil && len(value) > ValueMax {
		err = errLong
	}
	return group, c, value, err
}

// The answer to Install: status u8, promised ballot.
func appendInstallReply(b []byte, s paxos.Status, promised Ballot) []byte {
	return paxos.AppendBallot(append(b, byte(s)), promised)
}

func decodeInstallReply(b []byte) (s paxos.Status, promised Ballot, err error) {
	if len(b) != 1+paxos.BallotSize {
		return 0, promised, errShort
	}
	if s = paxos.Status(b[0]); !s.Valid() {
		return 0, promised, errValue
	}
	return s, paxos.DecodeBallot(b[1:]), nil
}
