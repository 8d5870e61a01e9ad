package extentmap

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// State is the value of a checkpoint: everything that, with the log entries
// after it, is the volume.
type State struct {
	Root        Root
	Size        int64      // bytes, 0..SizeMax
	NextExt     uint64     // the lowest extent number never used, >= 1
	Epoch       uint64     // of the holder that made the checkpoint
	Table       []TableRef // the stored extent table: a snapshot, if any, then deltas
	LiveBlocks  int64      // data and page blocks that the map uses
	StoredBytes int64      // encoded bytes of all extents of the volume

	// Snapshots, oldest first, at most SnapshotsMax. SnapshotSeq counts the
	// creations and deletions there were; a new snapshot takes the count as its id.
	Snapshots   []Snapshot
	SnapshotSeq uint64
}

// TableRef is a table extent: one piece of the stored extent table.
type TableRef struct {
	Number uint64
	Addr   ident.Addr
	Blocks uint16
	Bytes  uint32 // encoded size of the extent
	Kind   uint8  // TableSnapshot, TableDelta or TableMore
	Length uint32 // content bytes in it, 1..Blocks*BlockSize
}

// Kinds of a TableRef. Wire numbers, append only. A snapshot comes first or not
// at all: it replaces everything before it.
const (
	TableSnapshot uint8 = 1 // begins a snapshot
	TableDelta    uint8 = 2 // begins a delta
	TableMore     uint8 = 3 // goes on with what the one before began
)

// A state, little endian: magic "gmst", version u32, root Ext u64, Off u32,
// Len u32, CRC u32, level u32, size u64, next extent u64, epoch u64, live
// blocks u64, stored bytes u64, count u32, then for each table extent number
// u64, address 32, blocks u16, kind u16, bytes u32, length u32; at the end
// CRC32C of everything before, u32. Version 2 is written once there was a
// snapshot; it has the snapshots before the checksum (see Snapshot).
const (
	stateMagic       = 'g' | 'm'<<8 | 's'<<16 | 't'<<24
	stateVersion     = 1
	stateVersionSnap = 2
	stateHead        = 76
	stateRef         = 52
	stateFoot        = 4

	// StateMax bounds an encoded State, in bytes.
	StateMax = 64<<10 - 1
	// TableRefsMax is how many table extents a State can name. Long before,
	// the owner writes a new snapshot instead of one more delta.
	TableRefsMax = (StateMax - stateHead - snapsHead - SnapshotsMax*snapMax - stateFoot) / stateRef
)

// check returns what is wrong with s, nil if nothing is.
func (s *State) check() error {
	switch {
	case s.Root.Level < 0 || s.Root.Level > LevelMax:
		return fmt.Errorf("the root has level %d", s.Root.Level)
	case !s.Root.Ptr.Valid():
		return fmt.Errorf("the root pointer is out of range")
	case s.Size < 0 || s.Size > SizeMax:
		return fmt.Errorf("the size is %d bytes", s.Size)
	case s.NextExt < 1 || s.NextExt > extLimit:
		return fmt.Errorf("the next extent number is %d", s.NextExt)
	case s.Root.Ptr.Ext >= s.NextExt:
		return fmt.Errorf("the root is in extent %d, but the next number is %d", s.Root.Ptr.Ext, s.NextExt)
	case s.LiveBlocks < 0 || s.StoredBytes < 0:
		return fmt.Errorf("a counter is negative")
	case len(s.Table) > TableRefsMax:
		return fmt.Errorf("%d table extents are more than %d", len(s.Table), TableRefsMax)
	}
	for i := range s.Table {
		r := &s.Table[i]
		placed := r.Kind == TableDelta || (r.Kind == TableSnapshot && i == 0) || (r.Kind == TableMore && i > 0)
		if !placed || r.Number < 1 || r.Number >= s.NextExt ||
			r.Length < 1 || uint64(r.Length) > uint64(r.Blocks)*BlockSize {
			return fmt.Errorf("table extent %d (number %d) has a field out of range or is out of order", i, r.Number)
		}
	}
	return s.checkSnapshots()
}

// Encode gives the stored form, at most StateMax bytes. It panics if a field
// is out of its range or Table is longer than TableRefsMax.
func (s *State) Encode() []byte {
	if err := s.check(); err != nil {
		panic("extentmap: a state that cannot be: " + err.Error())
	}
	return s.encode()
}

