// Package pdu is the codec of iSCSI protocol data units (RFC 7143, section 11):
// the 48 byte basic header segment of every type, additional header segments,
// padding and digests. It is pure: bytes in, values out.
//
// A PDU on the wire, with the parts that may be absent in brackets:
//
//	basic header 48 | [additional headers 4*n] | [header digest 4]
//	| [data | padding to 4 | [data digest 4]]
//
// Each type has a struct, a Decode function that reads its fields from a Header
// and a Put method that writes them. Decode never fails: what a field's value
// means, and whether it is allowed now, is for the caller to judge. Put writes the
// whole header with both segment lengths 0.
package pdu

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the length of the basic header segment, in bytes.
const HeaderSize = 48

// NoTag is the reserved value of initiator and target transfer tags.
const NoTag = 0xffffffff

// Opcode is the type of a PDU (section 11.2.1.2).
type Opcode byte

// What initiators send.
const (
	OpNopOut      Opcode = 0x00
	OpSCSICommand Opcode = 0x01
	OpTaskMgmt    Opcode = 0x02
	OpLogin       Opcode = 0x03
	OpText        Opcode = 0x04
	OpDataOut     Opcode = 0x05
	OpLogout      Opcode = 0x06
	OpSNACK       Opcode = 0x10
)

// What targets send.
const (
	OpNopIn            Opcode = 0x20
	OpSCSIResponse     Opcode = 0x21
	OpTaskMgmtResponse Opcode = 0x22
	OpLoginResponse    Opcode = 0x23
	OpTextResponse     Opcode = 0x24
	OpDataIn           Opcode = 0x25
	OpLogoutResponse   Opcode = 0x26
	OpR2T              Opcode = 0x31
	OpAsync            Opcode = 0x32
	OpReject           Opcode = 0x3f
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskMgmt: "Task Management Request",
	OpLogin: "Login Request", OpText: "Text Request", OpDataOut: "SCSI Data-Out", OpLogout: "Logout Request",
	OpSNACK: "SNACK Request", OpNopIn: "NOP-In", OpSCSIResponse: "SCSI Response",
	OpTaskMgmtResponse: "Task Management Response", OpLoginResponse: "Login Response",
	OpTextResponse: "Text Response", OpDataIn: "SCSI Data-In", OpLogoutResponse: "Logout Response",
	OpR2T: "R2T", OpAsync: "Asynchronous Message", OpReject: "Reject",
}

func (o Opcode) String() string {
	if s, ok := opcodeNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode 0x%02x", byte(o))
}

// Bits of byte 0 and of the flags byte that several types share.
const (
	immediateBit = 0x40
	finalBit     = 0x80
	continueBit  = 0x40
)

// Header is a basic header segment as it is on the wire.
type Header [HeaderSize]byte

// Opcode of the PDU.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3f) }

// Immediate tells whether the I bit is set.
func (h *Header) Immediate() bool { return h[0]&immediateBit != 0 }

// Final tells whether the F bit is set.
func (h *Header) Final() bool { return h[1]&finalBit != 0 }

// AHSLength is the length of the additional headers, in bytes: 0 to 1020.
func (h *Header) AHSLength() int { return int(h[4]) * 4 }

// DataLength is the length of the data segment without padding, in bytes:
// less than 2^24.
func (h *Header) DataLength() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLength sets the length of the data segment, 0 <= n < 2^24.
func (h *Header) SetDataLength(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// SetAHSLength sets the length of the additional headers, a multiple of 4 and
// at most 1020.
func (h *Header) SetAHSLength(n int) { h[4] = byte(n / 4) }

// ITT is the initiator task tag.
func (h *Header) ITT() uint32 { return h.u32(16) }

// LUN is the logical unit number field, as an integer of its eight bytes.
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// CmdSN is the command sequence number of the types that have one.
func (h *Header) CmdSN() uint32 { return h.u32(24) }

// ExpStatSN is the next status that the initiator expects.
func (h *Header) ExpStatSN() uint32 { return h.u32(28) }

func (h *Header) u16(at int) uint16      { return binary.BigEndian.Uint16(h[at:]) }
func (h *Header) u32(at int) uint32      { return binary.BigEndian.Uint32(h[at:]) }
func (h *Header) put16(at int, v uint16) { binary.BigEndian.PutUint16(h[at:], v) }
func (h *Header) put32(at int, v uint32) { binary.BigEndian.PutUint32(h[at:], v) }
func (h *Header) putLUN(v uint64)        { binary.BigEndian.PutUint64(h[8:], v) }
func (h *Header) begin(o Opcode, f byte) { *h = Header{0: byte(o), 1: f} }
func (h *Header) putSN(a, b, c uint32)   { h.put32(24, a); h.put32(28, b); h.put32(32, c) }
func bit(set bool, value byte) byte {
	if set {
		return value
	}
	return 0
}

// SN are the sequence numbers that every PDU of a target carries.
type SN struct {
	StatSN, ExpCmdSN, MaxCmdSN uint32
}

func (h *Header) sn() SN { return SN{h.u32(24), h.u32(28), h.u32(32)} }

// PutSN replaces the sequence numbers of a target's PDU.
func (h *Header) PutSN(s SN) { h.putSN(s.StatSN, s.ExpCmdSN, s.MaxCmdSN) }

// Before tells whether a comes before b in serial number arithmetic (RFC 1982).
func Before(a, b uint32) bool { return int32(a-b) < 0 }
