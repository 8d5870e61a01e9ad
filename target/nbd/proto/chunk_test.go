package proto

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Golden bytes, put together by hand from the protocol document and the branch
// extension-ext-header.
func TestChunksMatchTheDocument(t *testing.T) {
	put := func(n int, f func(b []byte)) []byte {
		b := make([]byte, n)
		f(b)
		return b
	}
	const cookie, off = 0x0102030405060708, 0x2000
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"structured done": {put(16, func(b []byte) { Structured.PutDone(b, cookie, off) }), "67446698 00000000 0102030405060708"},
		"extended done": {put(32, func(b []byte) { Extended.PutDone(b, cookie, off) }),
			"6e8a278c 0001 0000 0102030405060708 0000000000002000 0000000000000000"},
		"structured data": {put(28, func(b []byte) { Structured.PutReadHeader(b, cookie, off, 0x3000, 4096, false) }),
			"668e33ef 0000 0001 0102030405060708 00001008 0000000000003000"},
		"extended data": {put(40, func(b []byte) { Extended.PutReadHeader(b, cookie, off, 0x3000, 4096, true) }),
			"6e8a278c 0001 0001 0102030405060708 0000000000002000 0000000000001008 0000000000003000"},
		"simple data":     {put(16, func(b []byte) { Simple.PutReadHeader(b, cookie, off, off, 4096, true) }), "67446698 00000000 0102030405060708"},
		"structured hole": {put(32, func(b []byte) { Structured.PutHole(b, cookie, off, off, 4096, true) }), "668e33ef 0001 0002 0102030405060708 0000000c 0000000000002000 00001000"},
		"structured error": {Structured.AppendReplyError(nil, EINVAL, cookie, off, "no"),
			"668e33ef 0001 8001 0102030405060708 00000008 00000016 0002 6e6f"},
		"simple error": {Simple.AppendReplyError(nil, EINVAL, cookie, off, "no"), "67446698 00000016 0102030405060708"},
		"extended error offset": {Extended.AppendErrorOffset(nil, EIO, cookie, off, "", 0x3000),
			"6e8a278c 0001 8002 0102030405060708 0000000000002000 000000000000000e 00000005 0000 0000000000003000"},
		"structured status": {Structured.AppendStatus(nil, cookie, off, 7, []Extent{{4096, 3}, {8192, 0}}, false),
			"668e33ef 0000 0005 0102030405060708 00000014 00000007 00001000 00000003 00002000 00000000"},
		"extended status": {Extended.AppendStatus(nil, cookie, off, 7, []Extent{{1 << 40, 1}}, true),
			"6e8a278c 0001 0006 0102030405060708 0000000000002000 0000000000000018 00000007 00000001 0000010000000000 0000000000000001"},
		"extended request": {Extended.AppendRequest(nil, Request{FlagPayloadLen, CmdWrite, cookie, off, 4096}),
			"21e41c71 0020 0001 0102030405060708 0000000000002000 0000000000001000"},
		"status query": {AppendStatusQuery(nil, 1<<40, []uint32{1, 2}), "0000010000000000 00000001 00000002"},
		"meta query": {AppendMetaQuery(nil, MetaQuery{"v", []string{"base:", "x:y"}}),
			"00000001 76 00000002 00000005 626173653a 00000003 783a79"},
		"meta context": {AppendMetaContext(nil, OptSetMetaContext, 3, "x:y"), "0003e889045565a9 0000000a 00000004 00000007 00000003 783a79"},
	} {
		if !bytes.Equal(c.got, unhex(t, c.want)) {
			t.Errorf("%s: %x", name, c.got)
		}
	}
}

func TestLongTextsFitAnErrorChunk(t *testing.T) {
	for _, s := range []Style{Structured, Extended} {
		if n := len(s.AppendErrorOffset(nil, EIO, 1, 2, strings.Repeat("ü", 1000), 3)); n > ErrorSizeMax || n < ErrorSizeMax-16 {
			t.Errorf("style %d: %d bytes", s, n)
		}
	}
}

func TestMetaQuery(t *testing.T) {
	for in, want := range map[string]any{
		"00000001 76 00000000":                          MetaQuery{Export: "v"},
		"00000000 00000001 00000005 626173653a":         MetaQuery{Queries: []string{"base:"}},
		"00000000 00000002 00000001 3a 00000003 783a79": MetaQuery{Queries: []string{":", "x:y"}},
		"":                     fault.Invalid,
		"00000002 76 00000000": fault.Invalid,
		"00000001 76 000000":   fault.Invalid,
		"00000000 00000101" + strings.Repeat("00000001 3a", 257): fault.NoSpace,
		"00000000 ffffffff":                                fault.Invalid,
		"00000000 00000001":                                fault.Invalid,
		"00000000 00000001 00000006 626173653a":            fault.Invalid,
		"00000000 00000001 00000004 62617365":              fault.Invalid, // no colon
		"00000000 00000001 00000001 3a 00":                 fault.Invalid,
		"00001001" + strings.Repeat("61", 4097) + "000000": fault.NoSpace,
	} {
		q, err := DecodeMetaQuery(unhex(t, in))
		check(t, in, q, err, want)
	}
}

