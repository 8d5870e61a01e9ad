// Package proto is the wire format of the Network Block Device protocol as its
// reference document (NetworkBlockDevice/nbd, doc/proto.md) has it: fixed
// newstyle negotiation, simple and structured replies, metadata contexts, and
// the extended headers of the branch extension-ext-header. It is pure: bytes
// in, values out, and back. Decoders never panic and never allocate by a length
// that a peer chose. All integers are big endian.
package proto

// Magic numbers ("Newstyle negotiation", "Request message", "Simple reply
// message", "Structured reply chunk message", and the extended ones).
const (
	MagicInit        uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	MagicOption      uint64 = 0x49484156454f5054 // "IHAVEOPT", greeting and every option
	MagicOptionReply uint64 = 0x0003e889045565a9
	MagicRequest     uint32 = 0x25609513
	MagicSimpleReply uint32 = 0x67446698
	MagicStructured  uint32 = 0x668e33ef
	MagicExtended    uint32 = 0x21e41c71 // a request
	MagicExtReply    uint32 = 0x6e8a278c
)

// Sizes of fixed parts, in bytes.
const (
	GreetingSize          = 18
	ClientFlagsSize       = 4
	OptionHeaderSize      = 16
	OptionReplyHeaderSize = 20
	RequestSize           = 28
	ExtendedRequestSize   = 32
	SimpleReplySize       = 16
	StructuredChunkSize   = 20 // header of a chunk
	ExtendedChunkSize     = 32
	// ExportNamePadding follows size and flags in the answer to OptExportName
	// unless both sides agreed on NO_ZEROES.
	ExportNamePadding = 124
)

// Limits that the server sets on what a client may send, in bytes.
const (
	// NameMax bounds an export name; the document bounds every string so.
	NameMax = 4096
	// OptionMax bounds the data of one option.
	OptionMax = 64 << 10
	// TextMax bounds the sentence in an error chunk.
	TextMax = 256
	// PayloadMax bounds the data of one READ or WRITE. The document asks
	// portable servers for at least this ("Size constraints").
	PayloadMax = 32 << 20
	// BlockPreferred is the block size that the server asks clients to use.
	BlockPreferred = 4096
)

// Handshake flags of the server and of the client.
const (
	FlagFixedNewstyle uint16 = 1 << 0
	FlagNoZeroes      uint16 = 1 << 1

	FlagClientFixedNewstyle uint32 = 1 << 0
	FlagClientNoZeroes      uint32 = 1 << 1
)

// Transmission flags.
const (
	FlagHasFlags        uint16 = 1 << 0
	FlagReadOnly        uint16 = 1 << 1
	FlagSendFlush       uint16 = 1 << 2
	FlagSendFUA         uint16 = 1 << 3
	FlagSendTrim        uint16 = 1 << 5
	FlagSendWriteZeroes uint16 = 1 << 6
	FlagSendDF          uint16 = 1 << 7
	FlagCanMultiConn    uint16 = 1 << 8
	FlagSendCache       uint16 = 1 << 10
	FlagSendFastZero    uint16 = 1 << 11
	FlagStatusPayload   uint16 = 1 << 12
)

// TransmissionFlags are what an export of gabion can do for a client that
// negotiated style and, if contexts, at least one metadata context. Flush and
// FUA reach the volume whichever connection they come on, hence CAN_MULTI_CONN.
// A zeroed range is one map record however long it is, hence FAST_ZERO.
func TransmissionFlags(readOnly bool, style Style, contexts bool) uint16 {
	f := FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagCanMultiConn | FlagSendCache
	if style != Simple {
		f |= FlagSendDF
	}
	if style == Extended && contexts {
		f |= FlagStatusPayload
	}
	if readOnly {
		return f | FlagReadOnly
	}
	return f | FlagSendTrim | FlagSendWriteZeroes | FlagSendFastZero
}

// Style is the form that messages of the transmission phase have. Each one
// includes what the one before it can do.
type Style uint8

const (
	// Simple: compact requests, simple replies.
	Simple Style = iota
	// Structured: compact requests; reads and errors are answered in chunks.
	Structured
	// Extended: requests with 64-bit lengths, all answers in chunks.
	Extended
)

// RequestSize is the length of a request's header, in bytes.
func (s Style) RequestSize() int {
	if s == Extended {
		return ExtendedRequestSize
	}
	return RequestSize
}

// ChunkSize is the length of a chunk's header, in bytes; 0 without chunks.
func (s Style) ChunkSize() int {
	switch s {
	case Structured:
		return StructuredChunkSize
	case Extended:
		return ExtendedChunkSize
	}
	return 0
}

// ReadSize is what stands before the data of a READ's answer, in bytes, when
// the data come in one piece.
func (s Style) ReadSize() int {
	if s == Simple {
		return SimpleReplySize
	}
	return s.ChunkSize() + 8
}

// DoneSize is the length of an answer that only says that all went well, in bytes.
func (s Style) DoneSize() int {
	if s == Extended {
		return ExtendedChunkSize
	}
	return SimpleReplySize
}

// Option is the type of a client's option.
type Option uint32

const (
	OptExportName Option = 1
	OptAbort      Option = 2
	OptList       Option = 3
	OptStartTLS   Option = 5
	OptInfo       Option = 6
	OptGo         Option = 7

	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

// Reply is the type of an option reply. Errors have bit 31 set.
type Reply uint32

const (
	RepAck    Reply = 1
	RepServer Reply = 2
	RepInfo   Reply = 3

	RepMetaContext Reply = 4

	RepErrUnsup    Reply = 1<<31 + 1
	RepErrPolicy   Reply = 1<<31 + 2
	RepErrInvalid  Reply = 1<<31 + 3
	RepErrTLSReqd  Reply = 1<<31 + 5
	RepErrUnknown  Reply = 1<<31 + 6
	RepErrShutdown Reply = 1<<31 + 7
	RepErrTooBig   Reply = 1<<31 + 9

	RepErrExtHeaderReqd Reply = 1<<31 + 10
)

// Info is the type of an information item of OptInfo and OptGo.
type Info uint16

const (
	InfoExport      Info = 0
	InfoName        Info = 1
	InfoDescription Info = 2
	InfoBlockSize   Info = 3
)

// Command is the type of a request.
type Command uint16

const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

func (c Command) String() string {
	switch c {
	case CmdRead:
		return "read"
	case CmdWrite:
		return "write"
	case CmdDisc:
		return "disc"
	case CmdFlush:
		return "flush"
	case CmdTrim:
		return "trim"
	case CmdWriteZeroes:
		return "write_zeroes"
	case CmdCache:
		return "cache"
	case CmdBlockStatus:
		return "block_status"
	}
	return "unknown"
}

// Command flags.
const (
	FlagFUA        uint16 = 1 << 0
	FlagNoHole     uint16 = 1 << 1
	FlagDF         uint16 = 1 << 2
	FlagReqOne     uint16 = 1 << 3
	FlagFastZero   uint16 = 1 << 4
	FlagPayloadLen uint16 = 1 << 5
)
