package pdu

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

// sn fills the sequence numbers of a target's PDU.
var sn = SN{StatSN: 0x11121314, ExpCmdSN: 0x21222324, MaxCmdSN: 0x31323334}

// golden has one PDU of every type, with the bytes that RFC 7143 section 11 gives it.
var golden = []struct {
	name string
	put  func(h *Header)
	want string
}{
	{"NOP-Out", func(h *Header) {
		(&NopOut{Immediate: true, LUN: 1 << 48, ITT: 2, TTT: NoTag, CmdSN: 3, ExpStatSN: 4}).Put(h)
	}, "40800000 00000000 0001000000000000 00000002 ffffffff 00000003 00000004 00000000000000000000000000000000"},
	{"SCSI Command", func(h *Header) {
		(&SCSICommand{Final: true, Read: true, Attribute: Simple, ITT: 0x01020304, Length: 4096, CmdSN: 5, ExpStatSN: 6,
			CDB: [16]byte{0x28, 9: 8}}).Put(h)
	}, "01c10000 00000000 0000000000000000 01020304 00001000 00000005 00000006 28000000000000000008000000000000"},
	{"Task Management Request", func(h *Header) {
		(&TaskMgmt{Immediate: true, Function: AbortTask, ITT: 7, RefITT: 6, CmdSN: 5, ExpStatSN: 4, RefCmdSN: 3, ExpDataSN: 2}).Put(h)
	}, "42810000 00000000 0000000000000000 00000007 00000006 00000005 00000004 00000003 00000002 0000000000000000"},
	{"Login Request", func(h *Header) {
		(&LoginRequest{Transit: true, Current: StageOperational, Next: StageFullFeature, ISID: ISID{0x40, 0, 1, 0x37}, TSIH: 0x99,
			ITT: 1, CID: 2, CmdSN: 3, ExpStatSN: 4}).Put(h)
	}, "43870000 00000000 400001370000 0099 00000001 00020000 00000003 00000004 00000000000000000000000000000000"},
	{"Text Request", func(h *Header) {
		(&TextRequest{Final: true, Continue: true, ITT: 1, TTT: NoTag, CmdSN: 3, ExpStatSN: 4}).Put(h)
	}, "04c00000 00000000 0000000000000000 00000001 ffffffff 00000003 00000004 00000000000000000000000000000000"},
	{"SCSI Data-Out", func(h *Header) {
		(&DataOut{Final: true, LUN: 1 << 48, ITT: 1, TTT: 2, ExpStatSN: 4, DataSN: 5, Offset: 6}).Put(h)
	}, "05800000 00000000 0001000000000000 00000001 00000002 00000000 00000004 00000000 00000005 00000006 00000000"},
	{"Logout Request", func(h *Header) {
		(&LogoutRequest{Reason: LogoutConnection, ITT: 1, CID: 2, CmdSN: 3, ExpStatSN: 4}).Put(h)
	}, "06810000 00000000 0000000000000000 00000001 00020000 00000003 00000004 00000000000000000000000000000000"},
	{"SNACK", func(h *Header) {
		(&SNACK{Type: 1, ITT: 1, TTT: NoTag, ExpStatSN: 4, BegRun: 5, Length: 6}).Put(h)
	}, "10810000 00000000 0000000000000000 00000001 ffffffff 00000000 00000004 0000000000000000 00000005 00000006"},
	{"NOP-In", func(h *Header) {
		(&NopIn{ITT: NoTag, TTT: 2, SN: sn}).Put(h)
	}, "20800000 00000000 0000000000000000 ffffffff 00000002 11121314 21222324 31323334 000000000000000000000000"},
	{"SCSI Response", func(h *Header) {
		(&SCSIResponse{Status: 2, ITT: 1, SN: sn, ExpDataSN: 3, Residual: Residual{Underflow: true, Count: 4}}).Put(h)
	}, "21820002 00000000 0000000000000000 00000001 00000000 11121314 21222324 31323334 00000003 00000000 00000004"},
	{"Task Management Response", func(h *Header) {
		(&TaskMgmtResponse{Response: FunctionNotSupported, ITT: 1, SN: sn}).Put(h)
	}, "22800500 00000000 0000000000000000 00000001 00000000 11121314 21222324 31323334 000000000000000000000000"},
	{"Login Response", func(h *Header) {
		(&LoginResponse{Transit: true, Current: StageSecurity, Next: StageOperational, ISID: ISID{1, 2, 3, 4, 5, 6}, TSIH: 7, ITT: 1,
			SN: sn, Status: LoginNotAuthenticated}).Put(h)
	}, "23810000 00000000 010203040506 0007 00000001 00000000 11121314 21222324 31323334 02010000 0000000000000000"},
	{"Text Response", func(h *Header) {
		(&TextResponse{Final: true, ITT: 1, TTT: NoTag, SN: sn}).Put(h)
	}, "24800000 00000000 0000000000000000 00000001 ffffffff 11121314 21222324 31323334 000000000000000000000000"},
	{"SCSI Data-In", func(h *Header) {
		(&DataIn{Final: true, HasStatus: true, ITT: 1, TTT: NoTag, SN: sn, DataSN: 2, Offset: 3, Residual: Residual{Overflow: true, Count: 4}}).Put(h)
	}, "25850000 00000000 0000000000000000 00000001 ffffffff 11121314 21222324 31323334 00000002 00000003 00000004"},
	{"Logout Response", func(h *Header) {
		(&LogoutResponse{Response: LogoutNoCID, ITT: 1, SN: sn, Time2Wait: 2, Time2Retain: 3}).Put(h)
	}, "26800100 00000000 0000000000000000 00000001 00000000 11121314 21222324 31323334 00000000 00020003 00000000"},
	{"R2T", func(h *Header) {
		(&R2T{ITT: 1, TTT: 2, SN: sn, R2TSN: 3, Offset: 4, Length: 5}).Put(h)
	}, "31800000 00000000 0000000000000000 00000001 00000002 11121314 21222324 31323334 00000003 00000004 00000005"},
	{"Asynchronous Message", func(h *Header) {
		(&Async{SN: sn, Event: EventLogout, Parameter3: 5}).Put(h)
	}, "32800000 00000000 0000000000000000 ffffffff 00000000 11121314 21222324 31323334 01000000 00000005 00000000"},
	{"Reject", func(h *Header) {
		(&Reject{Reason: RejectProtocol, SN: sn, DataSN: 1}).Put(h)
	}, "3f800400 00000000 0000000000000000 ffffffff 00000000 11121314 21222324 31323334 00000001 0000000000000000"},
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenBytes(t *testing.T) {
	seen := map[Opcode]bool{}
	for _, g := range golden {
		var h Header
		g.put(&h)
		if want := unhex(t, g.want); !bytes.Equal(h[:], want) {
			t.Errorf("%s:\n got %x\nwant %x", g.name, h[:], want)
		}
		if again := recode(&h); again != h {
			t.Errorf("%s: decoded and encoded again:\n got %x\nwant %x", g.name, again[:], h[:])
		}
		seen[h.Opcode()] = true
	}
	for o := range opcodeNames {
		if !seen[o] {
			t.Errorf("%v has no golden bytes", o)
		}
	}
}

// recode decodes a header by its opcode and encodes it again.
func recode(h *Header) (out Header) {
	put := func(p interface{ Put(*Header) }) { p.Put(&out) }
	switch h.Opcode() {
	case OpNopOut:
		p := DecodeNopOut(h)
		put(&p)
	case OpSCSICommand:
		p := DecodeSCSICommand(h)
		put(&p)
	case OpTaskMgmt:
		p := DecodeTaskMgmt(h)
		put(&p)
	case OpLogin:
		p := DecodeLoginRequest(h)
		put(&p)
	case OpText:
		p := DecodeTextRequest(h)
		put(&p)
	case OpDataOut:
		p := DecodeDataOut(h)
		put(&p)
	case OpLogout:
		p := DecodeLogoutRequest(h)
		put(&p)
	case OpSNACK:
		p := DecodeSNACK(h)
		put(&p)
	case OpNopIn:
		p := DecodeNopIn(h)
		put(&p)
	case OpSCSIResponse:
		p := DecodeSCSIResponse(h)
		put(&p)
	case OpTaskMgmtResponse:
		p := DecodeTaskMgmtResponse(h)
		put(&p)
	case OpLoginResponse:
		p := DecodeLoginResponse(h)
		put(&p)
	case OpTextResponse:
		p := DecodeTextResponse(h)
		put(&p)
	case OpDataIn:
		p := DecodeDataIn(h)
		put(&p)
	case OpLogoutResponse:
		p := DecodeLogoutResponse(h)
		put(&p)
	case OpR2T:
		p := DecodeR2T(h)
		put(&p)
	case OpAsync:
		p := DecodeAsync(h)
		put(&p)
	case OpReject:
		p := DecodeReject(h)
		put(&p)
	}
	return out
}

// FuzzHeader: what a decoder keeps of a header it keeps for good. Reserved bits
// are lost once, and nothing after that.
func FuzzHeader(f *testing.F) {
	for _, g := range golden {
		f.Add(unhex(f, g.want))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h := Header(b)
		once := recode(&h)
		if _, known := opcodeNames[h.Opcode()]; !known {
			return
		}
		if once.Opcode() != h.Opcode() {
			t.Fatalf("%v became %v", h.Opcode(), once.Opcode())
		}
		if twice := recode(&once); twice != once {
			t.Fatalf("not stable:\n%x\n%x", once[:], twice[:])
		}
		if n := Size(&h, Digests{Header: true, Data: true}); n < HeaderSize+4 || n > HeaderSize+1020+8+1<<24 {
			t.Fatalf("size %d", n)
		}
	})
}

