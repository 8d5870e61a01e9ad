package proto

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Golden bytes, put together by hand from the protocol document.
func TestEncodersMatchTheDocument(t *testing.T) {
	reply := make([]byte, SimpleReplySize)
	PutSimpleReply(reply, EIO, 0x0102030405060708)
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"greeting":     {AppendGreeting(nil), "4e42444d41474943 49484156454f5054 0003"},
		"client flags": {AppendClientFlags(nil, ClientFlags{true, true}), "00000003"},
		"option":       {AppendOption(nil, OptList, nil), "49484156454f5054 00000003 00000000"},
		"query": {AppendExportQuery(nil, ExportQuery{"vol", []Info{InfoBlockSize, InfoName}}),
			"00000003 766f6c 0002 0003 0001"},
		"ack":         {AppendOptionReply(nil, OptGo, RepAck, nil), "0003e889045565a9 00000007 00000001 00000000"},
		"error":       {AppendError(nil, 99, RepErrUnsup, "no"), "0003e889045565a9 00000063 80000001 00000002 6e6f"},
		"server":      {AppendServer(nil, "a", "bc"), "0003e889045565a9 00000003 00000002 00000007 00000001 61 6263"},
		"info export": {AppendInfoExport(nil, OptInfo, 1<<30, 0x96d), "0003e889045565a9 00000006 00000003 0000000c 0000 0000000040000000 096d"},
		"info block size": {AppendInfoBlockSize(nil, OptGo, 512),
			"0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 02000000"},
		"info name":            {AppendInfoText(nil, OptGo, InfoName, "v"), "0003e889045565a9 00000007 00000003 00000003 0001 76"},
		"export name":          {AppendExportNameReply(nil, 4096, 0x0103, true), "0000000000001000 0103"},
		"export name + zeroes": {AppendExportNameReply(nil, 4096, 0x0103, false), "0000000000001000 0103" + strings.Repeat("00", 124)},
		"request": {Simple.AppendRequest(nil, Request{FlagFUA, CmdWrite, 0x1122334455667788, 8192, 4096}),
			"25609513 0001 0001 1122334455667788 0000000000002000 00001000"},
		"simple reply": {reply, "67446698 00000005 0102030405060708"},
	} {
		if !bytes.Equal(c.got, unhex(t, c.want)) {
			t.Errorf("%s: %x", name, c.got)
		}
	}
}

func TestTransmissionFlagsAreHonest(t *testing.T) {
	for _, c := range []struct {
		readOnly bool
		style    Style
		contexts bool
		want     uint16
	}{
		{false, Simple, false, 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048},
		{true, Simple, false, 1 | 2 | 4 | 8 | 256 | 1024},
		{false, Structured, true, 1 | 4 | 8 | 32 | 64 | 128 | 256 | 1024 | 2048},
		{true, Structured, false, 1 | 2 | 4 | 8 | 128 | 256 | 1024},
		{true, Extended, false, 1 | 2 | 4 | 8 | 128 | 256 | 1024},
		{true, Extended, true, 1 | 2 | 4 | 8 | 128 | 256 | 1024 | 4096},
	} {
		if f := TransmissionFlags(c.readOnly, c.style, c.contexts); f != c.want {
			t.Errorf("%+v: %#x", c, f)
		}
	}
}

func TestClientFlags(t *testing.T) {
	for in, want := range map[string]any{
		"00000000": ClientFlags{},
		"00000001": ClientFlags{FixedNewstyle: true},
		"00000003": ClientFlags{true, true},
		"00000004": fault.Invalid,
		"80000001": fault.Invalid,
		"000001":   fault.Invalid,
	} {
		f, err := DecodeClientFlags(unhex(t, in))
		check(t, in, f, err, want)
	}
}

// check compares a decoder's result with a value or the kind of its error.
func check(t *testing.T, in string, got any, err error, want any) {
	t.Helper()
	if k, ok := want.(fault.Kind); ok {
		if !fault.Is(err, k) {
			t.Errorf("%.80s: %v and error %v, want kind %v", in, got, err, k)
		}
		return
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%.80s: %+v and error %v, want %+v", in, got, err, want)
	}
}