func (s *State) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, stateHead+len(s.Table)*stateRef+stateFoot)
	b = le.AppendUint32(b, stateMagic)
	b = le.AppendUint32(b, s.version())
	b = le.AppendUint64(b, s.Root.Ptr.Ext)
	b = le.AppendUint32(b, s.Root.Ptr.Off)
	b = le.AppendUint32(b, uint32(s.Root.Ptr.Len))
	b = le.AppendUint32(b, s.Root.Ptr.CRC)
	b = le.AppendUint32(b, uint32(s.Root.Level))
	b = le.AppendUint64(b, uint64(s.Size))
	b = le.AppendUint64(b, s.NextExt)
	b = le.AppendUint64(b, s.Epoch)
	b = le.AppendUint64(b, uint64(s.LiveBlocks))
	b = le.AppendUint64(b, uint64(s.StoredBytes))
	b = le.AppendUint32(b, uint32(len(s.Table)))
	for i := range s.Table {
		r := &s.Table[i]
		b = le.AppendUint64(b, r.Number)
		b = append(b, r.Addr[:]...)
		b = le.AppendUint16(b, r.Blocks)
		b = le.AppendUint16(b, uint16(r.Kind))
		b = le.AppendUint32(b, r.Bytes)
		b = le.AppendUint32(b, r.Length)
	}
	if s.version() == stateVersionSnap {
		b = s.appendSnapshots(b)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// DecodeState reads what Encode gave. Corrupt: b is anything else.
func DecodeState(b []byte) (*State, error) {
	bad := func(format string, args ...any) (*State, error) {
		return nil, fault.Newf(fault.Corrupt, "decode volume state", "", format, args...)
	}
	le := binary.LittleEndian
	if len(b) < stateHead+stateFoot || len(b) > StateMax {
		return bad("it has %d bytes", len(b))
	}
	m, version := le.Uint32(b), le.Uint32(b[4:])
	if m != stateMagic || version != stateVersion && version != stateVersionSnap {
		return bad("magic %08x version %d; this gabion reads versions %d and %d", m, version, stateVersion, stateVersionSnap)
	}
	body := b[:len(b)-stateFoot]
	if crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]) {
		return bad("the checksum does not match")
	}
	length, level, count := le.Uint32(b[20:]), le.Uint32(b[28:]), le.Uint32(b[72:])
	if length > BlockSize || level > LevelMax {
		return bad("the root pointer is out of range")
	}
	refsEnd := stateHead + int(min(count, TableRefsMax))*stateRef
	if count > TableRefsMax || len(body) < refsEnd || version == stateVersion && len(body) != refsEnd {
		return bad("%d table extents in %d bytes", count, len(b))
	}
	s := &State{
		Root: Root{
			Ptr:   Ptr{Ext: le.Uint64(b[8:]), Off: le.Uint32(b[16:]), Len: uint16(length), CRC: le.Uint32(b[24:])},
			Level: int(level),
		},
		Size:        int64(le.Uint64(b[32:])),
		NextExt:     le.Uint64(b[40:]),
		Epoch:       le.Uint64(b[48:]),
		LiveBlocks:  int64(le.Uint64(b[56:])),
		StoredBytes: int64(le.Uint64(b[64:])),
	}
	for p := body[stateHead:refsEnd]; len(p) > 0; p = p[stateRef:] {
		r := TableRef{Number: le.Uint64(p), Blocks: le.Uint16(p[40:]), Bytes: le.Uint32(p[44:]), Length: le.Uint32(p[48:])}
		copy(r.Addr[:], p[8:40])
		kind := le.Uint16(p[42:])
		if kind > uint16(TableMore) {
			return bad("a table extent is of kind %d", kind)
		}
		r.Kind = uint8(kind)
		s.Table = append(s.Table, r)
	}
	if version == stateVersionSnap {
		if err := s.decodeSnapshots(body[refsEnd:]); err != nil {
			return bad("%v", err)
		}
	}
	if err := s.check(); err != nil {
		return nil, fault.New(fault.Corrupt, "decode volume state", "", err)
	}
	return s, nil
}
