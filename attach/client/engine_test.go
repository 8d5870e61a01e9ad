package client_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

func block(v byte) []byte { return bytes.Repeat([]byte{v}, 4096) }

func mustRead(t testing.TB, d target.Device, off int64, want byte) {
	t.Helper()
	got, err := targettest.Read(d, off, 4096)
	if err != nil || !bytes.Equal(got, block(want)) {
		t.Fatalf("block at %d holds %d, not %d: %v", off, got[0], want, err)
	}
}

func mustWrite(t testing.TB, d target.Device, off int64, v byte) {
	t.Helper()
	if err := targettest.Write(d, block(v), off, false); err != nil {
		t.Fatal(err)
	}
}

func TestEngineKeepsTheContract(t *testing.T) {
	targettest.Run(t, func(t *testing.T) target.Device {
		p := newPool(t, 2, 1<<20)
		return p.open(p.config())
	})
}

// shared lets several clients of an exercise use one engine.
type shared struct{ target.Device }

// TestEngineMatchesFlatArray exercises an engine while its nodes are cut off,
// frozen, silenced and thawed at random, and each takeover loses the holder's
// cache. Every operation succeeds, and every read sees what it must.
func TestEngineMatchesFlatArray(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			const size = 256 << 12
			p := newPool(t, 3, size)
			p.lazy = 3 * time.Millisecond
			e := p.open(p.config())
			over := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { p.torment(e, rand.New(rand.NewPCG(seed, 7)), over) })
			m := targettest.NewModel(size, 4096)
			targettest.Exercise{Seed: seed, Steps: 600, Clients: 3, Model: m,
				Open: func() (target.Device, error) { return shared{e}, nil }}.Run(t)
			close(over)
			wg.Wait()
			s := e.State()
			p.mu.Lock()
			t.Logf("%d moves, the longest pause %v, %d stragglers fenced", s.Moves, s.LongestPause.Round(time.Millisecond), p.stale)
			p.mu.Unlock()
			if s.Moves < 3 {
				t.Errorf("only %d moves: too easy", s.Moves)
			}
		})
	}
}

// torment does something to the node that serves, again and again, and mends it
// when the engine has gone elsewhere.
func (p *fakePool) torment(e *client.Engine, rnd *rand.Rand, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(rnd.IntN(80)) * time.Millisecond):
		}
		n := p.node(e.State().Node)
		if n == nil {
			continue
		}
		moves := e.State().Moves
		switch rnd.IntN(5) {
		case 0, 1:
			n.cut() // and there again
		case 2:
			n.down(true)
		case 3:
			n.freeze(true) // as a stopped process
		case 4:
			n.freeze(false) // as a connection that a firewall forgot
		}
		for e.State().Moves == moves {
			select {
			case <-over:
				n.down(false)
				n.thaw()
				return
			case <-time.After(time.Millisecond):
			}
		}
		n.down(false)
		n.thaw()
	}
}

// A change that was answered and not flushed is in the cache of a holder whose
// cache dies with it. The engine has it.
func TestAnsweredChangesAreRepeated(t *testing.T) {
	p := newPool(t, 2, 64<<20)
	e := p.open(p.config())
	for round := range byte(10) {
		for i := range int64(50) {
			mustWrite(t, e, i<<12, 2*round+1)
			if i%3 == 0 {
				mustWrite(t, e, i<<12, 2*round+2) // the second one must stay the newer
			}
		}
		n := p.node(e.State().Node)
		n.down(true)
		for i := range int64(50) {
			want := 2*round + 1
			if i%3 == 0 {
				want++
			}
			mustRead(t, e, i<<12, want)
		}
		n.down(false)
	}
}

// What a flush or FUA covers is not kept: memory is bounded, and so is the
// repetition.
func TestKeptChangesAreBounded(t *testing.T) {
	p := newPool(t, 2, 64<<20)
	c := p.config()
	c.KeepMax = 9 << 20
	e := p.open(c)
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	for i := range int64(200) { // 50 MiB at once, never flushed by the client
		wg.Add(1)
		e.Write(bytes.Repeat([]byte{byte(i)}, 256<<10), i*256<<10, i%2 == 0, func(err error) {
			if err != nil {
				failed <- err
			}
			wg.Done()
		})
		e.Kick()
	}
	wg.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	if p.mem.Flushes() == 0 {
		t.Error("nothing was flushed, so that all of it must be kept")
	}
	p.node(e.State().Node).down(true)
	for i := range int64(200) {
		mustRead(t, e, i*256<<10, byte(i))
	}
}