func TestOptionHeader(t *testing.T) {
	type header struct {
		o Option
		n int
	}
	for in, want := range map[string]any{
		"49484156454f5054 00000007 00010000": header{OptGo, OptionMax},
		"49484156454f5054 00000007 00010001": fault.Invalid,
		"49484156454f5054 00000007 ffffffff": fault.Invalid,
		"49484156454f5055 00000007 00000000": fault.Invalid,
		"49484156454f5054 00000007":          fault.Invalid,
		"49484156454f5054 ffffffff 00000000": header{1<<32 - 1, 0},
	} {
		o, n, err := DecodeOptionHeader(unhex(t, in))
		check(t, in, header{o, n}, err, want)
	}
}

func TestExportQuery(t *testing.T) {
	long := strings.Repeat("61", NameMax)
	for in, want := range map[string]any{
		"00000000 0000":                     ExportQuery{},
		"00000003 766f6c 0000":              ExportQuery{Name: "vol"},
		"00000003 766f6c 0001 0003":         ExportQuery{"vol", []Info{InfoBlockSize}},
		"00000003 766f6c 0002 0003 ffff":    ExportQuery{"vol", []Info{InfoBlockSize, 0xffff}},
		"00001000" + long + "0000":          ExportQuery{Name: strings.Repeat("a", NameMax)},
		"":                                  fault.Invalid,
		"000000":                            fault.Invalid,
		"00000000":                          fault.Invalid, // no count
		"00000004 766f6c 0000":              fault.Invalid, // the name eats the count
		"ffffffff 766f6c 0000":              fault.Invalid,
		"fffffffe 766f6c 0000":              fault.Invalid, // + 2 would wrap in 32 bits
		"00000003 766f6c 0001":              fault.Invalid,
		"00000003 766f6c 0000 00":           fault.Invalid,
		"00000003 766f6c ffff 0003":         fault.Invalid,
		"00000003 76ff6c 0000":              fault.Invalid, // not UTF-8
		"00000003 76006c 0000":              fault.Invalid, // NUL
		"00001001" + long + "61" + "0000":   fault.NoSpace,
		"00000003 766f6c 0003 0003 0001 00": fault.Invalid,
	} {
		q, err := DecodeExportQuery(unhex(t, in))
		check(t, in, q, err, want)
	}
}

func TestOptionReplyHeader(t *testing.T) {
	for in, want := range map[string]any{
		"0003e889045565a9 00000007 80000006 00000010": OptionReplyHeader{OptGo, RepErrUnknown, 16},
		"0003e889045565a9 00000007 80000006 00010001": fault.Invalid,
		"0003e889045565a8 00000007 80000006 00000000": fault.Invalid,
		"0003e889045565a9 00000007 80000006":          fault.Invalid,
	} {
		h, err := DecodeOptionReplyHeader(unhex(t, in))
		check(t, in, h, err, want)
	}
}

func TestTextsAreCutBetweenCharacters(t *testing.T) {
	for _, c := range []string{"a", "ü", "€"} {
		s := cut(strings.Repeat(c, NameMax))
		if len(s) > NameMax || len(s) < NameMax-3 || strings.Trim(s, c) != "" {
			t.Errorf("%q: %d bytes", c, len(s))
		}
	}
}

