package pdu

// Attribute is how a command is ordered among others (section 11.3.1, SAM-5).
type Attribute byte

const (
	Untagged Attribute = iota
	Simple
	Ordered
	HeadOfQueue
	ACA
)

// SCSICommand is section 11.3.
type SCSICommand struct {
	Immediate, Final, Read, Write bool
	Attribute                     Attribute
	LUN                           uint64
	ITT                           uint32
	Length                        uint32 // expected data transfer length, bytes
	CmdSN, ExpStatSN              uint32
	CDB                           [16]byte
}

// DecodeSCSICommand reads a SCSI Command.
func DecodeSCSICommand(h *Header) SCSICommand {
	return SCSICommand{
		Immediate: h.Immediate(), Final: h.Final(), Read: h[1]&0x40 != 0, Write: h[1]&0x20 != 0,
		Attribute: Attribute(h[1] & 7), LUN: h.LUN(), ITT: h.ITT(), Length: h.u32(20),
		CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(), CDB: [16]byte(h[32:48]),
	}
}

// Put writes p to h.
func (p *SCSICommand) Put(h *Header) {
	h.begin(OpSCSICommand|Opcode(bit(p.Immediate, immediateBit)),
		bit(p.Final, finalBit)|bit(p.Read, 0x40)|bit(p.Write, 0x20)|byte(p.Attribute&7))
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.Length)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
	copy(h[32:], p.CDB[:])
}

// Residual tells how far the data of a command missed the expected length
// (section 11.4.5.1).
type Residual struct {
	Overflow, Underflow bool
	Count               uint32 // bytes
}

func (r Residual) bits() byte { return bit(r.Overflow, 4) | bit(r.Underflow, 2) }

func residual(h *Header, at int) Residual {
	return Residual{Overflow: h[1]&4 != 0, Underflow: h[1]&2 != 0, Count: h.u32(at)}
}

// Response codes of a SCSI Response (section 11.4.3).
const (
	ResponseCompleted     = 0x00
	ResponseTargetFailure = 0x01
)

// SCSIResponse is section 11.4. Its data are the length of the sense data (two
// bytes) and the sense data.
type SCSIResponse struct {
	Response, Status byte
	ITT, SNACKTag    uint32
	SN               SN
	ExpDataSN        uint32
	Residual         Residual
	BidiRead         Residual
}

// DecodeSCSIResponse reads a SCSI Response.
func DecodeSCSIResponse(h *Header) SCSIResponse {
	return SCSIResponse{
		Response: h[2], Status: h[3], ITT: h.ITT(), SNACKTag: h.u32(20), SN: h.sn(),
		ExpDataSN: h.u32(36), Residual: residual(h, 44),
		BidiRead: Residual{Overflow: h[1]&0x10 != 0, Underflow: h[1]&8 != 0, Count: h.u32(40)},
	}
}

// Put writes p to h.
func (p *SCSIResponse) Put(h *Header) {
	h.begin(OpSCSIResponse, finalBit|p.Residual.bits()|bit(p.BidiRead.Overflow, 0x10)|bit(p.BidiRead.Underflow, 8))
	h[2], h[3] = p.Response, p.Status
	h.put32(16, p.ITT)
	h.put32(20, p.SNACKTag)
	h.PutSN(p.SN)
	h.put32(36, p.ExpDataSN)
	h.put32(40, p.BidiRead.Count)
	h.put32(44, p.Residual.Count)
}

// DataOut is section 11.7 as initiators send it.
type DataOut struct {
	Final     bool
	LUN       uint64
	ITT, TTT  uint32
	ExpStatSN uint32
	DataSN    uint32
	Offset    uint32 // bytes
}

// DecodeDataOut reads a SCSI Data-Out.
func DecodeDataOut(h *Header) DataOut {
	return DataOut{
		Final: h.Final(), LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20),
		ExpStatSN: h.ExpStatSN(), DataSN: h.u32(36), Offset: h.u32(40),
	}
}

// Put writes p to h.
func (p *DataOut) Put(h *Header) {
	h.begin(OpDataOut, bit(p.Final, finalBit))
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.put32(28, p.ExpStatSN)
	h.put32(36, p.DataSN)
	h.put32(40, p.Offset)
}

// DataIn is section 11.7 as targets send it. HasStatus says that Status and
// Residual are valid and that StatSN counts.
type DataIn struct {
	Final, Acknowledge, HasStatus bool
	Status                        byte
	LUN                           uint64
	ITT, TTT                      uint32
	SN                            SN
	DataSN                        uint32
	Offset                        uint32 // bytes
	Residual                      Residual
}

// DecodeDataIn reads a SCSI Data-In.
func DecodeDataIn(h *Header) DataIn {
	return DataIn{
		Final: h.Final(), Acknowledge: h[1]&0x40 != 0, HasStatus: h[1]&1 != 0, Status: h[3], LUN: h.LUN(),
		ITT: h.ITT(), TTT: h.u32(20), SN: h.sn(), DataSN: h.u32(36), Offset: h.u32(40), Residual: residual(h, 44),
	}
}

// Put writes p to h.
func (p *DataIn) Put(h *Header) {
	h.begin(OpDataIn, bit(p.Final, finalBit)|bit(p.Acknowledge, 0x40)|p.Residual.bits()|bit(p.HasStatus, 1))
	h[3] = p.Status
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.PutSN(p.SN)
	h.put32(36, p.DataSN)
	h.put32(40, p.Offset)
	h.put32(44, p.Residual.Count)
}

// R2T is section 11.8.
type R2T struct {
	LUN      uint64
	ITT, TTT uint32
	SN       SN
	R2TSN    uint32
	Offset   uint32 // bytes
	Length   uint32 // bytes
}

// DecodeR2T reads a Ready To Transfer.
func DecodeR2T(h *Header) R2T {
	return R2T{
		LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20), SN: h.sn(), R2TSN: h.u32(36), Offset: h.u32(40), Length: h.u32(44),
	}
}

// Put writes p to h.
func (p *R2T) Put(h *Header) {
	h.begin(OpR2T, finalBit)
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.PutSN(p.SN)
	h.put32(36, p.R2TSN)
	h.put32(40, p.Offset)
	h.put32(44, p.Length)
}
