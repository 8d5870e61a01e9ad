package targettest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// RunMapper holds a device to the contract of target.Mapper. open returns a
// device that is writable, at least 1 MiB long, all zero and never written; each
// subtest gets its own. It implements target.Mapper.
func RunMapper(t *testing.T, open func(t *testing.T) target.Device) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, d target.Device)
	}{
		{"NewDeviceIsOneHole", newIsOneHole},
		{"DataIsNoHole", dataIsNoHole},
		{"LimitCutsTheEnd", limitCutsTheEnd},
		{"RefusesWhatIsNotInside", mapRefusesOutside},
		{"RandomOperations", mapRandom},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, open(t)) })
	}
}

// Map asks for the stretches of [off, off+n) and checks what the contract has
// for every answer: they are in order, not empty, whole blocks, neighbours
// differ, as many as allowed, complete unless there are as many, a hole reads
// as zeros, and dst keeps what was in it.
func Map(t *testing.T, d target.Device, off, n int64, snapshot string, limit int) []target.Stretch {
	t.Helper()
	before := target.Stretch{Length: 1, Flags: 99}
	got, err := d.(target.Mapper).Map(context.Background(), off, n, snapshot, limit, []target.Stretch{before})
	must(t, err)
	if len(got) < 2 || got[0] != before {
		t.Fatalf("nothing was appended to dst: %v", got)
	}
	got = got[1:]
	if len(got) > limit {
		t.Fatalf("%d stretches, limit %d", len(got), limit)
	}
	sum := int64(0)
	for i, s := range got {
		sum += s.Length
		if s.Length <= 0 || s.Length%int64(d.BlockSize()) != 0 {
			t.Fatalf("stretch %d has %d bytes", i, s.Length)
		}
		if i > 0 && got[i-1].Flags == s.Flags {
			t.Fatalf("stretches %d and %d are not merged: %v", i-1, i, got)
		}
		if snapshot == "" && (s.Flags&target.Hole != 0 && s.Flags&target.Zero == 0 || s.Flags&target.Dirty != 0) {
			t.Fatalf("stretch %d has flags %b", i, s.Flags)
		}
		if snapshot != "" && s.Flags&^target.Dirty != 0 {
			t.Fatalf("stretch %d has flags %b", i, s.Flags)
		}
	}
	if sum > n || sum < n && len(got) < limit {
		t.Fatalf("%d stretches describe %d of %d bytes, limit %d", len(got), sum, n, limit)
	}
	return got
}

func newIsOneHole(t *testing.T, d target.Device) {
	got := Map(t, d, 0, d.Size(), "", 10)
	if len(got) != 1 || got[0].Flags != target.Hole|target.Zero {
		t.Fatalf("a new device is %v", got)
	}
}

func dataIsNoHole(t *testing.T, d target.Device) {
	p := bytes.Repeat([]byte{5}, 8192)
	must(t, Write(d, p, 16384, false))
	want := []target.Stretch{{Length: 16384, Flags: target.Hole | target.Zero}, {Length: 8192}, {Length: d.Size() - 24576, Flags: target.Hole | target.Zero}}
	got := Map(t, d, 0, d.Size(), "", 10)
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Fatalf("%v, not %v", got, want)
	}
	n := int64(d.BlockSize())
	if got := Map(t, d, 16384+n, n, "", 1); got[0].Flags != 0 || got[0].Length != n {
		t.Fatalf("a block inside is %v", got)
	}
}

func limitCutsTheEnd(t *testing.T, d target.Device) {
	for i := range int64(8) {
		must(t, Write(d, bytes.Repeat([]byte{1}, 4096), i*8192, false))
	}
	all := Map(t, d, 0, 64<<10, "", 100)
	if len(all) != 16 {
		t.Fatalf("%d stretches, not 16: %v", len(all), all)
	}
	for limit := 1; limit <= 16; limit++ {
		got := Map(t, d, 0, 64<<10, "", limit)
		if len(got) != limit {
			t.Fatalf("%d stretches, limit %d", len(got), limit)
		}
		for i := range got {
			if got[i] != all[i] {
				t.Fatalf("limit %d: stretch %d is %v, not %v", limit, i, got[i], all[i])
			}
		}
	}
}

func mapRefusesOutside(t *testing.T, d target.Device) {
	n := int64(d.BlockSize())
	m := d.(target.Mapper)
	for _, r := range [][2]int64{{-n, n}, {d.Size(), n}, {d.Size() - n, 2 * n}, {n / 2, n}, {0, n / 2}, {0, 0}, {1 << 62, n}} {
		if got, err := m.Map(t.Context(), r[0], r[1], "", 10, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("[%d, +%d): %v, %v, not a fault of kind invalid", r[0], r[1], got, err)
		}
	}
	if _, err := m.Map(t.Context(), 0, n, "no-such-snapshot", 10, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("a snapshot that is not there: %v", err)
	}
}

// mapRandom compares with what was written: data is never described as zeros.
func mapRandom(t *testing.T, d target.Device) {
	const size = 1 << 20
	n := int64(d.BlockSize())
	rng := rand.New(rand.NewPCG(2, 2))
	model := make([]byte, size)
	for step := range 300 {
		count := min(1+rng.Int64N(32), size/n)
		off := rng.Int64N(size/n-count+1) * n
		p := model[off : off+count*n]
		switch rng.IntN(3) {
		case 0:
			for i := range p {
				p[i] = byte(step) | 1
			}
			must(t, Write(d, p, off, false))
		case 1:
			clear(p)
			must(t, Wait(d, func(done func(error)) { d.Zero(off, count*n, false, done) }))
		default:
			clear(p)
			must(t, Wait(d, func(done func(error)) { d.Zero(off, count*n, true, done) }))
			must(t, Wait(d, func(done func(error)) { d.Trim(off, count*n, false, done) }))
		}
		at := rng.Int64N(size/n) * n
		end := at + (1+rng.Int64N((size-at)/n))*n
		for _, s := range Map(t, d, at, end-at, "", 1+rng.IntN(60)) {
			if s.Flags&target.Zero != 0 {
				for i := at; i < at+s.Length; i++ {
					if model[i] != 0 {
						t.Fatalf("step %d: byte %d is data and described as zero", step, i)
					}
				}
			}
			at += s.Length
		}
	}
}
