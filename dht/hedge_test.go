package dht

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/vfs"
)

// lag makes every read of extents from a node's disk take d more.
func (nd *rigNode) lag(d *atomic.Int64) (remove func()) {
	return nd.fs.Inject(vfs.Fault{Op: "read", Name: "extents/", Wait: func(string, string) { <-time.After(time.Duration(d.Load())) }})
}

// readAll reads the first bytes of xs n times at nd.
func (r *rig) readAll(nd *rigNode, xs []Extent, n int) (slowest time.Duration) {
	r.t.Helper()
	p := make([]byte, 100)
	for i := range n {
		x := xs[i%len(xs)]
		began := time.Now()
		if err := nd.store.ReadAt(r.ctx(), 3, x.Addr, 64, p, verify(x, 64, 100)); err != nil {
			r.t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
	}
	return slowest
}

func (nd *rigNode) reads() (n uint64) {
	for _, h := range nd.store.Stats().Holders {
		if h.Brick == nd.ref() {
			n = h.Reads
		}
	}
	return n
}

// TestReadsPassAHungDisk: the disk of the reading node hangs; reads are answered
// by others, the first after a hedge, the next ones without asking it.
func TestReadsPassAHungDisk(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 10)
	r.put(r.nodes[0], 1, 3, xs)
	nd := r.nodes[1]
	r.readAll(nd, xs, 40)
	release := nd.fs.Hang(vfs.Fault{Op: "read", Name: "extents/"})
	defer release()
	if d := r.readAll(nd, xs, 100); d > time.Second {
		t.Fatalf("a read took %v beside a disk that hangs", d)
	}
	st := nd.store.Stats()
	if st.Hedges == 0 || st.Hedges > 40 || st.HedgesWon == 0 {
		t.Fatalf("%d reads were hedged, %d won", st.Hedges, st.HedgesWon)
	}
	for _, h := range st.Holders {
		if h.Brick == nd.ref() && !h.Late {
			t.Fatal("a brick that hangs is not late")
		}
	}
	release()
	before := nd.reads()
	until(t, "the disk is read from again", func() bool { r.readAll(nd, xs, 1); return nd.reads() > before })
}

// TestLongHangIsSoonForgotten: reads that were under way while a disk hung say how long
// that was; once it answers quickly again, the next ones outweigh them, not those of a minute.
func TestLongHangIsSoonForgotten(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 10)
	r.put(r.nodes[0], 1, 3, xs)
	nd := r.nodes[1]
	for _, o := range r.nodes {
		p := nd.store.health.pulse(o.ref())
		p.mu.Lock()
		quick := p.tempo(readPulse)
		quick.seen, quick.mean, quick.p95 = pulseKnown, time.Millisecond, 2*time.Millisecond
		if o == nd {
			quick.mean = 20 * time.Second
		}
		p.mu.Unlock()
	}
	before := nd.reads()
	if r.readAll(nd, xs, 1); nd.reads() != before {
		t.Fatal("a disk that takes 20 s is asked first")
	}
	until(t, "the disk is read from again", func() bool { r.readAll(nd, xs, 1); return nd.reads() > before })
}

func TestSlowDiskIsAskedLastAndComesBack(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.ProbeEvery = 5 * time.Millisecond })
	xs := r.pack(1, 1, 10)
	r.put(r.nodes[0], 1, 3, xs)
	nd := r.nodes[1]
	other := r.nodes[2]
	until(t, "others are known", func() bool { // the local disk is asked first, so hide it
		r.readAll(nd, xs, 20)
		for _, o := range r.nodes {
			if o != nd {
				if err := other.store.ReadAt(r.ctx(), 3, xs[0].Addr, 64, make([]byte, 8), nil); err != nil {
					t.Fatal(err)
				}
				p := nd.store.health.pulse(o.ref())
				for range pulseKnown {
					nd.store.health.begin(o.ref(), readPulse)(nil)
				}
				p.mu.Lock()
				known := p.tempo(readPulse).seen >= pulseKnown
				p.mu.Unlock()
				if !known {
					return false
				}
			}
		}
		return true
	})
	var d atomic.Int64
	d.Store(int64(30 * time.Millisecond))
	defer nd.lag(&d)()
	until(t, "the slow disk is passed over", func() bool {
		before := nd.reads()
		r.readAll(nd, xs, 10)
		return nd.reads() == before
	})
	if nd.store.Stats().Probes == 0 {
		until(t, "a probe", func() bool { r.readAll(nd, xs, 1); return nd.store.Stats().Probes > 0 })
	}
	d.Store(0)
	until(t, "the disk is trusted again", func() bool {
		before := nd.reads()
		r.readAll(nd, xs, 5)
		return nd.reads() >= before+5
	})
}

