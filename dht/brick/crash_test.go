package brick

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// outage cuts the power (or kills the process) at operation number at of a
// disk, whatever that is and whoever does it.
type outage struct {
	m     *vfs.Mem
	at    int64
	kill  bool
	rng   *rand.Rand
	n     atomic.Int64
	mu    sync.Mutex
	after *vfs.Mem // the disk as found afterwards
}

func (o *outage) arm() {
	o.m.SetHook(func(op, name string) error {
		if op != "tryread" && o.n.Add(1) == o.at {
			o.strike()
		}
		return nil
	})
}

// strike ends the disk now, if it is not over yet, and returns what is left.
func (o *outage) strike() *vfs.Mem {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.after == nil {
		if o.kill {
			o.after = o.m.Kill()
		} else {
			o.after = o.m.Crash(o.rng)
		}
	}
	return o.after
}

// written is one record that the test appended.
type written struct {
	pos  Pos
	body []byte
}

// journalModel is what a test knows about a journal.
type journalModel struct {
	mu      sync.Mutex
	records []written
	durable int // records before this index were acknowledged as durable
	trimmed Pos
}

// check replays and compares: a contiguous run of what was appended, from no
// later than the trim to no earlier than the last acknowledgement. The model
// then continues from what is there.
func (m *journalModel) check(j *Journal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var got []written
	err := j.Replay(func(p Pos, body []byte) error {
		got = append(got, written{p, bytes.Clone(body)})
		return nil
	})
	if err != nil {
		return err
	}
	known := map[Pos]int{}
	for i, r := range m.records {
		known[r.pos] = i
	}
	from, to := len(m.records), len(m.records)
	for k, r := range got {
		i, ok := known[r.pos]
		switch {
		case !ok || !bytes.Equal(m.records[i].body, r.body):
			return fmt.Errorf("record at %d was never appended", r.pos)
		case k == 0:
			from = i
		case i != from+k:
			return fmt.Errorf("record %d follows record %d", i, from+k-1)
		}
		to = i + 1
	}
	if len(got) == 0 {
		from, to = 0, 0
	}
	for i, r := range m.records {
		if i < m.durable && r.pos >= m.trimmed && (i < from || i >= to) {
			return fmt.Errorf("record %d of %d at %d was durable and is lost; have [%d,%d)", i, len(m.records), r.pos, from, to)
		}
	}
	oldest, next, _ := j.Live()
	if n := len(got); n > 0 && next < got[n-1].pos+Pos(frameSize(len(got[n-1].body))) || oldest > next {
		return fmt.Errorf("the journal is [%d,%d) but has a record at %d", oldest, next, got[n-1].pos)
	}
	m.records, m.durable = got, len(got)
	return nil
}

// work appends, writes, syncs and trims until the disk ends or n steps are done.
func (m *journalModel) work(j *Journal, rng *rand.Rand, n int) {
	var acks sync.WaitGroup
	defer acks.Wait()
	for range n {
		switch k := rng.Intn(20); {
		case k < 12:
			body := make([]byte, 1+rng.Intn(3000))
			if rng.Intn(20) == 0 {
				body = make([]byte, 1+rng.Intn(30000))
			}
			rng.Read(body)
			m.mu.Lock()
			p, err := j.Append(body)
			if err == nil {
				m.records = append(m.records, written{p, body})
			}
			m.mu.Unlock()
			if err != nil && !fault.Is(err, fault.NoSpace) {
				return
			}
		case k < 14:
			if j.Write() != nil {
				return
			}
		case k < 18:
			m.mu.Lock()
			upTo := len(m.records)
			m.mu.Unlock()
			acks.Add(1)
			j.Sync(func(err error) {
				defer acks.Done()
				if err == nil {
					m.mu.Lock()
					m.durable = max(m.durable, upTo)
					m.mu.Unlock()
				}
			})
			if rng.Intn(2) == 0 {
				acks.Wait()
			}
		case k < 19:
			m.mu.Lock()
			if m.durable > 1 {
				// Only what is durable elsewhere is trimmed: here, anything.
				m.trimmed = max(m.trimmed, m.records[rng.Intn(m.durable)].pos)
				j.Trim(m.trimmed)
			}
			m.mu.Unlock()
		default:
			m.mu.Lock()
			var r written
			if len(m.records) > 0 {
				r = m.records[len(m.records)-1]
			}
			m.mu.Unlock()
			if r.body == nil {
				continue
			}
			if b, err := j.ReadAt(r.pos, len(r.body)); err == nil && !bytes.Equal(b, r.body) {
				panic("ReadAt returned another record")
			}
		}
	}
}

