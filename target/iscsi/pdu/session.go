package pdu

import "fmt"

// Stage of a login (section 11.12.3).
type Stage byte

const (
	StageSecurity    Stage = 0
	StageOperational Stage = 1
	StageFullFeature Stage = 3
)

func (s Stage) String() string {
	switch s {
	case StageSecurity:
		return "security"
	case StageOperational:
		return "operational"
	case StageFullFeature:
		return "full feature"
	}
	return fmt.Sprintf("stage %d", byte(s))
}

// ISID is the initiator's part of a session's identity (section 11.12.5).
type ISID [6]byte

// LoginRequest is section 11.12.
type LoginRequest struct {
	Transit, Continue      bool
	Current, Next          Stage
	VersionMax, VersionMin byte
	ISID                   ISID
	TSIH                   uint16
	ITT                    uint32
	CID                    uint16
	CmdSN, ExpStatSN       uint32
}

func stages(t, c bool, cur, next Stage) byte {
	return bit(t, finalBit) | bit(c, continueBit) | byte(cur&3)<<2 | byte(next&3)
}

// DecodeLoginRequest reads a Login Request.
func DecodeLoginRequest(h *Header) LoginRequest {
	return LoginRequest{
		Transit: h.Final(), Continue: h[1]&continueBit != 0, Current: Stage(h[1] >> 2 & 3), Next: Stage(h[1] & 3),
		VersionMax: h[2], VersionMin: h[3], ISID: ISID(h[8:14]), TSIH: h.u16(14), ITT: h.ITT(), CID: h.u16(20),
		CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(),
	}
}

// Put writes p to h. A login is always immediate.
func (p *LoginRequest) Put(h *Header) {
	h.begin(OpLogin|immediateBit, stages(p.Transit, p.Continue, p.Current, p.Next))
	h[2], h[3] = p.VersionMax, p.VersionMin
	copy(h[8:], p.ISID[:])
	h.put16(14, p.TSIH)
	h.put32(16, p.ITT)
	h.put16(20, p.CID)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
}

// LoginStatus is class and detail of a login's outcome (section 11.13.5).
type LoginStatus uint16

const (
	LoginSuccess            LoginStatus = 0x0000
	LoginMovedTemporarily   LoginStatus = 0x0101
	LoginInitiatorError     LoginStatus = 0x0200
	LoginNotAuthenticated   LoginStatus = 0x0201
	LoginNotAuthorized      LoginStatus = 0x0202
	LoginNotFound           LoginStatus = 0x0203
	LoginRemoved            LoginStatus = 0x0204
	LoginUnsupportedVersion LoginStatus = 0x0205
	LoginTooManyConnections LoginStatus = 0x0206
	LoginMissingParameter   LoginStatus = 0x0207
	LoginCannotInclude      LoginStatus = 0x0208
	LoginSessionType        LoginStatus = 0x0209
	LoginNoSession          LoginStatus = 0x020a
	LoginInvalidRequest     LoginStatus = 0x020b
	LoginTargetError        LoginStatus = 0x0300
	LoginServiceUnavailable LoginStatus = 0x0301
	LoginOutOfResources     LoginStatus = 0x0302
)

// LoginResponse is section 11.13.
type LoginResponse struct {
	Transit, Continue         bool
	Current, Next             Stage
	VersionMax, VersionActive byte
	ISID                      ISID
	TSIH                      uint16
	ITT                       uint32
	SN                        SN
	Status                    LoginStatus
}

// DecodeLoginResponse reads a Login Response.
func DecodeLoginResponse(h *Header) LoginResponse {
	return LoginResponse{
		Transit: h.Final(), Continue: h[1]&continueBit != 0, Current: Stage(h[1] >> 2 & 3), Next: Stage(h[1] & 3),
		VersionMax: h[2], VersionActive: h[3], ISID: ISID(h[8:14]), TSIH: h.u16(14), ITT: h.ITT(), SN: h.sn(),
		Status: LoginStatus(h.u16(36)),
	}
}

