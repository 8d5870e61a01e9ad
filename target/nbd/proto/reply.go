package proto

import "encoding/binary"

// PutSimpleReply writes the header of a reply into the first SimpleReplySize
// bytes of b. The data of a successful READ follows it.
func PutSimpleReply(b []byte, e Errno, cookie uint64) {
	_ = b[SimpleReplySize-1]
	binary.BigEndian.PutUint32(b, MagicSimpleReply)
	binary.BigEndian.PutUint32(b[4:], uint32(e))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// DecodeSimpleReply reads the first SimpleReplySize bytes of b, which must be
// there.
func DecodeSimpleReply(b []byte) (e Errno, cookie uint64, err error) {
	_ = b[SimpleReplySize-1]
	if m := binary.BigEndian.Uint32(b); m != MagicSimpleReply {
		return 0, 0, invalid("simple reply", "magic %#x", m)
	}
	return Errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:]), nil
}

// Type is what a chunk of a structured or extended reply carries ("Structured
// reply types"). Errors have bit 15 set.
type Type uint16

const (
	TypeNone           Type = 0
	TypeOffsetData     Type = 1
	TypeOffsetHole     Type = 2
	TypeBlockStatus    Type = 5
	TypeBlockStatusExt Type = 6
	TypeError          Type = 1<<15 + 1
	TypeErrorOffset    Type = 1<<15 + 2
)

// Chunk is the header of one chunk.
//
//	0       4       6      8        16       20
//	| magic | flags | type | cookie | length |            structured
//	| magic | flags | type | cookie | offset | length |   extended: 24, 32
type Chunk struct {
	Done   bool // no further chunk of this reply follows
	Type   Type
	Cookie uint64
	// Offset is that of the request, in extended chunks; it is not on the wire
	// of structured ones.
	Offset uint64
	Length uint64 // bytes that follow
}

// flagDone is the only flag of a chunk ("Structured reply flags").
const flagDone = 1 << 0

// PutChunk writes c's header into the first ChunkSize bytes of b. s is not Simple.
func (s Style) PutChunk(b []byte, c Chunk) {
	_ = b[s.ChunkSize()-1]
	var flags uint16
	if c.Done {
		flags = flagDone
	}
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], uint16(c.Type))
	binary.BigEndian.PutUint64(b[8:], c.Cookie)
	if s == Extended {
		binary.BigEndian.PutUint32(b, MagicExtReply)
		binary.BigEndian.PutUint64(b[16:], c.Offset)
		binary.BigEndian.PutUint64(b[24:], c.Length)
		return
	}
	binary.BigEndian.PutUint32(b, MagicStructured)
	binary.BigEndian.PutUint32(b[16:], uint32(c.Length))
}

// DecodeChunk reads the first ChunkSize bytes of b, which must be there. s is
// not Simple.
func (s Style) DecodeChunk(b []byte) (Chunk, error) {
	_ = b[s.ChunkSize()-1]
	want := MagicStructured
	if s == Extended {
		want = MagicExtReply
	}
	if m := binary.BigEndian.Uint32(b); m != want {
		return Chunk{}, invalid("chunk", "magic %#x", m)
	}
	flags := binary.BigEndian.Uint16(b[4:])
	if flags&^flagDone != 0 {
		return Chunk{}, invalid("chunk", "flags %#x", flags)
	}
	c := Chunk{
		Done:   flags != 0,
		Type:   Type(binary.BigEndian.Uint16(b[6:])),
		Cookie: binary.BigEndian.Uint64(b[8:]),
	}
	if s == Extended {
		c.Offset = binary.BigEndian.Uint64(b[16:])
		c.Length = binary.BigEndian.Uint64(b[24:])
	} else {
		c.Length = uint64(binary.BigEndian.Uint32(b[16:]))
	}
	return c, nil
}

// PutDone writes the answer to a successful request that has no data into the
// first DoneSize bytes of b.
func (s Style) PutDone(b []byte, cookie, offset uint64) {
	if s == Extended {
		s.PutChunk(b, Chunk{Done: true, Type: TypeNone, Cookie: cookie, Offset: offset})
		return
	}
	PutSimpleReply(b, OK, cookie)
}

