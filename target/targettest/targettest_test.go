package targettest

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/target"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryKeepsTheContract(t *testing.T) {
	for _, block := range []int{512, 4096} {
		Run(t, func(*testing.T) target.Device { return NewMemory(2<<20, block) })
		Run(t, func(*testing.T) target.Device {
			m := NewMemory(2<<20, block)
			m.Delay = time.Millisecond
			return m
		})
	}
}

func TestModelHoldsForMemoryWithCrashes(t *testing.T) {
	mem := NewMemory(256<<10, 4096)
	mem.Volatile = true
	m := NewModel(mem.Size(), 4096)
	for seed := range uint64(10) {
		Exercise{Seed: seed, Steps: 500, Clients: 3, Model: m,
			Open: func() (target.Device, error) { return mem, nil }}.Run(t)
		r := rand.New(rand.NewPCG(seed, 7))
		mem.Crash(func(int64) bool { return r.IntN(2) == 0 })
		p, err := Read(mem, 0, int(mem.Size()))
		must(t, err)
		if err := m.Recovered(p); err != nil {
			t.Fatal("seed ", seed, ": ", err)
		}
	}
}

// liar breaks one promise of a device, so that the model can be seen to notice.
type liar struct {
	*Memory
	lie string
}

func (l liar) Write(p []byte, off int64, fua bool, done func(error)) {
	switch {
	case l.lie == "forgets writes" && off%(16*4096) == 0:
		done(nil)
	case l.lie == "tears writes" && off%(16*4096) == 0:
		for at := 0; at < len(p); at += 4096 {
			clear(p[at+2048 : at+4096])
		}
		l.Memory.Write(p, off, fua, done)
	case l.lie == "ignores fua":
		l.Memory.Write(p, off, false, done)
	default:
		l.Memory.Write(p, off, fua, done)
	}
}

func (l liar) Flush(done func(error)) {
	if l.lie == "ignores flush" {
		done(nil)
		return
	}
	l.Memory.Flush(done)
}

func (l liar) TryReadAt(p []byte, off int64) bool {
	if l.lie == "reads elsewhere" && off > 0 {
		return l.Memory.TryReadAt(p, off-4096)
	}
	return l.Memory.TryReadAt(p, off)
}

// noted keeps what a helper would have failed the test with.
type noted struct {
	testing.TB
	failed bool
}

func (n *noted) Helper()               {}
func (n *noted) Errorf(string, ...any) { n.failed = true }

func TestModelNoticesLies(t *testing.T) {
	for _, lie := range []string{"", "forgets writes", "tears writes", "reads elsewhere", "ignores flush", "ignores fua"} {
		caught := false
		for seed := uint64(0); seed < 20 && !caught; seed++ {
			mem := NewMemory(256<<10, 4096)
			mem.Volatile = true
			m := NewModel(mem.Size(), 4096)
			n := &noted{TB: t}
			Exercise{Seed: seed, Steps: 300, Model: m,
				Open: func() (target.Device, error) { return liar{mem, lie}, nil }}.Run(n)
			mem.Crash(func(int64) bool { return false })
			p := make([]byte, mem.Size())
			must(t, mem.ReadAt(context.Background(), p, 0))
			caught = n.failed || m.Recovered(p) != nil
		}
		if caught != (lie != "") {
			t.Errorf("a device that %q: noticed %v", lie, caught)
		}
	}
}

func TestUnansweredWriteMayHaveHappenedOrNot(t *testing.T) {
	m := NewModel(8192, 4096)
	first, second := make([]byte, 4096), make([]byte, 4096)
	m.BeginWrite(first, 0).Done(false)
	m.BeginWrite(second, 0).Lost()
	for range 2 {
		must(t, m.BeginRead(0, 4096).Check(first))
		must(t, m.BeginRead(0, 4096).Check(second))
	}
	if m.BeginRead(0, 4096).Check(make([]byte, 4096)) == nil {
		t.Error("the contents before an answered write came back")
	}
	third := make([]byte, 4096)
	m.BeginWrite(third, 0).Done(false)
	if m.BeginRead(0, 4096).Check(second) == nil {
		t.Error("an unanswered write came back after an answered one")
	}
}
