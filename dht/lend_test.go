package dht

import (
	"bytes"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// large is an extent whose bytes are lent on their way.
func (r *rig) large(number uint64) Extent {
	var b extent.Builder
	b.Reset(vol, number, 1)
	block := make([]byte, extent.BlockSize)
	for i := range uint64(lend.Min / extent.BlockSize * 3) {
		r.rng.Read(block)
		b.Add(i, block)
	}
	data := bytes.Clone(b.Finish())
	return Extent{Addr: extent.Address(data), Number: number, Data: data}
}

// A disk that hangs still writes, long after everybody has given up on it, what
// came then, whatever else went through the node meanwhile.
func TestDiskThatHangsKeepsWhatItWrites(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutTimeout, c.ReadTimeout = 50*time.Millisecond, 20*time.Second })
	a, b, c := r.nodes[0], r.nodes[1], r.nodes[2]
	copies := func(xs ...Extent) []Extent { return xs }
	for i, put := range []func(Extent) error{
		func(x Extent) error { return a.store.PutTo(r.ctx(), b.ref(), vol, 1, copies(x)) }, // gently
		func(x Extent) error { return b.store.PutTo(r.ctx(), b.ref(), vol, 1, copies(x)) },
		func(x Extent) error { _, err := a.store.Put(r.ctx(), vol, 1, 3, copies(x)); return err },
	} {
		x := r.large(uint64(10 * i))
		release := b.fs.Hang(vfs.Fault{Op: "write", Name: "extents/"})
		began := make(chan error, 1)
		go func() { began <- put(x) }()
		for n := range uint64(8) { // of the same size, there and back
			y := r.large(uint64(1000 + 10*i + int(n)))
			until(t, "a copy elsewhere", func() bool { return a.store.PutTo(r.ctx(), c.ref(), vol, 1, copies(y)) == nil })
			got, _, err := a.store.GetGently(r.ctx(), y.Addr)
			if err != nil || !bytes.Equal(got, y.Data) {
				t.Fatalf("case %d: %v", i, err)
			}
			lend.Put(got)
		}
		if err := <-began; err == nil && i < 2 {
			t.Fatalf("case %d: stored on a disk that hangs", i)
		}
		release()
		until(t, "the late copy", func() bool { return b.has(x) })
		if got, err := b.store.wholeFrom(r.ctx(), b.ref(), x.Addr, quickly); err != nil || !bytes.Equal(got, x.Data) {
			t.Fatalf("case %d: %v", i, err)
		}
	}
}