// TestHedgedReadsAreFew: when every disk turns slow at once, asking more of them
// would only make it worse.
func TestHedgedReadsAreFew(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 10)
	r.put(r.nodes[0], 1, 3, xs)
	nd := r.nodes[1]
	r.readAll(nd, xs, 40)
	var d atomic.Int64
	d.Store(int64(2 * hedgeMin))
	for _, o := range r.nodes {
		defer o.lag(&d)()
	}
	const n = 300
	before := nd.store.Stats().Hedges
	for i := range n {
		p := nd.store.health.pulse(nd.ref())
		p.mu.Lock()
		p.tempo(readPulse).p95, p.silent = hedgeMin, 0 // never learns that slow is the new quick
		p.mu.Unlock()
		r.readAll(nd, xs[i%10:], 1)
	}
	if got := nd.store.Stats().Hedges - before; got == 0 || got > hedgeBurst+n/20+1 {
		t.Fatalf("%d of %d reads were hedged", got, n)
	}
}

// TestPutsPassAHungDisk: with one disk of three hanging, puts are durable on the
// others, the next ones without waiting for it; what hangs does not use up what
// may be under way.
func TestPutsPassAHungDisk(t *testing.T) {
	for _, local := range []bool{true, false} {
		r := newRigWith(t, 3, func(c *Config) { c.PutGrace = time.Second + 100*time.Millisecond })
		writer, hung := r.nodes[0], r.nodes[0]
		if !local {
			hung = r.nodes[1]
		}
		r.put(writer, 1, 3, r.pack(1, 1, 1))
		release := hung.fs.Hang(vfs.Fault{Op: "sync", Name: "extents/"})
		defer release()
		var took []time.Duration
		for i := range uint64(8) {
			began := time.Now()
			res := r.put(writer, 1, 3, r.pack(100+i, 1, 3))
			took = append(took, time.Since(began))
			if len(res.Missed) != 1 || res.Missed[0] != hung.ref() {
				t.Fatalf("missed %v", res.Missed)
			}
		}
		slow := 0
		for _, d := range took {
			if d > 500*time.Millisecond {
				slow++
			}
		}
		if slow > 3 {
			t.Fatalf("puts waited for the hung disk: %v", took)
		}
		if n := writer.store.Stats().PutBytesInFlight; n > DiskBytesMax {
			t.Fatalf("%d bytes under way", n)
		}
		release()
		until(t, "nothing is missed", func() bool {
			return len(r.put(writer, 1, 3, r.pack(1000+uint64(time.Now().UnixNano()), 1, 1)).Missed) == 0
		})
	}
}

func TestSealAndDeletePassAHungDisk(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutTimeout, c.ReadTimeout = 100*time.Millisecond, 100*time.Millisecond })
	xs := r.pack(1, 1, 1)
	r.put(r.nodes[0], 1, 3, xs)
	release := r.nodes[0].fs.Hang(vfs.Fault{Op: "write", Name: "index-"})
	defer release()
	began := time.Now()
	if err := r.nodes[0].store.Delete(r.ctx(), vol, 1, addrs(xs), 3); err == nil {
		t.Fatal("deleted on a disk that hangs")
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Fatalf("a deletion waited %v for a disk that hangs", d)
	}
}
