package scsi

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

// gated is a device whose operations wait until the test lets them go on.
type gated struct {
	*targettest.Memory
	mu    sync.Mutex
	held  []func()
	begun chan string
}

func newGated(size int64, block int) *gated {
	return &gated{Memory: targettest.NewMemory(size, block), begun: make(chan string, 100)}
}

func (g *gated) hold(what string, f func()) {
	g.mu.Lock()
	g.held = append(g.held, f)
	g.mu.Unlock()
	g.begun <- what
}

// release lets the oldest operation go on.
func (g *gated) release() {
	g.mu.Lock()
	f := g.held[0]
	g.held = g.held[1:]
	g.mu.Unlock()
	f()
}

func (g *gated) TryReadAt([]byte, int64) bool { return false }

func (g *gated) ReadAt(ctx context.Context, p []byte, off int64) error {
	gate := make(chan struct{})
	g.hold(fmt.Sprint("read ", off), func() { close(gate) })
	select {
	case <-gate:
		return g.Memory.ReadAt(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gated) Write(p []byte, off int64, fua bool, done func(error)) {
	q := bytes.Clone(p)
	g.hold(fmt.Sprint("write ", off), func() { g.Memory.Write(q, off, fua, done) })
}

// gatedRig is a rig on a gated device.
func gatedRig(t *testing.T) (*rig, *gated) {
	g := newGated(1<<20, 512)
	r := newRigOn(t, g.Memory, Config{})
	r.b.mem = g
	r.do("34 00 00000000 00 0000 00", nil) // attaches
	return r, g
}

// expect waits for the device's operations in this order, and that no other
// has begun.
func (g *gated) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-g.begun:
			if got != w {
				t.Fatalf("the device is asked for %q, want %q", got, w)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the device is not asked for %q", w)
		}
	}
	select {
	case got := <-g.begun:
		t.Fatalf("the device is asked for %q too early", got)
	default:
	}
}

func attr(a Attribute) func(*Command) { return func(c *Command) { c.Attr = a } }

func tag(n uint64) func(*Command) { return func(c *Command) { c.Tag = n } }

func writeCDB(lba byte) []byte { return []byte{0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0} }

func TestOrderedWaitsForAllBeforeAndHoldsAllBehind(t *testing.T) {
	r, g := gatedRig(t)
	b := make([]byte, 512)
	first := r.start(r.n, writeCDB(1), b)
	g.expect(t, "write 512")
	second := r.start(r.n, writeCDB(2), b, attr(Ordered))
	third := r.start(r.n, writeCDB(3), b, attr(Simple))
	urgent := r.start(r.n, writeCDB(4), b, attr(HeadOfQueue))
	g.expect(t, "write 2048")
	g.release()
	r.wait(first)
	g.release()
	r.wait(urgent)
	g.expect(t, "write 1024")
	g.release()
	r.wait(second)
	g.expect(t, "write 1536")
	g.release()
	if c := r.wait(third); c.Status != Good {
		t.Error(result(c))
	}
}

func TestSimpleCommandsOverlap(t *testing.T) {
	r, g := gatedRig(t)
	var ended []<-chan *Command
	for i := range byte(3) {
		ended = append(ended, r.start(r.n, writeCDB(i), make([]byte, 512)))
	}
	g.expect(t, "write 0", "write 512", "write 1024")
	for _, e := range ended {
		g.release()
		r.wait(e)
	}
}

// TestNothingComesBetweenCompareAndWrite: a write to the same block waits, one to
// another does not.
func TestNothingComesBetweenCompareAndWrite(t *testing.T) {
	for _, atomic := range []string{"89 00 0000000000000001 000000 01 00 00", "8b 00 0000000000000001 00000001 00 00", "2e 02 00000001 00 0001 00"} {
		r, g := gatedRig(t)
		out := make([]byte, 1024)
		if strings.HasPrefix(atomic, "2e") || strings.HasPrefix(atomic, "8b") {
			out = out[:512]
		}
		compare := r.start(r.n, bytesOf(t, atomic), out)
		steps := []string{"read 512", "write 512"}
		if strings.HasPrefix(atomic, "2e") {
			steps = []string{"write 512", "read 512"}
		}
		g.expect(t, steps[0])
		same := r.start(r.n, writeCDB(1), make([]byte, 512))
		other := r.start(r.n, writeCDB(2), make([]byte, 512))
		g.expect(t, "write 1024")
		g.release()
		g.expect(t, steps[1])
		g.release()
		r.wait(other)
		g.release()
		if c := r.wait(compare); c.Status != Good {
			t.Errorf("%s: %s", atomic, result(c))
		}
		g.expect(t, "write 512")
		g.release()
		r.wait(same)
	}
}

func TestAbortEndsWhatWaitsAndWaitsForWhatRuns(t *testing.T) {
	r, g := gatedRig(t)
	b := make([]byte, 512)
	running := r.start(r.n, writeCDB(1), b, tag(1))
	waiting := r.start(r.n, writeCDB(2), b, tag(2), attr(Ordered))
	g.expect(t, "write 512")
	found := make(chan bool, 3)
	r.n.AbortTask(7, func(f bool) { found <- f })
	if <-found {
		t.Error("a tag that is not there was found")
	}
	r.n.AbortTask(2, func(f bool) { found <- f })
	if !<-found {
		t.Error("a waiting command was not found")
	}
	if c := r.wait(waiting); !c.Aborted {
		t.Errorf("the waiting command: %s", result(c))
	}
	r.n.AbortTask(1, func(f bool) { found <- f })
	select {
	case <-found:
		t.Error("the abort did not wait for a write that can still take effect")
	default:
	}
	g.release()
	if c := r.wait(running); !c.Aborted {
		t.Errorf("the running command: %s", result(c))
	}
	if !<-found {
		t.Error("a running command was not found")
	}
	g.expect(t)
}