// Two changes of one block are never under way together.
func TestOverlappingChangesGoOneByOne(t *testing.T) {
	p := newPool(t, 1, 1<<20)
	p.lazy = 2 * time.Millisecond // they would overtake each other
	e := p.open(p.config())
	for round := range byte(50) {
		var wg sync.WaitGroup
		wg.Add(3)
		for i := range byte(3) {
			e.Write(block(3*round+i), 0, false, func(error) { wg.Done() })
		}
		e.Kick()
		wg.Wait()
		mustRead(t, e, 0, 3*round+2)
	}
}

// A straggler of a connection that is neither dead nor alive never lands on
// what was written after it, although the node is the same.
func TestStragglersOfTheSameNodeDoNotLand(t *testing.T) {
	p := newPool(t, 1, 1<<20)
	p.lazy = 5 * time.Millisecond
	e := p.open(p.config())
	for round := range byte(3) {
		done := make(chan error, 1)
		e.Write(block(100+round), 0, false, func(err error) { done <- err })
		e.Kick()
		p.nodes[0].freeze(false)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		mustWrite(t, e, 0, round)
		p.nodes[0].thaw() // what the old connection still carried arrives now
		for range 3 {
			mustWrite(t, e, 4096, round)
			mustRead(t, e, 0, round)
		}
	}
}

// A read that is repeated on a new node waits for the changes that were under
// way with it.
func TestReadsWaitForTheRepetition(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	e := p.open(p.config())
	for round := range byte(8) {
		mustWrite(t, e, 0, round)
		p.lazy = 20 * time.Millisecond
		n := p.node(e.State().Node)
		n.down(true)
		mustRead(t, e, 0, round)
		p.mu.Lock()
		p.lazy = 0
		p.mu.Unlock()
		n.down(false)
	}
}

func TestOpenTellsWhy(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	p.refuse = fault.Newf(fault.Busy, "volume attach", "v", "in use by 1 client(s) on node x")
	if _, err := client.Open(t.Context(), p.config()); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	p.refuse = nil
	c := p.config()
	c.Nodes = func() []client.Node { return nil }
	if _, err := client.Open(t.Context(), c); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	e := p.open(p.config())
	other := p.config()
	other.ID = [16]byte{2}
	if _, err := client.Open(t.Context(), other); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	mustWrite(t, e, 0, 1)
	other.Force = true
	forced := p.open(other)
	mustWrite(t, forced, 0, 2)
	mustRead(t, forced, 0, 2)
}

// A node that takes long to refuse does not use up the time of the next one, which
// has hung up on the connection that waited.
func TestSlowRefusalLeavesTheNextNodeItsTurn(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	c := p.config()
	c.DialTimeout = 3 * time.Second
	asked := 0
	p.nodes[0].slow = func() error {
		asked++
		<-time.After(c.OpenTimeout / 2) // the slowness that is meant
		p.nodes[1].cut()
		return fault.Newf(fault.Unavailable, "open", "v", "too few members answered in time")
	}
	e, err := client.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if n := p.node(e.State().Node); n != p.nodes[1] || asked != 1 {
		t.Errorf("served by %v, the first node was asked %d times", e.State().Node, asked)
	}
}

// Without any node requests wait, then fail after their stated time, and the
// engine works again when a node is back, with what it had answered before.
func TestRequestsEndWithoutAnyNode(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	c := p.config()
	c.RequestTimeout = 500 * time.Millisecond
	e := p.open(c)
	mustWrite(t, e, 0, 1)
	for _, n := range p.nodes {
		n.down(true)
	}
	began := time.Now()
	err := targettest.Write(e, block(2), 4096, false)
	if took := time.Since(began); !fault.Is(err, fault.Timeout) || took < c.RequestTimeout {
		t.Fatalf("after %v: %v", took, err)
	}
	p.nodes[1].down(false)
	mustRead(t, e, 0, 1)
	mustRead(t, e, 4096, 0)
	e.Close()
	if err := targettest.Write(e, block(3), 0, false); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}