func TestRequestCheck(t *testing.T) {
	const size = 1 << 30
	w := Geometry{Size: size, BlockSize: 4096}
	ro := Geometry{Size: size, BlockSize: 4096, ReadOnly: true}
	big := Geometry{Size: 16 << 40, BlockSize: 512}
	st := Geometry{Size: size, BlockSize: 4096, Style: Structured, Contexts: 1}
	ext := Geometry{Size: 16 << 40, BlockSize: 512, Style: Extended, Contexts: 1}
	req := func(c Command, flags uint16, off, n uint64) Request {
		return Request{Cmd: c, Flags: flags, Offset: off, Length: n}
	}
	for _, c := range []struct {
		name string
		r    Request
		g    Geometry
		want Errno
	}{
		{"read", req(CmdRead, 0, 0, 4096), w, OK},
		{"read with fua", req(CmdRead, FlagFUA, 0, 4096), w, OK},
		{"read to the end", req(CmdRead, 0, size-4096, 4096), w, OK},
		{"read beyond the end", req(CmdRead, 0, size, 4096), w, EINVAL},
		{"read across the end", req(CmdRead, 0, size-4096, 8192), w, EINVAL},
		{"read that wraps", req(CmdRead, 0, 1<<64-4096, 8192), w, EINVAL},
		{"read at 2^63", req(CmdRead, 0, 1<<63, 4096), w, EINVAL},
		{"read of nothing", req(CmdRead, 0, 0, 0), w, EINVAL},
		{"read unaligned offset", req(CmdRead, 0, 512, 4096), w, EINVAL},
		{"read unaligned length", req(CmdRead, 0, 0, 512), w, EINVAL},
		{"read of a 512 byte block", req(CmdRead, 0, 512, 512), big, OK},
		{"read of 32 MiB", req(CmdRead, 0, 0, PayloadMax), w, OK},
		{"read of more", req(CmdRead, 0, 0, PayloadMax+4096), w, EINVAL},
		{"read with DF", req(CmdRead, 1<<2, 0, 4096), w, EINVAL},
		{"read with NO_HOLE", req(CmdRead, FlagNoHole, 0, 4096), w, EINVAL},
		{"write", req(CmdWrite, 0, 0, 4096), w, OK},
		{"write with fua", req(CmdWrite, FlagFUA, 0, 4096), w, OK},
		{"write read only", req(CmdWrite, 0, 0, 4096), ro, EPERM},
		{"write across the end", req(CmdWrite, 0, size-4096, 8192), w, ENOSPC},
		{"write unaligned", req(CmdWrite, 0, 0, 100), w, EINVAL},
		{"write with PAYLOAD_LEN", req(CmdWrite, 1<<5, 0, 4096), w, EINVAL},
		{"flush", req(CmdFlush, 0, 0, 0), w, OK},
		{"flush with fua", req(CmdFlush, FlagFUA, 0, 0), w, OK},
		{"flush read only", req(CmdFlush, 0, 0, 0), ro, OK},
		{"flush of a range", req(CmdFlush, 0, 4096, 4096), w, EINVAL},
		{"trim", req(CmdTrim, FlagFUA, 0, 1<<30), w, OK},
		{"trim beyond the end", req(CmdTrim, 0, size, 4096), w, EINVAL},
		{"trim read only", req(CmdTrim, 0, 0, 4096), ro, EPERM},
		{"zeroes", req(CmdWriteZeroes, FlagFUA|FlagNoHole|FlagFastZero, 0, 1<<30), w, OK},
		{"zeroes of nearly 4 GiB", req(CmdWriteZeroes, 0, 0, 1<<32-512), big, OK},
		{"zeroes beyond the end", req(CmdWriteZeroes, 0, size, 4096), w, ENOSPC},
		{"zeroes read only", req(CmdWriteZeroes, 0, 0, 4096), ro, EPERM},
		{"zeroes with DF", req(CmdWriteZeroes, 1<<2, 0, 4096), w, EINVAL},
		{"cache", req(CmdCache, 0, 0, 1<<30), ro, OK},
		{"cache beyond the end", req(CmdCache, 0, 0, 1<<30+4096), ro, EINVAL},
		{"cache with REQ_ONE", req(CmdCache, FlagReqOne, 0, 4096), ro, EINVAL},
		{"structured read with DF", req(CmdRead, FlagDF, 0, 4096), st, OK},
		{"structured read of more", req(CmdRead, 0, 0, PayloadMax+4096), st, EOVERFLOW},
		{"structured write with PAYLOAD_LEN", req(CmdWrite, FlagPayloadLen, 0, 4096), st, EINVAL},
		{"structured block status", req(CmdBlockStatus, FlagReqOne, 0, size), st, OK},
		{"structured block status with PAYLOAD_LEN", req(CmdBlockStatus, FlagPayloadLen, 0, 12), st, EINVAL},
		{"structured block status beyond the end", req(CmdBlockStatus, 0, size, 4096), st, EINVAL},
		{"structured block status without contexts", req(CmdBlockStatus, 0, 0, 4096), Geometry{Size: size, BlockSize: 512, Style: Structured}, EINVAL},
		{"extended write", req(CmdWrite, FlagPayloadLen|FlagFUA, 0, 4096), ext, OK},
		{"extended write without PAYLOAD_LEN", req(CmdWrite, 0, 0, 4096), ext, EINVAL},
		{"extended write of nothing", req(CmdWrite, FlagPayloadLen, 0, 0), ext, EINVAL},
		{"extended read with PAYLOAD_LEN", req(CmdRead, FlagPayloadLen, 0, 4096), ext, EINVAL},
		{"extended zeroes of 16 TiB", req(CmdWriteZeroes, FlagFUA|FlagNoHole|FlagFastZero, 0, 16<<40), ext, OK},
		{"extended trim of 5 GiB", req(CmdTrim, 0, 1<<40, 5<<30), ext, OK},
		{"extended trim that wraps", req(CmdTrim, 0, 512, 1<<64-512), ext, EINVAL},
		{"extended block status", req(CmdBlockStatus, 0, 0, 16<<40), ext, OK},
		{"extended block status with a payload", req(CmdBlockStatus, FlagPayloadLen, 0, 12), ext, OK},
		{"extended flush of a range", req(CmdFlush, 0, 0, 512), ext, EINVAL},
		{"block status", req(CmdBlockStatus, 0, 0, 4096), w, EINVAL},
		{"unknown", req(0xffff, 0, 0, 4096), w, EINVAL},
	} {
		got, why := c.r.Check(c.g)
		if got != c.want || (got == OK) != (why == "") {
			t.Errorf("%s: %v %q, want %v", c.name, got, why, c.want)
		}
	}
}

