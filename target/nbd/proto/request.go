package proto

import "encoding/binary"

// Request is the header of a request ("Request message", and the extended one).
//
//	0       4       6      8        16       24       28
//	| magic | flags | type | cookie | offset | length |
//
// An extended request has eight bytes of length.
type Request struct {
	Flags  uint16
	Cmd    Command
	Cookie uint64 // opaque, comes back in the reply
	Offset uint64 // bytes
	// Length in bytes: of the range that the request is about or of the data
	// that follow it, see Payload.
	Length uint64
}

// DecodeRequest reads the first RequestSize bytes of b, which must be there. A
// wrong magic is a fault of kind Invalid: the stream is lost.
func DecodeRequest(b []byte) (Request, error) {
	_ = b[RequestSize-1]
	if m := binary.BigEndian.Uint32(b); m != MagicRequest {
		return Request{}, invalid("request", "magic %#x", m)
	}
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Cmd:    Command(binary.BigEndian.Uint16(b[6:])),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: uint64(binary.BigEndian.Uint32(b[24:])),
	}, nil
}

// DecodeExtendedRequest reads the first ExtendedRequestSize bytes of b, which
// must be there. A wrong magic is a fault of kind Invalid.
func DecodeExtendedRequest(b []byte) (Request, error) {
	_ = b[ExtendedRequestSize-1]
	if m := binary.BigEndian.Uint32(b); m != MagicExtended {
		return Request{}, invalid("extended request", "magic %#x", m)
	}
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Cmd:    Command(binary.BigEndian.Uint16(b[6:])),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// AppendRequest appends the header of r, whose length must fit the style.
func (s Style) AppendRequest(b []byte, r Request) []byte {
	magic := MagicRequest
	if s == Extended {
		magic = MagicExtended
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Cmd))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	if s == Extended {
		return binary.BigEndian.AppendUint64(b, r.Length)
	}
	return binary.BigEndian.AppendUint32(b, uint32(r.Length))
}

// Payload is the number of bytes that follow r, refused or not: in the compact
// styles those of a WRITE, in the extended one those that PAYLOAD_LEN announces.
func (r Request) Payload(s Style) uint64 {
	if s == Extended && r.Flags&FlagPayloadLen != 0 || s != Extended && r.Cmd == CmdWrite {
		return r.Length
	}
	return 0
}

// Geometry is what a request is checked against.
type Geometry struct {
	Size      int64 // bytes
	BlockSize int   // bytes, a power of two
	ReadOnly  bool
	Style     Style
	Contexts  int // selected metadata contexts
}

// flagsOf lists the flags that each command takes. FUA must be accepted on
// every command once SEND_FUA was offered, even where it means nothing.
func (g Geometry) flagsOf(c Command) (flags uint16, known bool) {
	switch c {
	case CmdRead:
		if g.Style != Simple {
			return FlagFUA | FlagDF, true
		}
		return FlagFUA, true
	case CmdWrite:
		if g.Style == Extended {
			return FlagFUA | FlagPayloadLen, true
		}
		return FlagFUA, true
	case CmdFlush, CmdTrim, CmdCache:
		return FlagFUA, true
	case CmdWriteZeroes:
		return FlagFUA | FlagNoHole | FlagFastZero, true
	case CmdBlockStatus:
		if g.Style == Extended && g.Contexts > 0 {
			return FlagFUA | FlagReqOne | FlagPayloadLen, true
		}
		return FlagFUA | FlagReqOne, g.Contexts > 0
	}
	return 0, false
}

// Check decides whether r may be executed: OK, or the error to answer with and
// a sentence for people. It does not concern DISC, which has no answer. After
// OK, [Offset, Offset+Length) of a data command lies in [0, Size), is aligned,
// not empty, and for READ and WRITE no longer than PayloadMax. A refused
// request is still followed by its payload. Of a BLOCK_STATUS with a payload
// only the flags are checked: its length is in the payload.
func (r Request) Check(g Geometry) (e Errno, why string) {
	flags, known := g.flagsOf(r.Cmd)
	switch {
	case r.Cmd == CmdBlockStatus && g.Contexts == 0:
		return EINVAL, "no metadata context was selected for this export"
	case !known:
		return EINVAL, "unknown command"
	case r.Flags&^flags != 0:
		return EINVAL, "a flag that this command does not take"
	case r.Cmd == CmdWrite && g.Style == Extended && r.Flags&FlagPayloadLen == 0:
		return EINVAL, "a write without its data"
	case r.Cmd == CmdBlockStatus && r.Flags&FlagPayloadLen != 0:
		return OK, ""
	case r.Cmd == CmdFlush:
		// Offset and length are reserved and must be zero; a client that
		// breaks this may hope for a partial flush, which does not exist.
		if r.Offset != 0 || r.Length != 0 {
			return EINVAL, "a flush is of the whole device"
		}
		return OK, ""
	}
	return r.checkRange(g)
}

// changes tells whether c is a command that changes the device.
func changes(c Command) bool { return c == CmdWrite || c == CmdTrim || c == CmdWriteZeroes }

func (r Request) checkRange(g Geometry) (Errno, string) {
	if changes(r.Cmd) && g.ReadOnly {
		return EPERM, "the export is read-only"
	}
	if (r.Offset|r.Length)&uint64(g.BlockSize-1) != 0 {
		return EINVAL, "offset or length is not a multiple of the minimum block size"
	}
	if r.Length == 0 {
		return EINVAL, "the length is 0"
	}
	size := uint64(g.Size)
	if r.Offset > size || r.Length > size-r.Offset {
		if r.Cmd == CmdWrite || r.Cmd == CmdWriteZeroes {
			return ENOSPC, "beyond the end of the export"
		}
		return EINVAL, "beyond the end of the export"
	}
	if (r.Cmd == CmdRead || r.Cmd == CmdWrite) && r.Length > PayloadMax {
		if r.Cmd == CmdRead && g.Style != Simple {
			return EOVERFLOW, "longer than the maximum payload"
		}
		return EINVAL, "longer than the maximum payload"
	}
	return OK, ""
}

// StatusQueryMax bounds the payload of a BLOCK_STATUS request, in bytes.
const StatusQueryMax = 8 + 4*ContextsMax

// DecodeStatusQuery reads the payload of a BLOCK_STATUS request: u64 effect
// length, then ids of metadata contexts, which it appends to ids. A fault of
// kind Invalid: it has another form or names an id twice or none.
func DecodeStatusQuery(b []byte, ids []uint32) (length uint64, _ []uint32, err error) {
	const op = "block status payload"
	if len(b) < 12 || len(b) > StatusQueryMax || len(b)%4 != 0 {
		return 0, ids, invalid(op, "%d bytes", len(b))
	}
	length = binary.BigEndian.Uint64(b)
	first := len(ids)
	for b = b[8:]; len(b) > 0; b = b[4:] {
		id := binary.BigEndian.Uint32(b)
		for _, have := range ids[first:] {
			if have == id {
				return 0, ids[:first], invalid(op, "context %d twice", id)
			}
		}
		ids = append(ids, id)
	}
	return length, ids, nil
}

// AppendStatusQuery appends the payload of a BLOCK_STATUS request.
func AppendStatusQuery(b []byte, length uint64, ids []uint32) []byte {
	b = binary.BigEndian.AppendUint64(b, length)
	for _, id := range ids {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}
