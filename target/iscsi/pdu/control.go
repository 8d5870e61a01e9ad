package pdu

// Function is a task management function (section 11.5.1).
type Function byte

const (
	AbortTask       Function = 1
	AbortTaskSet    Function = 2
	ClearACA        Function = 3
	ClearTaskSet    Function = 4
	LUNReset        Function = 5
	TargetWarmReset Function = 6
	TargetColdReset Function = 7
	TaskReassign    Function = 8
	QueryTask       Function = 9 // RFC 7144
	QueryTaskSet    Function = 10
	ITNexusReset    Function = 11
	QueryAsyncEvent Function = 12
)

var functionNames = [...]string{
	"function 0", "ABORT TASK", "ABORT TASK SET", "CLEAR ACA", "CLEAR TASK SET", "LOGICAL UNIT RESET",
	"TARGET WARM RESET", "TARGET COLD RESET", "TASK REASSIGN", "QUERY TASK", "QUERY TASK SET", "I_T NEXUS RESET",
	"QUERY ASYNCHRONOUS EVENT",
}

func (f Function) String() string {
	if int(f) < len(functionNames) {
		return functionNames[f]
	}
	return "an unknown function"
}

// Outcomes of a task management function (section 11.6.1).
const (
	FunctionComplete      = 0
	FunctionNoTask        = 1
	FunctionNoLUN         = 2
	FunctionAllegiant     = 3
	FunctionNoReassign    = 4
	FunctionNotSupported  = 5
	FunctionNotAuthorized = 6
	FunctionSucceeded     = 7 // RFC 7144: the task or event is there
	FunctionRejected      = 255
)

// TaskMgmt is section 11.5.
type TaskMgmt struct {
	Immediate        bool
	Function         Function // 7 bits
	LUN              uint64
	ITT, RefITT      uint32
	CmdSN, ExpStatSN uint32
	RefCmdSN         uint32
	ExpDataSN        uint32
}

// DecodeTaskMgmt reads a Task Management Function Request.
func DecodeTaskMgmt(h *Header) TaskMgmt {
	return TaskMgmt{
		Immediate: h.Immediate(), Function: Function(h[1] & 0x7f), LUN: h.LUN(), ITT: h.ITT(), RefITT: h.u32(20),
		CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(), RefCmdSN: h.u32(32), ExpDataSN: h.u32(36),
	}
}

// Put writes p to h.
func (p *TaskMgmt) Put(h *Header) {
	h.begin(OpTaskMgmt|Opcode(bit(p.Immediate, immediateBit)), finalBit|byte(p.Function&0x7f))
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.RefITT)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
	h.put32(32, p.RefCmdSN)
	h.put32(36, p.ExpDataSN)
}

// TaskMgmtResponse is section 11.6.
type TaskMgmtResponse struct {
	Response byte
	ITT      uint32
	SN       SN
}

// DecodeTaskMgmtResponse reads a Task Management Function Response.
func DecodeTaskMgmtResponse(h *Header) TaskMgmtResponse {
	return TaskMgmtResponse{Response: h[2], ITT: h.ITT(), SN: h.sn()}
}

// Put writes p to h.
func (p *TaskMgmtResponse) Put(h *Header) {
	h.begin(OpTaskMgmtResponse, finalBit)
	h[2] = p.Response
	h.put32(16, p.ITT)
	h.PutSN(p.SN)
}

// NopOut is section 11.18.
type NopOut struct {
	Immediate        bool
	LUN              uint64
	ITT, TTT         uint32
	CmdSN, ExpStatSN uint32
}

// DecodeNopOut reads a NOP-Out.
func DecodeNopOut(h *Header) NopOut {
	return NopOut{
		Immediate: h.Immediate(), LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20), CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(),
	}
}

// Put writes p to h.
func (p *NopOut) Put(h *Header) {
	h.begin(OpNopOut|Opcode(bit(p.Immediate, immediateBit)), finalBit)
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
}

// NopIn is section 11.19.
type NopIn struct {
	LUN      uint64
	ITT, TTT uint32
	SN       SN
}

// DecodeNopIn reads a NOP-In.
func DecodeNopIn(h *Header) NopIn {
	return NopIn{LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20), SN: h.sn()}
}

// Put writes p to h.
func (p *NopIn) Put(h *Header) {
	h.begin(OpNopIn, finalBit)
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.PutSN(p.SN)
}

// SNACK is section 11.16.
type SNACK struct {
	Type           byte // 4 bits
	LUN            uint64
	ITT, TTT       uint32
	ExpStatSN      uint32
	BegRun, Length uint32
}

// DecodeSNACK reads a SNACK Request.
func DecodeSNACK(h *Header) SNACK {
	return SNACK{
		Type: h[1] & 15, LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20), ExpStatSN: h.ExpStatSN(),
		BegRun: h.u32(40), Length: h.u32(44),
	}
}

// Put writes p to h.
func (p *SNACK) Put(h *Header) {
	h.begin(OpSNACK, finalBit|p.Type&15)
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.put32(28, p.ExpStatSN)
	h.put32(40, p.BegRun)
	h.put32(44, p.Length)
}

// Asynchronous events (section 11.9.1).
const (
	EventSCSI           = 0 // sense data follow
	EventLogout         = 1 // log out within Parameter3 seconds
	EventDropConnection = 2
	EventDropAll        = 3
	EventNegotiate      = 4
)

// Async is section 11.9. Its data, for EventSCSI, are the length of the sense
// data (two bytes) and the sense data.
type Async struct {
	LUN                                uint64
	SN                                 SN
	Event, VCode                       byte
	Parameter1, Parameter2, Parameter3 uint16
}

// DecodeAsync reads an Asynchronous Message.
func DecodeAsync(h *Header) Async {
	return Async{
		LUN: h.LUN(), SN: h.sn(), Event: h[36], VCode: h[37], Parameter1: h.u16(38), Parameter2: h.u16(40), Parameter3: h.u16(42),
	}
}

// Put writes p to h.
func (p *Async) Put(h *Header) {
	h.begin(OpAsync, finalBit)
	h.putLUN(p.LUN)
	h.put32(16, NoTag)
	h.PutSN(p.SN)
	h[36], h[37] = p.Event, p.VCode
	h.put16(38, p.Parameter1)
	h.put16(40, p.Parameter2)
	h.put16(42, p.Parameter3)
}

// Reasons of a Reject (section 11.17.1).
const (
	RejectDataDigest    = 0x02
	RejectSNACK         = 0x03
	RejectProtocol      = 0x04
	RejectNotSupported  = 0x05
	RejectImmediate     = 0x06 // too many immediate commands
	RejectTaskInUse     = 0x07
	RejectInvalidAck    = 0x08
	RejectInvalidField  = 0x09
	RejectLongOperation = 0x0a
	RejectLogout        = 0x0c // waiting for logout
)

// Reject is section 11.17. Its data are the header that was refused.
type Reject struct {
	Reason byte
	SN     SN
	DataSN uint32
}

// DecodeReject reads a Reject.
func DecodeReject(h *Header) Reject { return Reject{Reason: h[2], SN: h.sn(), DataSN: h.u32(36)} }

// Put writes p to h.
func (p *Reject) Put(h *Header) {
	h.begin(OpReject, finalBit)
	h[2] = p.Reason
	h.put32(16, NoTag)
	h.PutSN(p.SN)
	h.put32(36, p.DataSN)
}
