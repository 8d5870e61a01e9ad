package proto

import "encoding/binary"

// Request is the header of a request ("Request message").
//
//	0       4       6      8        16       24       28
//	| magic | flags | type | cookie | offset | length |
type Request struct {
	Flags  uint16
	Cmd    Command
	Cookie uint64 // opaque, comes back in the reply
	Offset uint64 // bytes
	Length uint32 // bytes; a WRITE is followed by this many
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
		Length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// AppendRequest appends the header of r.
func AppendRequest(b []byte, r Request) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicRequest)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Cmd))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint32(b, r.Length)
}

// Geometry is what a request is checked against.
type Geometry struct {
	Size      int64 // bytes
	BlockSize int   // bytes, a power of two
	ReadOnly  bool
}

// flagsOf lists the flags that each command takes. FUA must be accepted on
// every command once SEND_FUA was offered, even where it means nothing.
func flagsOf(c Command) (flags uint16, known bool) {
	switch c {
	case CmdRead, CmdWrite, CmdFlush, CmdTrim:
		return FlagFUA, true
	case CmdWriteZeroes:
		return FlagFUA | FlagNoHole | FlagFastZero, true
	}
	return 0, false
}

// Check decides whether r may be executed: OK, or the error to answer with. It
// does not concern DISC, which has no answer. After OK, [Offset,
// Offset+Length) of a data command lies in [0, Size), is aligned, not empty,
// and for READ and WRITE no longer than PayloadMax. A refused WRITE is still
// followed by its data.
func (r Request) Check(g Geometry) Errno {
	flags, known := flagsOf(r.Cmd)
	if !known || r.Flags&^flags != 0 {
		return EINVAL
	}
	if r.Cmd == CmdFlush {
		// Offset and length are reserved and must be zero; a client that
		// breaks this may hope for a partial flush, which does not exist.
		if r.Offset != 0 || r.Length != 0 {
			return EINVAL
		}
		return OK
	}
	writes := r.Cmd != CmdRead
	if writes && g.ReadOnly {
		return EPERM
	}
	if (r.Offset|uint64(r.Length))&uint64(g.BlockSize-1) != 0 || r.Length == 0 {
		return EINVAL
	}
	size := uint64(g.Size)
	if r.Offset > size || uint64(r.Length) > size-r.Offset {
		if r.Cmd == CmdWrite || r.Cmd == CmdWriteZeroes {
			return ENOSPC
		}
		return EINVAL
	}
	if (r.Cmd == CmdRead || r.Cmd == CmdWrite) && r.Length > PayloadMax {
		return EINVAL
	}
	return OK
}

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