func FuzzDecodeAHS(f *testing.F) {
	f.Add((&AHS{CDB: make([]byte, 16), HasRead: true, ReadLength: 5}).Append(nil))
	f.Add([]byte{0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAHS(b)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := DecodeAHS(a.Append(nil))
		if err != nil || !bytes.Equal(again.CDB, a.CDB) || again.HasRead != a.HasRead || again.ReadLength != a.ReadLength {
			t.Fatalf("%+v became %+v: %v", a, again, err)
		}
	})
}

// TestDigestsAsInTheRFC has the examples of RFC 7143 appendix A (CRC32C of 32 bytes).
func TestDigestsAsInTheRFC(t *testing.T) {
	up, down := make([]byte, 32), make([]byte, 32)
	for i := range up {
		up[i], down[i] = byte(i), byte(31-i)
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{make([]byte, 32), "aa36918a"},
		{bytes.Repeat([]byte{0xff}, 32), "43aba862"},
		{up, "4e79dd46"},
		{down, "5cdb3f11"},
	} {
		d := DataDigest(c.data)
		if hex.EncodeToString(d[:]) != c.want {
			t.Errorf("%x: %x, want %s", c.data[:4], d, c.want)
		}
	}
	h := make([]byte, 48+8+4)
	h[4] = 2
	PutHeaderDigest(h, 8)
	if !HeaderDigestOK(h, 8) {
		t.Error("our own header digest does not match")
	}
	h[50] ^= 1
	if HeaderDigestOK(h, 8) {
		t.Error("a changed additional header matches")
	}
	five := []byte{1, 2, 3, 4, 5}
	d := DataDigest(five)
	if !DataDigestOK(append(append(five, 0, 0, 0), d[:]...)) {
		t.Error("padding does not count as zeros")
	}
}