func TestResetAbortsForAllAndTellsThem(t *testing.T) {
	r, g := gatedRig(t)
	b := r.nexus(1)
	r.do("15 10 00 00 10 00", bytesOf(t, "00000000 0a0a0410 0000 0000 0000 0000"))
	r.expectAttention(b, attentionMode)
	r.do("16 00 00 00 00 00", nil)
	w := r.start(r.n, writeCDB(1), make([]byte, 512))
	g.expect(t, "write 512")
	done := make(chan struct{})
	r.lu.Reset(func() { close(done) })
	g.release()
	if c := r.wait(w); !c.Aborted {
		t.Errorf("the write: %s", result(c))
	}
	<-done
	r.expectAttention(r.n, attentionReset)
	r.expectAttention(b, attentionReset)
	if r.lu.descriptors.Load() || r.lu.reserved != nil {
		t.Error("mode parameters or reservation outlived the reset")
	}
}

func TestClearTaskSetTellsThoseItHits(t *testing.T) {
	r, g := gatedRig(t)
	b, idle := r.nexus(1), r.nexus(2)
	w := r.start(b, writeCDB(1), make([]byte, 512))
	g.expect(t, "write 512")
	done := make(chan struct{})
	r.n.ClearTaskSet(func() { close(done) })
	g.release()
	if c := r.wait(w); !c.Aborted {
		t.Errorf("the write: %s", result(c))
	}
	<-done
	r.expectAttention(b, attentionCleared)
	r.expectAttention(idle)
}

// TestCloseEndsReadsAndReservations: a session that ends must not leave a read
// waiting, nor others locked out.
func TestCloseEndsReadsAndReservations(t *testing.T) {
	r, g := gatedRig(t)
	b := r.lu.Nexus(nexusID(3))
	r.on(b, "00 00 00 00 00 00", nil)
	if c := r.on(b, "16 00 00 00 00 00", nil); c.Status != Good {
		t.Fatal(result(c))
	}
	read := r.start(b, bytesOf(t, "28 00 00000001 00 0001 00"), nil)
	g.expect(t, "read 512")
	done := make(chan struct{})
	b.Close(func() { close(done) })
	if c := r.wait(read); !c.Aborted {
		t.Errorf("the read: %s", result(c))
	}
	<-done
	if c := r.on(b, "00 00 00 00 00 00", nil); !c.Aborted {
		t.Errorf("a command of a closed nexus: %s", result(c))
	}
	r.do("00 00 00 00 00 00", nil)
	again := r.lu.Nexus(nexusID(3))
	r.expectAttention(again, attentionNexusLoss)
	again.Close(nil)
}

func TestTaskSetIsBounded(t *testing.T) {
	r, g := gatedRig(t)
	g.begun = make(chan string, TasksMax+1)
	var ended []<-chan *Command
	b := make([]byte, 512)
	for range TasksMax {
		ended = append(ended, r.start(r.n, writeCDB(1), b))
	}
	if c := r.wait(r.start(r.n, writeCDB(1), b)); c.Status != TaskSetFull {
		t.Errorf("one command too many: %s", result(c))
	}
	for range TasksMax {
		<-g.begun
		g.release()
	}
	for _, e := range ended {
		r.wait(e)
	}
}

// TestChainsOfWaitingCommandsEnd: many ordered commands that end on the spot.
func TestChainsOfWaitingCommandsEnd(t *testing.T) {
	r, g := gatedRig(t)
	first := r.start(r.n, writeCDB(1), make([]byte, 512))
	g.expect(t, "write 512")
	var ended []<-chan *Command
	for range 1000 {
		ended = append(ended, r.start(r.n, make([]byte, 6), nil, attr(Ordered)))
	}
	g.release()
	r.wait(first)
	for _, e := range ended {
		if c := r.wait(e); c.Status != Good {
			t.Fatal(result(c))
		}
	}
}

func TestACAIsRefused(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	c := r.wait(r.start(r.n, make([]byte, 6), nil, attr(ACA)))
	if senseCode(c) != illegalMessage {
		t.Error(result(c))
	}
}

// TestReadsAndWritesAllocateNothing: a Command is used again and again.
func TestReadsAndWritesAllocateNothing(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	r.do("28 00 00000000 00 0001 00", nil) // attaches
	done := func(*Command) {}
	read := &Command{CDB: bytesOf(t, "28 00 00000000 00 0008 00"), In: make([]byte, 4096), Done: done}
	write := &Command{CDB: bytesOf(t, "2a 00 00000000 00 0008 00"), Out: make([]byte, 4096), Done: done}
	sync := &Command{CDB: bytesOf(t, "35 00 00000000 00 0000 00"), Done: done}
	if n := testing.AllocsPerRun(100, func() {
		for _, c := range []*Command{read, write, sync} {
			r.n.Execute(c)
			if c.Status != Good {
				t.Fatal(result(c))
			}
		}
		r.lu.Kick()
	}); n != 0 {
		t.Errorf("%v allocations for a read, a write and a flush", n)
	}
}

var _ target.Device = (*gated)(nil)
