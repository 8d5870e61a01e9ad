// Package proto is the wire format of the Network Block Device protocol as its
// reference document (NetworkBlockDevice/nbd, doc/proto.md) has it: fixed
// newstyle negotiation, simple replies. It is pure: bytes in, values out, and
// back. Decoders never panic and never allocate by a length that a peer chose.
// All integers are big endian.
package proto

// Magic numbers ("Newstyle negotiation", "Request message", "Simple reply message").
const (
	MagicInit        uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	MagicOption      uint64 = 0x49484156454f5054 // "IHAVEOPT", greeting and every option
	MagicOptionReply uint64 = 0x0003e889045565a9
	MagicRequest     uint32 = 0x25609513
	MagicSimpleReply uint32 = 0x67446698
)

// Sizes of fixed parts, in bytes.
const (
	GreetingSize          = 18
	ClientFlagsSize       = 4
	OptionHeaderSize      = 16
	OptionReplyHeaderSize = 20
	RequestSize           = 28
	SimpleReplySize       = 16
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
	FlagCanMultiConn    uint16 = 1 << 8
	FlagSendFastZero    uint16 = 1 << 11
)

// TransmissionFlags are what an export of gabion can do. Flush and FUA reach
// the volume whichever connection they come on, hence CAN_MULTI_CONN. A zeroed
// range is one map record however long it is, hence FAST_ZERO.
func TransmissionFlags(readOnly bool) uint16 {
	f := FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagCanMultiConn
	if readOnly {
		return f | FlagReadOnly
	}
	return f | FlagSendTrim | FlagSendWriteZeroes | FlagSendFastZero
}

// Option is the type of a client's option.
type Option uint32

const (
	OptExportName Option = 1
	OptAbort      Option = 2
	OptList       Option = 3
	OptInfo       Option = 6
	OptGo         Option = 7
)

// Reply is the type of an option reply. Errors have bit 31 set.
type Reply uint32

const (
	RepAck    Reply = 1
	RepServer Reply = 2
	RepInfo   Reply = 3

	RepErrUnsup    Reply = 1<<31 + 1
	RepErrPolicy   Reply = 1<<31 + 2
	RepErrInvalid  Reply = 1<<31 + 3
	RepErrUnknown  Reply = 1<<31 + 6
	RepErrShutdown Reply = 1<<31 + 7
	RepErrTooBig   Reply = 1<<31 + 9
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
	CmdWriteZeroes Command = 6
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
	}
	return "unknown"
}

// Command flags.
const (
	FlagFUA      uint16 = 1 << 0
	FlagNoHole   uint16 = 1 << 1
	FlagFastZero uint16 = 1 << 4
)