func TestSizesWithEveryPart(t *testing.T) {
	var h Header
	(&SCSICommand{}).Put(&h)
	h.SetAHSLength(8)
	h.SetDataLength(5)
	for _, c := range []struct {
		d         Digests
		data, all int
	}{
		{Digests{}, 56, 64},
		{Digests{Header: true}, 60, 68},
		{Digests{Data: true}, 56, 68},
		{Digests{Header: true, Data: true}, 60, 72},
	} {
		if got := DataOffset(&h, c.d); got != c.data {
			t.Errorf("%+v: data at %d, want %d", c.d, got, c.data)
		}
		if got := Size(&h, c.d); got != c.all {
			t.Errorf("%+v: size %d, want %d", c.d, got, c.all)
		}
	}
	h.SetDataLength(0)
	if got := Size(&h, Digests{Data: true}); got != 56 {
		t.Errorf("no data, but %d bytes", got)
	}
}

func TestSerialNumbersWrap(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want bool
	}{{1, 2, true}, {2, 1, false}, {2, 2, false}, {0xffffffff, 0, true}, {0, 0xffffffff, false}, {0xfffffff0, 16, true}} {
		if Before(c.a, c.b) != c.want {
			t.Errorf("%d before %d: %v", c.a, c.b, !c.want)
		}
	}
}