// PutReadHeader writes what stands before the n bytes of data of a READ's
// reply in one piece, at off: into the first ReadSize bytes of b. request is
// the offset of the request; done says that nothing else of the reply follows.
func (s Style) PutReadHeader(b []byte, cookie, request, off uint64, n int, done bool) {
	if s == Simple {
		PutSimpleReply(b, OK, cookie)
		return
	}
	s.PutChunk(b, Chunk{Done: done, Type: TypeOffsetData, Cookie: cookie, Offset: request, Length: uint64(n) + 8})
	binary.BigEndian.PutUint64(b[s.ChunkSize():], off)
}

// HoleSize is the length of a hole in a READ's reply, in bytes.
func (s Style) HoleSize() int { return s.ChunkSize() + 12 }

// PutHole writes a hole of n bytes at off into the first HoleSize bytes of b.
// s is not Simple.
func (s Style) PutHole(b []byte, cookie, request, off uint64, n int, done bool) {
	s.PutChunk(b, Chunk{Done: done, Type: TypeOffsetHole, Cookie: cookie, Offset: request, Length: 12})
	b = b[s.ChunkSize():]
	binary.BigEndian.PutUint64(b, off)
	binary.BigEndian.PutUint32(b[8:], uint32(n))
}

// ErrorSizeMax bounds what AppendReplyError and AppendErrorOffset append, in bytes.
const ErrorSizeMax = ExtendedChunkSize + 6 + TextMax + 8

// AppendReplyError appends the answer to a request that failed, with a
// sentence where the style has room for one, cut to TextMax bytes.
func (s Style) AppendReplyError(b []byte, e Errno, cookie, offset uint64, text string) []byte {
	if s == Simple {
		n := len(b)
		b = append(b, make([]byte, SimpleReplySize)...)
		PutSimpleReply(b[n:], e, cookie)
		return b
	}
	return s.appendError(b, TypeError, e, cookie, offset, text, 0)
}

// AppendErrorOffset appends the end of a READ's reply that has data only up to
// the byte at. s is not Simple.
func (s Style) AppendErrorOffset(b []byte, e Errno, cookie, offset uint64, text string, at uint64) []byte {
	b = s.appendError(b, TypeErrorOffset, e, cookie, offset, text, 8)
	return binary.BigEndian.AppendUint64(b, at)
}

// appendError appends an error chunk, whose last more bytes the caller appends.
func (s Style) appendError(b []byte, t Type, e Errno, cookie, offset uint64, text string, more int) []byte {
	text = cutTo(text, TextMax)
	n := len(b)
	b = append(b, make([]byte, s.ChunkSize())...)
	s.PutChunk(b[n:], Chunk{Done: true, Type: t, Cookie: cookie, Offset: offset, Length: uint64(6 + len(text) + more)})
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// States of a stretch in `base:allocation`, and in a dirty bitmap.
const (
	StateHole  uint32 = 1 << 0
	StateZero  uint32 = 1 << 1
	StateDirty uint32 = 1 << 0
)

// Extent is one descriptor of a BLOCK_STATUS reply.
type Extent struct {
	Length uint64 // bytes, > 0; below 2^32 in a compact style
	State  uint32
}

// StatusSize is the length of the chunk that AppendStatus makes, in bytes.
func (s Style) StatusSize(extents int) int {
	if s == Extended {
		return ExtendedChunkSize + 8 + 16*extents
	}
	return StructuredChunkSize + 4 + 8*extents
}

// AppendStatus appends the chunk for one metadata context. s is not Simple.
func (s Style) AppendStatus(b []byte, cookie, offset uint64, context uint32, es []Extent, done bool) []byte {
	head, t := s.ChunkSize(), TypeBlockStatus
	if s == Extended {
		t = TypeBlockStatusExt
	}
	n := len(b)
	b = append(b, make([]byte, head)...)
	s.PutChunk(b[n:], Chunk{Done: done, Type: t, Cookie: cookie, Offset: offset, Length: uint64(s.StatusSize(len(es)) - head)})
	b = binary.BigEndian.AppendUint32(b, context)
	if s == Extended {
		b = binary.BigEndian.AppendUint32(b, uint32(len(es)))
	}
	for _, e := range es {
		if s == Extended {
			b = binary.BigEndian.AppendUint64(b, e.Length)
			b = binary.BigEndian.AppendUint64(b, uint64(e.State))
		} else {
			b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
			b = binary.BigEndian.AppendUint32(b, e.State)
		}
	}
	return b
}