// extentModel is what a test knows about the extents.
type extentModel struct {
	mu     sync.Mutex
	stored map[ident.Addr]Extent // put and acknowledged
	gone   map[ident.Addr]bool   // deleted and acknowledged
	unsure map[ident.Addr]Extent // put or delete without an answer
	number uint64
}

func newExtentModel() *extentModel {
	return &extentModel{stored: map[ident.Addr]Extent{}, gone: map[ident.Addr]bool{}, unsure: map[ident.Addr]Extent{}}
}

func (m *extentModel) check(b *Brick) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, x := range m.unsure {
		if _, ok := b.StatExtent(a); ok {
			m.stored[a] = x
		} else {
			m.gone[a] = true
		}
	}
	clear(m.unsure)
	var span int64
	for a, x := range m.stored {
		got := make([]byte, len(x.Data))
		if err := b.ReadExtent(a, got, 0); err != nil {
			return fmt.Errorf("extent %d was durable: %w", x.Number, err)
		}
		if !bytes.Equal(got, x.Data) {
			return fmt.Errorf("extent %d was durable and has other bytes", x.Number)
		}
		span += recordSpan(int64(len(x.Data)))
	}
	for a := range m.gone {
		if _, ok := b.StatExtent(a); ok {
			return fmt.Errorf("extent %s was deleted and came back", a.Short())
		}
	}
	if refs := b.ListVolume(testVolume); len(refs) != len(m.stored) {
		return fmt.Errorf("%d extents listed, %d known", len(refs), len(m.stored))
	}
	if u := b.Usage(); u.ExtentStored != span {
		return fmt.Errorf("%d bytes of extents counted, %d known", u.ExtentStored, span)
	}
	return nil
}

func (m *extentModel) work(b *Brick, rng *rand.Rand, n int) {
	for range n {
		if rng.Intn(3) > 0 {
			xs := make([]Extent, 1+rng.Intn(3))
			m.mu.Lock()
			for i := range xs {
				m.number++
				xs[i] = testExtent(testVolume, m.number, 24+rng.Intn(20000))
				m.unsure[xs[i].Addr] = xs[i]
			}
			m.mu.Unlock()
			if b.PutExtents(xs) != nil {
				return
			}
			m.mu.Lock()
			for _, x := range xs {
				delete(m.unsure, x.Addr)
				m.stored[x.Addr] = x
			}
			m.mu.Unlock()
			continue
		}
		var as []ident.Addr
		m.mu.Lock()
		for a, x := range m.stored {
			if len(as) < 3 {
				as = append(as, a)
				m.unsure[a] = x
				delete(m.stored, a)
			}
		}
		m.mu.Unlock()
		if b.DeleteExtents(as) != nil {
			return
		}
		m.mu.Lock()
		for _, a := range as {
			delete(m.unsure, a)
			m.gone[a] = true
		}
		m.mu.Unlock()
	}
}

