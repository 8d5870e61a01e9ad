package pool

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum"
)

// Commands and states travel and rest as one format byte (1) followed by zstd
// compressed JSON. They are never on the path of a read or a write, and most of a
// state is ids that repeat: compressed, 128 lanes take about 3 KiB.
const (
	formatByte = 1
	// jsonMax bounds what a compressed document may expand to, in bytes.
	jsonMax = 8 << 20
)

var (
	packer, _   = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(jsonMax))
)

func pack(v any) []byte {
	doc, err := json.Marshal(v)
	if err != nil {
		panic("pool: a document that cannot be JSON: " + err.Error()) // only plain data is packed
	}
	return packer.EncodeAll(doc, []byte{formatByte})
}

func unpack(op string, b []byte, v any) error {
	if len(b) == 0 || b[0] != formatByte {
		return fault.Newf(fault.Corrupt, op, "", "not a document of format %d", formatByte)
	}
	doc, err := unpacker.DecodeAll(b[1:], nil)
	if err != nil {
		return fault.New(fault.Corrupt, op, "", err)
	}
	if err := json.Unmarshal(doc, v); err != nil {
		return fault.New(fault.Corrupt, op, "", err)
	}
	return nil
}

// EncodeState is the form of a state in the pool block's checkpoints, on the
// wire and on disk.
func EncodeState(s *State) []byte { return pack(s) }

// DecodeState reads what EncodeState wrote. Corrupt: damaged, over a limit, or
// out of order.
func DecodeState(b []byte) (*State, error) {
	s := new(State)
	if err := unpack("pool.decode", b, s); err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// check refuses states that Apply cannot have made, as far as later code
// relies on it: limits and sort orders.
func (s *State) check() error {
	bad := func(what string) error { return fault.Newf(fault.Corrupt, "pool.decode", s.Name, "%s", what) }
	switch {
	case s.Pool.IsZero():
		return bad("state of no pool")
	case len(s.Nodes) > NodesMax || len(s.Volumes) > VolumesMax || len(s.Tombstones) > TombstonesMax ||
		len(s.Lanes.Lanes) > LanesMax || len(s.Recent) > recentMax || len(s.Gone) > GoneMax || len(s.Audit) > AuditMax:
		return bad("a list is longer than its limit")
	case !slices.IsSortedFunc(s.Nodes, func(a, b NodeRecord) int { return a.ID.Compare(b.ID) }),
		!slices.IsSortedFunc(s.Volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) }):
		return bad("a list is out of order")
	}
	if !settingsOK(s.Settings) {
		return bad("settings over a limit or out of order")
	}
	for _, l := range s.Lanes.Lanes {
		if len(l) == 0 || len(l) > LaneWidthMax {
			return bad("a lane without bricks or with too many")
		}
	}
	return nil
}

func encodeCommand(c Command) []byte { return pack(c) }

func decodeCommand(b []byte) (Command, error) {
	var c Command
	err := unpack("pool.decode-command", b, &c)
	return c, err
}

// stateBytesMax bounds an encoded state: it must fit into one checkpoint value,
// with room left so that deleting is always possible.
const stateBytesMax = quorum.ValueMax - 4<<10