func TestStatusQuery(t *testing.T) {
	type query struct {
		n   uint64
		ids []uint32
	}
	for in, want := range map[string]any{
		"0000000000001000 00000000":                                    query{4096, []uint32{0}},
		"ffffffffffffffff 00000001 00000000":                           query{1<<64 - 1, []uint32{1, 0}},
		"0000000000001000":                                             fault.Invalid,
		"0000000000001000 000000":                                      fault.Invalid,
		"0000000000001000 00000001 00000001":                           fault.Invalid, // twice
		"0000000000001000" + strings.Repeat("00000000", ContextsMax+1): fault.Invalid,
	} {
		n, ids, err := DecodeStatusQuery(unhex(t, in), nil)
		check(t, in, query{n, ids}, err, want)
	}
}

func TestQueriesSelectContexts(t *testing.T) {
	all := Available([]string{"a", "b"})
	names := func(cs []Context) (n []string) {
		for _, c := range cs {
			n = append(n, c.Name)
		}
		return n
	}
	everything := []string{"base:allocation", "gabion:dirty:a", "gabion:dirty:b", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}
	for _, c := range []struct {
		queries []string
		listing bool
		want    []string
	}{
		{nil, true, everything},
		{nil, false, nil},
		{[]string{"base:"}, true, everything[:1]},
		{[]string{"base:"}, false, nil},
		{[]string{"gabion:"}, true, everything[1:3]},
		{[]string{"gabion:dirty:"}, true, everything[1:3]},
		{[]string{"gabion:dirty:"}, false, nil},
		{[]string{"qemu:"}, true, everything[3:]},
		{[]string{"qemu:dirty-bitmap:"}, true, everything[3:]},
		{[]string{"qemu:dirty-bitmap:b", "base:allocation", "base:allocation"}, false, []string{everything[0], everything[4]}},
		{[]string{"gabion:dirty:c", "other:thing", "base:x", "gabion:dirty"}, false, nil},
		{[]string{"gabion:d", ":"}, true, nil},
	} {
		if got := names(Matching(all, c.queries, c.listing)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v, listing %v: %v, want %v", c.queries, c.listing, got, c.want)
		}
	}
	for _, c := range all {
		if c.Snapshot != "" && !strings.HasSuffix(c.Name, c.Snapshot) || NamesSnapshot(c.Name) != (c.Snapshot != "") {
			t.Errorf("%+v", c)
		}
	}
}

func FuzzDecodeExtendedRequest(f *testing.F) {
	f.Add(Extended.AppendRequest(nil, Request{FlagFUA | FlagPayloadLen, CmdWrite, 1, 8192, 4096}), int64(1<<40))
	f.Add(Extended.AppendRequest(nil, Request{0, CmdWriteZeroes, 1, 1 << 63, 1 << 63}), int64(1<<62))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) < ExtendedRequestSize || size < 0 {
			return
		}
		r, err := DecodeExtendedRequest(b)
		if err != nil {
			return
		}
		if got := Extended.AppendRequest(nil, r); !bytes.Equal(got, b[:ExtendedRequestSize]) {
			t.Errorf("%x -> %x", b, got)
		}
		size &^= 511
		e, _ := r.Check(Geometry{Size: size, BlockSize: 512, Style: Extended, Contexts: 1})
		if e == OK && r.Cmd != CmdFlush && !(r.Cmd == CmdBlockStatus && r.Flags&FlagPayloadLen != 0) {
			if r.Offset%512 != 0 || r.Length%512 != 0 || r.Length == 0 || r.Offset > 1<<63-1 || r.Length > 1<<63-1 ||
				int64(r.Offset) > size-int64(r.Length) || r.Payload(Extended) > PayloadMax {
				t.Errorf("accepted %+v on %d bytes", r, size)
			}
		}
	})
}

func FuzzDecodeChunk(f *testing.F) {
	f.Add(make([]byte, ExtendedChunkSize), true)
	f.Add(Structured.AppendReplyError(nil, EIO, 1, 2, "text"), false)
	f.Fuzz(func(t *testing.T, b []byte, extended bool) {
		s := Structured
		if extended {
			s = Extended
		}
		if len(b) < s.ChunkSize() {
			return
		}
		c, err := s.DecodeChunk(b)
		if err != nil {
			return
		}
		got := make([]byte, s.ChunkSize())
		s.PutChunk(got, c)
		if !bytes.Equal(got, b[:len(got)]) {
			t.Errorf("%x -> %x", b, got)
		}
	})
}

func FuzzDecodeMetaQuery(f *testing.F) {
	f.Add(AppendMetaQuery(nil, MetaQuery{"vol", []string{"base:", "gabion:dirty:a"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := DecodeMetaQuery(b)
		if err == nil && !bytes.Equal(AppendMetaQuery(nil, q), b) {
			t.Errorf("%x -> %+v", b, q)
		}
		if err == nil && len(Matching(Available([]string{"a", "b"}), q.Queries, true)) > 5 {
			t.Errorf("%v matches more than there are", q.Queries)
		}
	})
}

func FuzzDecodeStatusQuery(f *testing.F) {
	f.Add(AppendStatusQuery(nil, 4096, []uint32{0, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ids, err := DecodeStatusQuery(b, nil)
		if err == nil && (len(ids) == 0 || len(ids) > ContextsMax || !bytes.Equal(AppendStatusQuery(nil, n, ids), b)) {
			t.Errorf("%x -> %d %v", b, n, ids)
		}
	})
}