// crashRun lives through several outages of one brick and reports what was
// wrong after one of them.
func crashRun(seed int64) error {
	rng := rngOf(seed)
	m, st := vfs.NewMemSeed(seed), NewMemStable()
	jm, xm := &journalModel{}, newExtentModel()
	for round := range 6 {
		b, err := Open(small(m, st))
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := jm.check(b.Journal()); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := xm.check(b); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := checkRoom(m, b); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		o := &outage{m: m, at: 1 + rng.Int63n(400), kill: rng.Intn(4) == 0, rng: rngOf(rng.Int63())}
		o.arm()
		var wg sync.WaitGroup
		for range 2 {
			r := rngOf(rng.Int63())
			wg.Go(func() { xm.work(b, r, 20) })
		}
		r := rngOf(rng.Int63())
		wg.Go(func() { jm.work(b.Journal(), r, 120) })
		wg.Wait()
		if rng.Intn(5) == 0 {
			_ = b.Close() // an outage may strike in it, too
		}
		m = o.strike()
		_ = b.Close() // of a brick without a disk: joins its goroutines
	}
	return nil
}

// checkRoom demands that after an open the extents take exactly their own room.
func checkRoom(m *vfs.Mem, b *Brick) error {
	<-b.extents.reclaimed
	if got, want := m.Allocated("extents/"), b.Usage().ExtentStored; got > want {
		return fmt.Errorf("the segments take %d bytes for %d bytes of extents", got, want)
	}
	return nil
}

// TestPowerCuts takes GABION_SEEDS=FROM:TO for a longer search. A seed fixes the
// disk and the outages, not how goroutines interleave.
func TestPowerCuts(t *testing.T) {
	from, to := int64(0), int64(100)
	if testing.Short() {
		to = 10
	}
	if s := os.Getenv("GABION_SEEDS"); s != "" {
		if _, err := fmt.Sscanf(s, "%d:%d", &from, &to); err != nil {
			t.Fatalf("GABION_SEEDS=%q: %v", s, err)
		}
	}
	for seed := from; seed < to; seed++ {
		if err := crashRun(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestPowerCutWhileCreating: a brick that never came to be begins anew; one that
// did is whole.
func TestPowerCutWhileCreating(t *testing.T) {
	seeds := int64(4)
	if testing.Short() {
		seeds = 1
	}
	for at := int64(1); ; at++ {
		ended := false
		for seed := range seeds {
			m, st := vfs.NewMemSeed(seed), NewMemStable()
			o := &outage{m: m, at: at, kill: seed%3 == 0, rng: rngOf(seed)}
			o.arm()
			b, err := Open(small(m, st))
			if err == nil {
				<-b.extents.reclaimed
				ended = o.n.Load() < at
			}
			m = o.strike()
			if b != nil {
				_ = b.Close() // of a brick without a disk
			}
			b, err2 := Open(small(m, st))
			if err2 != nil {
				t.Fatalf("operation %d, seed %d: %v; after %v", at, seed, err2, err)
			}
			must(t, b.Close())
		}
		if ended {
			return
		}
	}
}

// TestEveryOperationFails lets each operation of a workload fail, done or not:
// what was acknowledged is there after a restart.
func TestEveryOperationFails(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for at := int64(1); ; at++ {
			m, st := vfs.NewMem(), NewMemStable()
			b := mustOpen(t, small(m, st))
			<-b.extents.reclaimed
			var n atomic.Int64
			m.SetHook(func(op, name string) error {
				switch {
				case n.Add(1) != at || op == "close":
					return nil
				case applied:
					return vfs.Applied{Err: fmt.Errorf("%s %s fails", op, name)}
				}
				return fmt.Errorf("%s %s fails", op, name)
			})
			jm, xm := &journalModel{}, newExtentModel()
			xm.work(b, rngOf(1), 12)
			jm.work(b.Journal(), rngOf(2), 80)
			m.SetHook(nil)
			m = m.Kill()
			_ = b.Close() // of a brick without a disk
			b, err := Open(small(m, st))
			if err == nil {
				err = jm.check(b.Journal())
			}
			if err == nil {
				err = xm.check(b)
			}
			if err != nil {
				t.Fatalf("operation %d, applied %v: %v", at, applied, err)
			}
			must(t, b.Close())
			if n.Load() < at {
				break
			}
		}
	}
}
