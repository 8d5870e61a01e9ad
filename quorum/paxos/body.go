package paxos

import (
	"encoding/binary"
	"errors"

	"github.com/gabion-storage/gabion/internal/ident"
)

// Encoded Ballot, 32 bytes: Epoch u64, Node [16], Boot u64. All integers are
// little endian.
const BallotSize = 8 + 16 + 8

// AppendBallot appends the encoding of v.
func AppendBallot(b []byte, v Ballot) []byte {
	b = binary.LittleEndian.AppendUint64(b, v.Epoch)
	b = append(b, v.Node[:]...)
	return binary.LittleEndian.AppendUint64(b, v.Boot)
}

// DecodeBallot reads the first BallotSize bytes of b.
func DecodeBallot(b []byte) Ballot {
	_ = b[BallotSize-1]
	return Ballot{
		Epoch: binary.LittleEndian.Uint64(b),
		Node:  ident.NodeID(b[8:24]),
		Boot:  binary.LittleEndian.Uint64(b[24:]),
	}
}

// Encoded Config, also the body of an EntryConfig:
//
//	0  u64  version
//	8  u8   count of members, at most MembersMax
//	9  count x { node [16], brick [16], role u8 }
const (
	configHeader = 8 + 1
	memberSize   = 16 + 16 + 1
	// ConfigBytesMax is the longest encoded configuration.
	ConfigBytesMax = configHeader + MembersMax*memberSize
)

var (
	errConfig     = errors.New("a configuration does not decode")
	errCheckpoint = errors.New("a checkpoint entry does not decode")
)

// AppendConfig appends the encoding of c.
func AppendConfig(b []byte, c Config) []byte {
	b = binary.LittleEndian.AppendUint64(b, c.Version)
	b = append(b, byte(len(c.Members)))
	for _, m := range c.Members {
		b = append(b, m.Node[:]...)
		b = append(b, m.Brick[:]...)
		b = append(b, byte(m.Role))
	}
	return b
}

// DecodeConfig reads a configuration from the front of b and returns the rest.
func DecodeConfig(b []byte) (c Config, rest []byte, err error) {
	if len(b) < configHeader {
		return Config{}, nil, errConfig
	}
	c.Version = binary.LittleEndian.Uint64(b)
	n := int(b[8])
	b = b[configHeader:]
	if n > MembersMax || len(b) < n*memberSize {
		return Config{}, nil, errConfig
	}
	for ; n > 0; n-- {
		m := Member{Node: ident.NodeID(b[:16]), Brick: ident.BrickID(b[16:32]), Role: Role(b[32])}
		if m.Role > Witness || c.Find(m.Node, m.Brick) >= 0 {
			return Config{}, nil, errConfig
		}
		c.Members = append(c.Members, m)
		b = b[memberSize:]
	}
	return c, b, nil
}

func decodeConfigBody(b []byte) (Config, error) {
	c, rest, err := DecodeConfig(b)
	if err == nil && len(rest) != 0 {
		err = errConfig
	}
	if err == nil {
		err = c.Sound()
	}
	return c, err
}

// AppendCheckpointBody appends the body of an EntryCheckpoint:
//
//	0  u64  up to this slot, below the entry's own
//	8  the value, at most ValueMax bytes
func AppendCheckpointBody(b []byte, upTo uint64, value []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(b, upTo), value...)
}

// DecodeCheckpointBody is the reverse. value is part of b.
func DecodeCheckpointBody(b []byte) (upTo uint64, value []byte, err error) {
	if len(b) < 8 || len(b) > 8+ValueMax {
		return 0, nil, errCheckpoint
	}
	return binary.LittleEndian.Uint64(b), b[8:], nil
}

// CheckBody tells whether an entry may be proposed, or taken from a peer.
func CheckBody(slot uint64, kind EntryKind, body []byte) error {
	switch kind {
	case EntryData:
		if len(body) > BodyMax {
			return errors.New("an entry's body is too long")
		}
	case EntryConfig:
		_, err := decodeConfigBody(body)
		return err
	case EntryCheckpoint:
		upTo, _, err := DecodeCheckpointBody(body)
		if err == nil && upTo >= slot {
			err = errCheckpoint
		}
		return err
	case EntryOpen:
		if len(body) != 0 {
			return errors.New("an open entry has a body")
		}
	default:
		return errors.New("unknown entry kind")
	}
	return nil
}
