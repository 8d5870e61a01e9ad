package proto

import (
	"bytes"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestSessionOptionBytes(t *testing.T) {
	s := SessionOption{ID: [16]byte{1, 15: 16}, Session: 0x0102030405060708, Force: true}
	b := AppendSessionOption(nil, s)
	want := append(append([]byte{1}, make([]byte, 14)...), 16, 1, 2, 3, 4, 5, 6, 7, 8, 1)
	if !bytes.Equal(b, want) {
		t.Errorf("%x", b)
	}
	if got, err := DecodeSessionOption(b); err != nil || got != s {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range [][]byte{nil, b[:24], append(b[:25:25], 0), make([]byte, 25), append(b[:24:24], 2)} {
		if _, err := DecodeSessionOption(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzSessionOption(f *testing.F) {
	f.Add(AppendSessionOption(nil, SessionOption{ID: [16]byte{1}, Session: 7}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSessionOption(b); err == nil && !bytes.Equal(AppendSessionOption(nil, s), b) {
			t.Errorf("%x does not come back", b)
		}
	})
}
