package blockdev

import (
	"bytes"
	"context"
	"testing"
	"time"
)

// TestReadsShowNoWriteThatCanBeLost reads a block while its write is with the
// holder alone: were the read answered, the holder died and another took over, a
// later read would see the old content again.
func TestReadsShowNoWriteThatCanBeLost(t *testing.T) {
	for name, do := range map[string]func(v *Volume, done func(error)){
		"write": func(v *Volume, done func(error)) { v.Write(bytes.Repeat([]byte{7}, 4096), 8192, false, done) },
		"zero":  func(v *Volume, done func(error)) { v.Zero(8192, 4096, false, done) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1<<20, nil)
			if err := wait(r.v, func(d func(error)) { r.v.Write(bytes.Repeat([]byte{1}, 4096), 8192, false, d) }); err != nil {
				t.Fatal(err)
			}
			l := r.hold()
			p := make([]byte, 4096)
			if err := r.v.ReadAt(t.Context(), p, 0); err != nil { // also gets the lease
				t.Fatal(err)
			}
			l.held.Store(true)
			do(r.v, func(error) {})
			r.v.Kick()
			slot := l.Next() - 1
			if r.v.TryReadAt(p, 8192) {
				t.Fatal("a write under way was read")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			err := r.v.ReadAt(ctx, p, 8192)
			cancel()
			if err == nil {
				t.Fatal("a write under way was read by waiting")
			}
			got := make(chan error, 1)
			go func() { got <- r.v.ReadAt(t.Context(), p, 8192) }()
			r.v.pend.progress(slot, slot-1)
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			if !r.v.TryReadAt(p, 8192) {
				t.Fatal("a received write is not read from memory")
			}
		})
	}
}
