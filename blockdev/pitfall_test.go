package blockdev

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
)

// slowPuts are extents whose puts stand still while gate is set.
type slowPuts struct {
	*memExtents
	gate chan struct{}
	came chan struct{} // a put began
}

func (s *slowPuts) PutThen(ctx context.Context, vol ident.VolumeID, epoch uint64, replicas int, xs []dht.Extent, durable func()) (dht.PutResult, error) {
	select {
	case s.came <- struct{}{}:
	default:
	}
	<-s.gate
	return s.memExtents.PutThen(ctx, vol, epoch, replicas, xs, durable)
}

// TestPitfallCompactionInTheWay: the extents of a checkpoint stand still on their way to
// the bricks. Meanwhile writes, trims and flushes are answered, and what they say is what
// is read then, when the checkpoint has ended with what is older, and after a replay.
func TestPitfallCompactionInTheWay(t *testing.T) {
	const size = 1 << 20
	s := &slowPuts{gate: make(chan struct{}), came: make(chan struct{}, 1)}
	r := newRig(t, size, func(c *Config) {
		s.memExtents = c.Extents.(*memExtents)
		c.Extents = s
	})
	want := noise(1, size)
	mustWrite(t, r.v, want, 0)
	ended := make(chan error, 1)
	go func() { ended <- r.v.Checkpoint(t.Context()) }()
	<-s.came
	change := func(what string, do func(d func(error))) {
		t.Helper()
		got := make(chan error, 1)
		do(func(err error) { got <- err })
		r.v.Kick()
		select {
		case err := <-got:
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		case err := <-ended:
			t.Fatalf("the checkpoint ended too early: %v", err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s waits for a checkpoint", what)
		}
	}
	p := noise(2, 64<<10)
	change("a write", func(d func(error)) { r.v.Write(p, 128<<10, false, d) })
	copy(want[128<<10:], p)
	change("a trim", func(d func(error)) { r.v.Trim(256<<10, 64<<10, false, d) })
	clear(want[256<<10 : 320<<10])
	change("a write into what was trimmed", func(d func(error)) { r.v.Write(p[:4096], 260<<10, false, d) })
	copy(want[260<<10:], p[:4096])
	change("a part of a block", func(d func(error)) { r.v.Write(p[:512], 512, true, d) })
	copy(want[512:], p[:512])
	change("a flush", r.v.Flush)
	check(t, r.v, want, 0, size, 0)
	close(s.gate)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	check(t, r.v, want, 0, size, 1)
	r.crash(false)
	check(t, r.v, want, 0, size, 2)
	settle(t, r)
	check(t, r.v, want, 0, size, 3)
}

// lastExtents end the lease of whoever has got bytes of them.
type lastExtents struct {
	*memExtents
	end func()
}

func (x *lastExtents) TryReadAt(addr ident.Addr, off int64, p []byte) bool {
	ok := x.memExtents.TryReadAt(addr, off, p)
	x.end()
	return ok
}

func (x *lastExtents) ReadAt(ctx context.Context, replicas int, addr ident.Addr, off int64, p []byte, verify func([]byte) bool) error {
	err := x.memExtents.ReadAt(ctx, replicas, addr, off, p, verify)
	x.end()
	return err
}

// TestPitfallStaleHolderReads: the lease ends while a read has its bytes and has not
// answered, as when the process was stopped there. They may be old, and are not answered.
func TestPitfallStaleHolderReads(t *testing.T) {
	view := &leaseView{fresh: map[ident.NodeID]bool{}, gaps: map[ident.NodeID]uint64{}}
	touch := func(on bool) {
		view.mu.Lock()
		view.fresh[threeNodes[1]] = on
		view.mu.Unlock()
	}
	x := &lastExtents{end: func() {}}
	r := newRig(t, 1<<20, func(c *Config) {
		x.memExtents = c.Extents.(*memExtents)
		c.Extents, c.View = x, view
	})
	r.crashOnly()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(true)
	r.attachTo(&threeLog{memLog: r.log, met: map[ident.NodeID]bool{{1}: true, {2}: true}}, rec)
	touch(true)
	want, p := noise(1, 4096), make([]byte, 4096)
	mustWrite(t, r.v, want, 0)
	if err := r.v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := func() error { return r.v.ReadAt(t.Context(), p, 0) }
	if err := read(); err != nil || !bytes.Equal(p, want) || !r.v.TryReadAt(p, 0) {
		t.Fatalf("with a lease: %v", err)
	}
	ends := 0
	x.end = func() { ends++; touch(false) }
	if r.v.TryReadAt(p, 0) {
		t.Error("at once: answered without a lease")
	}
	touch(true)
	ctx, cancel := context.WithCancel(t.Context())
	x.end = func() { ends++; touch(false); cancel() } // nor does it wait for another lease
	if err := r.v.ReadAt(ctx, p, 0); !fault.Is(err, fault.Timeout) {
		t.Errorf("after a wait: %v without a lease", err)
	}
	if ends < 2 {
		t.Fatal("the reads did not get their bytes from extents")
	}
	x.end = func() {}
	touch(true)
	if err := read(); err != nil || !bytes.Equal(p, want) {
		t.Fatalf("with a lease again: %v", err)
	}
}

// countedLog is a log that keeps nothing and takes nothing of the heap.
type countedLog struct {
	*memLog
	last atomic.Uint64
}

func (l *countedLog) Next() uint64 { return l.last.Load() + 1 }
func (l *countedLog) Kick()        {}
func (l *countedLog) Sync(uint64)  {}
func (l *countedLog) Propose(quorum.EntryKind, []byte) (uint64, error) {
	return l.last.Add(1), nil
}

// TestPitfallAllocationBeforeTheAnswer: from a write's call to its answer a volume takes
// nothing of the heap but, now and then, a chunk for the log's tail.
func TestPitfallAllocationBeforeTheAnswer(t *testing.T) {
	r := newRig(t, 1<<20, func(c *Config) { c.BlockSize = 4096 })
	r.crashOnly()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(true)
	l := &countedLog{memLog: r.log}
	l.last.Store(r.log.next() - 1)
	r.attachTo(l, rec)
	const writes = 64
	block, answered := noise(1, 4096), 0
	done := func(err error) {
		if err != nil {
			t.Error(err)
		}
		answered++
	}
	burst := func() {
		for b := range int64(writes) {
			r.v.Write(block, b*4096, b%4 == 0, done)
		}
		r.v.Flush(done)
		r.v.Kick()
		n := l.last.Load()
		r.v.pend.progress(n, n)
	}
	burst()
	answered = 0
	const runs = 20
	per := testing.AllocsPerRun(runs, burst)
	if answered != (runs+1)*(writes+1) {
		t.Fatalf("%d operations were answered", answered)
	}
	if per > writes/8 {
		t.Errorf("%.1f allocations for %d writes and a flush", per, writes)
	}
}

// TestPitfallTornMap: wherever a crash ends the log, the blocks of one write are all there or
// none of them: it is one record.
func TestPitfallTornMap(t *testing.T) {
	const n = 8 * BlockSize
	r := newRig(t, 1<<20, nil)
	first := r.log.next()
	for i := range byte(4) {
		if err := wait(r.v, func(d func(error)) { r.v.Write(bytes.Repeat([]byte{i + 1}, n), 0, false, d) }); err != nil {
			t.Fatal(err)
		}
	}
	whole := r.log
	last := whole.next() - 1
	seen := map[byte]bool{}
	for end := first - 1; end <= last; end++ {
		r.crashOnly()
		var rec *quorum.Recovered
		whole.mu.Lock()
		whole.received = end
		whole.mu.Unlock()
		r.log, rec = whole.reopened(true)
		r.attach(rec)
		p := make([]byte, n)
		if err := r.v.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, bytes.Repeat(p[:1], n)) {
			t.Fatalf("the log ends with slot %d of %d: the blocks of one write are of several", end, last)
		}
		seen[p[0]] = true
	}
	if len(seen) != 5 {
		t.Fatalf("%d of 5 states were seen", len(seen))
	}
}