func TestEveryFaultKindHasARow(t *testing.T) {
	for _, k := range fault.Kinds() {
		row, ok := edgeOf(k)
		if !ok {
			t.Errorf("kind %q has no row", k)
		}
		err := fault.New(k, "op", "", nil)
		if e := ErrnoOf(err); e == OK || e != row.errno || strings.HasPrefix(e.String(), "errno") {
			t.Errorf("kind %q: %v", k, e)
		}
		if r := ReplyOf(err); r>>31 != 1 || r != row.reply {
			t.Errorf("kind %q: reply %#x", k, r)
		}
	}
	if ErrnoOf(nil) != OK {
		t.Error("nil is not OK")
	}
}

func FuzzDecodeClientFlags(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodeClientFlags(b); err == nil && !bytes.Equal(AppendClientFlags(nil, c), b) {
			t.Errorf("%x -> %+v", b, c)
		}
	})
}

func FuzzDecodeOptionHeader(f *testing.F) {
	f.Add(AppendOption(nil, OptGo, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, n, err := DecodeOptionHeader(b)
		if err != nil {
			return
		}
		if n < 0 || n > OptionMax {
			t.Fatal("length ", n)
		}
		if got := AppendOption(nil, o, make([]byte, n)); !bytes.Equal(got[:OptionHeaderSize], b) {
			t.Errorf("%x -> %x", b, got)
		}
	})
}

func FuzzDecodeOptionReplyHeader(f *testing.F) {
	f.Add(AppendOptionReply(nil, OptGo, RepAck, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeOptionReplyHeader(b)
		if err != nil {
			return
		}
		if got := AppendOptionReply(nil, h.Option, h.Reply, make([]byte, h.Length)); !bytes.Equal(got[:len(b)], b) {
			t.Errorf("%x -> %x", b, got)
		}
	})
}

func FuzzDecodeExportQuery(f *testing.F) {
	f.Add(AppendExportQuery(nil, ExportQuery{"vol", []Info{InfoBlockSize, InfoName}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := DecodeExportQuery(b)
		if err == nil && !bytes.Equal(AppendExportQuery(nil, q), b) {
			t.Errorf("%x -> %+v", b, q)
		}
	})
}

func FuzzDecodeName(f *testing.F) {
	f.Add([]byte("vol"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeName(b); err == nil && (s != string(b) || len(s) > NameMax || strings.ContainsRune(s, 0)) {
			t.Errorf("%x -> %q", b, s)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(Simple.AppendRequest(nil, Request{FlagFUA, CmdWrite, 1, 8192, 4096}), int64(1<<30))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) < RequestSize || size < 0 {
			return
		}
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		if got := Simple.AppendRequest(nil, r); !bytes.Equal(got, b[:RequestSize]) {
			t.Errorf("%x -> %x", b, got)
		}
		size &^= 4095
		if e, _ := r.Check(Geometry{Size: size, BlockSize: 4096}); e == OK && r.Cmd != CmdFlush {
			if r.Offset%4096 != 0 || r.Length%4096 != 0 || r.Length == 0 || r.Offset > 1<<63-1 ||
				int64(r.Offset) > size-int64(r.Length) {
				t.Errorf("accepted %+v on %d bytes", r, size)
			}
		}
	})
}

func FuzzDecodeSimpleReply(f *testing.F) {
	f.Add(make([]byte, SimpleReplySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < SimpleReplySize {
			return
		}
		e, cookie, err := DecodeSimpleReply(b)
		if err != nil {
			return
		}
		got := make([]byte, SimpleReplySize)
		PutSimpleReply(got, e, cookie)
		if !bytes.Equal(got, b[:SimpleReplySize]) {
			t.Errorf("%x -> %x", b, got)
		}
	})
}