// A change that was answered and cannot be repeated is told with the next flush.
func TestLostChangeFailsTheNextFlush(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	e := p.open(p.config())
	mustWrite(t, e, 0, 1)
	p.mem.Fail = func(op string, _ int64, _ int) error {
		if op == "write" {
			return fault.Newf(fault.NoSpace, "volume", "v", "the bricks are full")
		}
		return nil
	}
	p.node(e.State().Node).down(true)
	if err := targettest.Flush(e); !fault.Is(err, fault.NoSpace) {
		t.Errorf("a flush that cannot hold: %v", err)
	}
	if err := targettest.Flush(e); err != nil {
		t.Errorf("told twice: %v", err)
	}
}

// A volume that was deleted and made again under its name is another one.
func TestAnotherVolumeOfTheSameNameIsRefused(t *testing.T) {
	p := newPool(t, 1, 1<<20)
	q := newPool(t, 1, 1<<19)
	c := p.config()
	var mu sync.Mutex
	nodes := c.Nodes()
	c.Nodes = func() []client.Node {
		mu.Lock()
		defer mu.Unlock()
		return nodes
	}
	c.RequestTimeout = 400 * time.Millisecond
	e := p.open(c)
	mustWrite(t, e, 0, 1)
	mu.Lock()
	nodes = q.config().Nodes()
	mu.Unlock()
	p.nodes[0].down(true)
	if err := targettest.Write(e, block(2), 0, false); !fault.Is(err, fault.Timeout) {
		t.Error(err)
	}
	if got, _ := targettest.Read(q.mem, 0, 4096); !bytes.Equal(got, block(0)) {
		t.Error("the other volume was written to")
	}
}

// An engine that nobody uses keeps quiet, and one whose node is merely slow
// stays with it.
func TestSlowNodeIsNotLeft(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	p.lazy = 1
	e := p.open(p.config())
	was := e.State().Node
	for range 3 {
		p.mu.Lock() // nothing takes effect, and greetings go on
		done := make(chan error, 1)
		e.Write(block(1), 0, false, func(err error) { done <- err })
		e.Kick()
		time.AfterFunc(300*time.Millisecond, p.mu.Unlock)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if s := e.State(); s.Moves != 0 || s.Node != was {
		t.Errorf("%+v", s)
	}
}

// One request that is not answered while others are is not waited for until the
// node fails it.
func TestForgottenRequestIsSentAgain(t *testing.T) {
	p := newPool(t, 2, 1<<20)
	c := p.config()
	c.StuckAfter = 100 * time.Millisecond
	e := p.open(c)
	p.mu.Lock()
	p.forget = 1
	p.mu.Unlock()
	done := make(chan error, 1)
	e.Write(block(7), 0, false, func(err error) { done <- err })
	e.Kick()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			mustRead(t, e, 0, 7)
			if e.State().Moves == 0 {
				t.Error("it was not forgotten")
			}
			return
		default:
			mustWrite(t, e, 8192, 1) // these are answered
		}
	}
}

// A holder whose volume grew ends the session; the next one tells the new size.
// From then on a node that does not know of it yet is not taken.
func TestGrowthIsLearnt(t *testing.T) {
	const was, is = 1 << 20, 2 << 20
	p := newPool(t, 2, was)
	e := p.open(p.config())
	mustWrite(t, e, 0, 1)
	p.mem.Grow(is)
	p.mu.Lock()
	for s := range p.sessions {
		s.end()
	}
	p.mu.Unlock()
	mustWrite(t, e, 0, 2) // waits for the session
	if e.Size() != is {
		t.Fatalf("%d bytes", e.Size())
	}
	mustWrite(t, e, is-4096, 3)

	b := p.nodes[1]
	b.behind.Store(was)
	p.nodes[0].down(true)
	written := make(chan error, 1)
	e.Write(block(4), is-4096, false, func(err error) { written <- err })
	e.Kick()
	select {
	case err := <-written:
		t.Fatalf("answered by a node that does not know the size: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.behind.Store(0)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	mustRead(t, e, is-4096, 4)
}
