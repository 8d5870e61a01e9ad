package scsi

// Limits of a command, in bytes.
const (
	// TransferMax is the longest data of one command. READ and WRITE of more are
	// refused; the block limits page says so.
	TransferMax = 8 << 20
	// CDBMax is the longest CDB that has a meaning here.
	CDBMax = 32
	// SenseMax is the longest sense data.
	SenseMax = 64
)

// Attribute is a task attribute (SAM-5, 8.6). The numbers are those of the SCSI
// Command PDU (RFC 7143, 11.3.1).
type Attribute uint8

const (
	Untagged    Attribute = 0 // as Simple
	Simple      Attribute = 1
	Ordered     Attribute = 2
	HeadOfQueue Attribute = 3
	ACA         Attribute = 4 // refused: NormACA is not supported
)

// Status is a SCSI status code (SAM-5, 5.3.1).
type Status uint8

const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

// Command is one SCSI command. A transport pools Commands: all that a command
// needs is in it, so that a second use allocates nothing. The zero value is
// ready.
type Command struct {
	// Set before Execute and left alone until Done.

	LUN  uint64 // the eight bytes of the LUN, big-endian
	Tag  uint64 // unique among the commands of its nexus that are under way
	CDB  []byte // padding behind the length that the opcode gives is ignored
	Attr Attribute
	// Out is the data-out that arrived, at most as long as Transfer says. The
	// device server does not change it.
	Out []byte
	// In is room for data-in, as long as Transfer says.
	In []byte
	// Done is called exactly once, before Execute returns or later on another
	// goroutine. It must not block, and may reuse the Command.
	Done func(*Command)

	// Set before Done is called.

	Status Status
	// N is how many bytes of In the command returns, or would if the initiator
	// expects fewer; not zero also with CheckCondition, for what came before
	// the error.
	N int
	// Sense is the sense data of a CheckCondition, without the length that iSCSI
	// puts before it; it lies in the Command.
	Sense []byte
	// Aborted: task management ended the command; no response is sent.
	Aborted bool
}

// Name is the name of the command that a CDB holds, in lower case, as in
// "read(10)", or "unknown": a bounded set, for metrics.
func Name(cdb []byte) string { return "unknown" }
