package partition

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
)

// patience bounds every wait for something that must happen.
const patience = 40 * time.Second

// pace is between two writes of one writer: these rigs measure pauses, and leave
// the processors to whoever needs them.
const pace = 5 * time.Millisecond

// paced lets one write through for each tick.
type paced struct {
	ledger.Disk
	tick <-chan time.Time
}

func (p paced) WriteAt(b []byte, off int64) error {
	<-p.tick
	return p.Disk.WriteAt(b, off)
}

// engine is what 'gabion attach' serves a device from, as a disk of the ledger.
type engine struct{ *client.Engine }

func (e engine) ReadAt(p []byte, off int64) error {
	return e.Engine.ReadAt(context.Background(), p, off)
}

func (e engine) WriteAt(p []byte, off int64) error {
	done := make(chan error, 1)
	e.Write(p, off, false, func(err error) { done <- err })
	e.Kick()
	return <-done
}

func (e engine) Flush() error {
	done := make(chan error, 1)
	e.Engine.Flush(func(err error) { done <- err })
	e.Kick()
	return <-done
}

// writer writes a ledger and notes when it was answered.
type writer struct {
	plan   ledger.Plan
	round  uint32
	disk   ledger.Disk
	cancel context.CancelFunc
	done   chan struct{} // closed when the load is over; then result and err are set
	result ledger.Result
	err    error

	mu     sync.Mutex // guards below
	count  uint64
	last   time.Time
	worst  time.Duration // the longest time between two answers since reset
	after  time.Time     // of the answer that ended that
	change chan struct{} // closed at the next answer
}

func write(t *testing.T, plan ledger.Plan, round uint32, disk ledger.Disk) *writer {
	t.Helper()
	w := &writer{plan: plan, round: round, disk: disk, done: make(chan struct{}), last: time.Now(), change: make(chan struct{})}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	tick := time.NewTicker(pace)
	go func() {
		defer close(w.done)
		defer tick.Stop()
		w.result, w.err = ledger.Load{Plan: plan, Disk: paced{disk, tick.C}, Round: round, Depth: 2, FlushEvery: 8,
			Answered: w.answered}.Run(ctx)
	}()
	w.more(t, 50)
	return w
}

func (w *writer) answered(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if d := now.Sub(w.last); d > w.worst {
		w.worst, w.after = d, now
	}
	w.last, w.count = now, n
	close(w.change)
	w.change = make(chan struct{})
}

func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.worst, w.last = 0, time.Now()
}

// first is when the answer came that ended the longest time without since reset.
func (w *writer) first() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.after
}

// lastAnswer is when the last answer came.
func (w *writer) lastAnswer() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// more waits for n further answers and returns the longest time between two
// since reset.
func (w *writer) more(t *testing.T, n uint64) time.Duration {
	t.Helper()
	deadline := time.After(patience)
	w.mu.Lock()
	defer w.mu.Unlock()
	for goal := w.count + n; w.count < goal; {
		change := w.change
		w.mu.Unlock()
		var why error
		select {
		case <-change:
		case <-w.done:
			why = w.err
		case <-deadline:
			why = errors.New("no answer in time")
		}
		w.mu.Lock()
		if why != nil {
			t.Fatalf("%d writes answered, the last %v ago: %v", w.count, time.Since(w.last), why)
		}
	}
	return w.worst
}

// stop ends the load and checks every write that was answered, as read from disk.
func (w *writer) stop(t *testing.T, disk ledger.Disk, state *ledger.State) {
	t.Helper()
	w.cancel()
	select {
	case <-w.done:
	case <-time.After(patience):
		t.Fatal("a load does not end")
	}
	if err := w.plan.Verify(disk, state, w.round, w.result.Answered); err != nil {
		t.Error(err)
	}
}

// attached is a volume as 'gabion attach' has it, with a writer on it.
type attached struct {
	*writer
	c      *cluster.Cluster
	engine engine
	state  *ledger.State
}

// attach opens the volume, first through the first of the nodes, and writes.
func attach(t *testing.T, c *cluster.Cluster, volume string, id byte, nodes ...*cluster.Node) *attached {
	t.Helper()
	var list []client.Node
	for _, n := range nodes {
		list = append(list, client.Node{Name: n.Name, Addr: n.Info.NBD})
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := client.Open(ctx, client.Config{Volume: volume, ID: [16]byte{id}, Start: 1,
		Nodes: func() []client.Node { return list }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	plan := ledger.Plan{Blocks: 4096, Seed: uint64(id)}
	a := &attached{c: c, engine: engine{e}, state: &ledger.State{Seen: make([]ledger.Seq, plan.Blocks)}}
	a.writer = write(t, plan, 1, a.engine)
	return a
}

// served is the node that serves now, or nil.
func (a *attached) served() *cluster.Node {
	for _, n := range a.c.Nodes {
		if n.Info.NBD == a.engine.State().Node.Addr {
			return n
		}
	}
	return nil
}

// finish checks the ledger.
func (a *attached) finish(t *testing.T) {
	t.Helper()
	a.stop(t, a.engine, a.state)
	if a.err != nil {
		t.Error(a.err)
	}
	t.Logf("%d writes of the attached client, all there; %d moves", a.result.Answered, a.engine.State().Moves)
}