// Put writes p to h.
func (p *LoginResponse) Put(h *Header) {
	h.begin(OpLoginResponse, stages(p.Transit, p.Continue, p.Current, p.Next))
	h[2], h[3] = p.VersionMax, p.VersionActive
	copy(h[8:], p.ISID[:])
	h.put16(14, p.TSIH)
	h.put32(16, p.ITT)
	h.PutSN(p.SN)
	h.put16(36, uint16(p.Status))
}

// TextRequest is section 11.10.
type TextRequest struct {
	Immediate, Final, Continue bool
	LUN                        uint64
	ITT, TTT                   uint32
	CmdSN, ExpStatSN           uint32
}

// DecodeTextRequest reads a Text Request.
func DecodeTextRequest(h *Header) TextRequest {
	return TextRequest{
		Immediate: h.Immediate(), Final: h.Final(), Continue: h[1]&continueBit != 0, LUN: h.LUN(),
		ITT: h.ITT(), TTT: h.u32(20), CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(),
	}
}

// Put writes p to h.
func (p *TextRequest) Put(h *Header) {
	h.begin(OpText|Opcode(bit(p.Immediate, immediateBit)), bit(p.Final, finalBit)|bit(p.Continue, continueBit))
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
}

// TextResponse is section 11.11.
type TextResponse struct {
	Final, Continue bool
	LUN             uint64
	ITT, TTT        uint32
	SN              SN
}

// DecodeTextResponse reads a Text Response.
func DecodeTextResponse(h *Header) TextResponse {
	return TextResponse{
		Final: h.Final(), Continue: h[1]&continueBit != 0, LUN: h.LUN(), ITT: h.ITT(), TTT: h.u32(20), SN: h.sn(),
	}
}

// Put writes p to h.
func (p *TextResponse) Put(h *Header) {
	h.begin(OpTextResponse, bit(p.Final, finalBit)|bit(p.Continue, continueBit))
	h.putLUN(p.LUN)
	h.put32(16, p.ITT)
	h.put32(20, p.TTT)
	h.PutSN(p.SN)
}

// Reasons of a logout (section 11.14.1) and outcomes (section 11.15.1).
const (
	LogoutSession    = 0
	LogoutConnection = 1
	LogoutRecovery   = 2

	LoggedOut           = 0
	LogoutNoCID         = 1
	LogoutNoRecovery    = 2
	LogoutCleanupFailed = 3
)

// LogoutRequest is section 11.14.
type LogoutRequest struct {
	Immediate        bool
	Reason           byte // 7 bits
	ITT              uint32
	CID              uint16
	CmdSN, ExpStatSN uint32
}

// DecodeLogoutRequest reads a Logout Request.
func DecodeLogoutRequest(h *Header) LogoutRequest {
	return LogoutRequest{
		Immediate: h.Immediate(), Reason: h[1] & 0x7f, ITT: h.ITT(), CID: h.u16(20),
		CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(),
	}
}

// Put writes p to h.
func (p *LogoutRequest) Put(h *Header) {
	h.begin(OpLogout|Opcode(bit(p.Immediate, immediateBit)), finalBit|p.Reason&0x7f)
	h.put32(16, p.ITT)
	h.put16(20, p.CID)
	h.put32(24, p.CmdSN)
	h.put32(28, p.ExpStatSN)
}

// LogoutResponse is section 11.15.
type LogoutResponse struct {
	Response               byte
	ITT                    uint32
	SN                     SN
	Time2Wait, Time2Retain uint16 // seconds
}

// DecodeLogoutResponse reads a Logout Response.
func DecodeLogoutResponse(h *Header) LogoutResponse {
	return LogoutResponse{Response: h[2], ITT: h.ITT(), SN: h.sn(), Time2Wait: h.u16(40), Time2Retain: h.u16(42)}
}

// Put writes p to h.
func (p *LogoutResponse) Put(h *Header) {
	h.begin(OpLogoutResponse, finalBit)
	h[2] = p.Response
	h.put32(16, p.ITT)
	h.PutSN(p.SN)
	h.put16(40, p.Time2Wait)
	h.put16(42, p.Time2Retain)
}
