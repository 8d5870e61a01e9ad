package link

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestFrameGolden(t *testing.T) {
	b := appendHeader(nil, header{size: 0x010203, typ: 0x21, kind: frameAnswer, id: 0x1122334455667788})
	if got := hex.EncodeToString(b); got != "03020100210200008877665544332211" {
		t.Error(got)
	}
	if got := string(appendHello(nil, classBulk)); got != "GBLK\x02\x00\x01\x00" {
		t.Errorf("%q", got)
	}
	if got := string(appendError(nil, fault.Newf(fault.Busy, "op", "me", "why"))); got != "\x05\x02\x00op\x02\x00mewhy" {
		t.Errorf("%q", got)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	for _, k := range fault.Kinds() {
		in := fault.Newf(k, "volume open", "db", "because")
		if out := parseError(appendError(nil, in)); out.Kind != k || out.Error() != in.Error() {
			t.Errorf("%v became %v", in, out)
		}
		bare := parseError(appendError(nil, fault.New(k, "op", "", nil)))
		if bare.Kind != k || bare.Err != nil || bare.Error() != "op: "+k.String() {
			t.Errorf("%#v", bare)
		}
	}
	if e := parseError(appendError(nil, io.EOF)); e.Kind != fault.Internal || e.Err.Error() != "EOF" {
		t.Error(e)
	}
	long := parseError(appendError(nil, fault.New(fault.Busy, "op", "", errors.New(strings.Repeat("x", 1<<20)))))
	if len(long.Err.Error()) != errorPartMax {
		t.Error(len(long.Err.Error()))
	}
	if e := parseError([]byte{200, 0, 0, 0, 0}); e.Kind != fault.Internal {
		t.Error(e)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, header{size: 5, typ: 1, kind: frameCall, id: 9}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if got := appendHeader(nil, h); !bytes.Equal(got, b[:headerSize]) {
			t.Fatalf("% x became % x", b[:headerSize], got)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(appendHello(nil, classMain))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseHello(b); err == nil && c >= classes {
			t.Fatal(c)
		}
	})
}

func FuzzError(f *testing.F) {
	f.Add(appendError(nil, fault.Newf(fault.Busy, "op", "me", "why")))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := parseError(b)
		if again := parseError(appendError(nil, e)); again.Error() != e.Error() || again.Kind != e.Kind {
			t.Fatalf("%v became %v", e, again)
		}
	})
}

// FuzzConsume feeds a connection whatever a peer may send: frames are counted
// once, bad ones end it, and nothing is read beyond the buffer.
func FuzzConsume(f *testing.F) {
	two := append(appendHeader(nil, header{size: 3, typ: tPing}), "abc"...)
	two = append(append(two, appendHeader(nil, header{size: 1, typ: tPing})...), 'd')
	f.Add(two)
	f.Add(appendHeader(nil, header{typ: tPing, kind: frameCall, id: 1}))
	f.Add(appendHeader(nil, header{size: MessageMax + 1, typ: tPing}))
	f.Add(appendHeader(nil, header{typ: 0x77, kind: frameCall, id: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := NewMemory(1)
		x, y := n.Node([16]byte{1}), n.Node([16]byte{2})
		open := false
		y.Handle(tPing, func(_ Peer, _ []byte, more bool) { open = more })
		x.Start()
		y.Start()
		c := n.links[route{x.self, y.self}][0].other.channel
		used, err := c.consume(b)
		if used > len(b) || open {
			t.Fatal(used, open)
		}
		if rest := b[used:]; err == nil && len(rest) >= headerSize {
			if h, err := parseHeader(rest); err != nil || len(rest) >= headerSize+h.size {
				t.Fatal("a whole frame was left")
			}
		}
		x.Close()
		y.Close()
	})
}
