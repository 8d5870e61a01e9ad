package targettest

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// Run holds a device to the contract of target.Device. open returns a device
// that is writable, at least 1 MiB long and all zero; each subtest gets its own.
func Run(t *testing.T, open func(t *testing.T) target.Device) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, d target.Device)
	}{
		{"ReadsWhatWasWritten", readsWhatWasWritten},
		{"WriteKeepsNoReference", writeKeepsNoReference},
		{"OverlapsTakeEffectInOrder", overlapsInOrder},
		{"ZeroAndTrimReadAsZeros", zeroAndTrim},
		{"FlushSucceeds", flushSucceeds},
		{"RefusesWhatIsNotInside", refusesOutside},
		{"RandomOperations", randomOperations},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, open(t)) })
	}
}

// Wait runs one asynchronous operation and returns its result.
func Wait(d target.Device, f func(done func(error))) error {
	c := make(chan error, 1)
	f(func(err error) { c <- err })
	d.Kick()
	return <-c
}

// Write writes and waits.
func Write(d target.Device, p []byte, off int64, fua bool) error {
	return Wait(d, func(done func(error)) { d.Write(p, off, fua, done) })
}

// Flush flushes and waits.
func Flush(d target.Device) error { return Wait(d, d.Flush) }

// Read reads n bytes.
func Read(d target.Device, off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	if d.TryReadAt(p, off) {
		return p, nil
	}
	err := d.ReadAt(context.Background(), p, off)
	return p, err
}

func expect(t *testing.T, d target.Device, off int64, want []byte) {
	t.Helper()
	got, err := Read(d, off, len(want))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("[%d, +%d) is not what was written", off, len(want))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readsWhatWasWritten(t *testing.T, d target.Device) {
	n := d.BlockSize()
	for _, off := range []int64{0, int64(n), d.Size() - int64(n)} {
		p := bytes.Repeat([]byte{byte(off) + 7}, n)
		must(t, Write(d, p, off, false))
		expect(t, d, off, p)
	}
	big := bytes.Repeat([]byte("large"), 512<<10/5+1)[:512<<10]
	must(t, Write(d, big, 4096, true))
	expect(t, d, 4096, big)
}

func writeKeepsNoReference(t *testing.T, d target.Device) {
	p := bytes.Repeat([]byte{1}, d.BlockSize())
	err := Wait(d, func(done func(error)) {
		d.Write(p, 0, false, done)
		clear(p)
	})
	must(t, err)
	expect(t, d, 0, bytes.Repeat([]byte{1}, d.BlockSize()))
}

func overlapsInOrder(t *testing.T, d target.Device) {
	const n = 200
	p := make([]byte, d.BlockSize())
	c := make(chan error, n)
	for i := range n {
		for j := range p {
			p[j] = byte(i)
		}
		d.Write(p, 0, i%16 == 0, func(err error) { c <- err })
	}
	d.Kick()
	for range n {
		must(t, <-c)
	}
	expect(t, d, 0, p)
}

func zeroAndTrim(t *testing.T, d target.Device) {
	n := int64(d.BlockSize())
	p := bytes.Repeat([]byte{9}, int(4*n))
	must(t, Write(d, p, 0, false))
	must(t, Wait(d, func(done func(error)) { d.Zero(n, n, false, done) }))
	must(t, Wait(d, func(done func(error)) { d.Zero(2*n, n, true, done) }))
	clear(p[n : 3*n])
	expect(t, d, 0, p)
	must(t, Wait(d, func(done func(error)) { d.Trim(0, n, false, done) }))
	got, err := Read(d, 0, int(n))
	must(t, err)
	if first := got[0]; !bytes.Equal(got, bytes.Repeat([]byte{first}, int(n))) || first != 0 && first != 9 {
		t.Fatal("a trimmed block has neither zeros nor what it had")
	}
}

func flushSucceeds(t *testing.T, d target.Device) {
	must(t, Flush(d))
	must(t, Write(d, make([]byte, d.BlockSize()), 0, false))
	must(t, Flush(d))
}

func refusesOutside(t *testing.T, d target.Device) {
	n := int64(d.BlockSize())
	for _, r := range [][2]int64{
		{-n, n}, {d.Size(), n}, {d.Size() - n, 2 * n}, {n / 2, n}, {0, n / 2}, {1 << 62, n},
	} {
		what := fmt.Sprintf("[%d, +%d)", r[0], r[1])
		p := make([]byte, r[1])
		if d.TryReadAt(p, r[0]) {
			t.Errorf("TryReadAt accepts %s", what)
		}
		for op, err := range map[string]error{
			"ReadAt": d.ReadAt(context.Background(), p, r[0]),
			"Write":  Write(d, p, r[0], false),
			"Zero":   Wait(d, func(done func(error)) { d.Zero(r[0], r[1], false, done) }),
			"Trim":   Wait(d, func(done func(error)) { d.Trim(r[0], r[1], false, done) }),
		} {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s of %s: %v, not a fault of kind invalid", op, what, err)
			}
		}
	}
}

func randomOperations(t *testing.T, d target.Device) {
	Exercise{
		Seed: 1, Steps: 2000, Model: NewModel(1<<20, d.BlockSize()),
		Open: func() (target.Device, error) { return keepOpen{d}, nil },
	}.Run(t)
}

// keepOpen hides Close and Cut.
type keepOpen struct{ target.Device }
