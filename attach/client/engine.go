package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// writeMax is the longest piece that a write or read is cut into, clearMax that
// of a Zero or Trim, in bytes.
const (
	writeMax = 1 << classMax
	clearMax = 1 << 30
)

// Engine is a volume as one client sees it, wherever it is served. It is a
// target.Session; its methods may be called concurrently.
type Engine struct {
	cfg    Config
	first  export
	size   atomic.Int64
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	notify chan struct{} // State changed; one fits

	mu   sync.Mutex
	sent sync.Cond // on mu: a sender is done
	sess *session  // nil while there is none
	// Operations are in one of these: again (to be repeated, changes only),
	// waiting (never sent, or to be sent again after the repetition), or slots
	// (under way). A change that is kept stands in kept as well.
	again, waiting fifo
	slots          [requestsMax]*op
	free           []int
	inflight       int
	changing       []*op // the changes in slots
	kept           []*op // changes that no flush has covered, in the order of sending
	keptBytes      int64
	plain          int // of kept: answered and not by themselves durable
	answers        uint64
	serial         uint64 // makes cookies differ
	flushing       bool   // a flush of the engine's own is waiting or under way
	lostErr        error  // of a repetition that failed: for the next flush
	closed         bool
	attempt        uint32
	state          State
	lostAt         time.Time // when the last session ended
	resent         int       // of the present repetition
}

var _ target.Session = (*Engine)(nil)

// Open connects to the first node that serves the volume. ctx bounds that; the
// error is the most telling refusal. The engine lives until Close.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, notify: make(chan struct{}, 1)}
	e.sent.L = &e.mu
	for i := range e.slots {
		e.free = append(e.free, i)
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	w, x, err := e.round(ctx, Node{}, false, dialFactor*cfg.DialTimeout)
	if err != nil {
		e.cancel()
		return nil, err
	}
	e.first = x
	e.size.Store(x.size)
	s := e.begin(w)
	e.wg.Go(e.tell)
	e.wg.Go(func() { e.run(s) })
	return e, nil
}

// Size in bytes.
func (e *Engine) Size() int64 { return e.size.Load() }

// BlockSize is the volume's logical block size in bytes.
func (e *Engine) BlockSize() int { return e.first.blockSize }

// ReadOnly tells whether the export refuses changes.
func (e *Engine) ReadOnly() bool { return e.first.flags&proto.FlagReadOnly != 0 }

// Description is what the nodes say of the volume.
func (e *Engine) Description() string { return e.first.description }

// TryReadAt never has bytes at hand.
func (e *Engine) TryReadAt([]byte, int64) bool { return false }

// check is the contract of target.Device for ranges.
func (e *Engine) check(off, n int64, change bool) error {
	const op = "attach"
	bs := int64(e.first.blockSize)
	switch {
	case off < 0 || n <= 0 || off%bs != 0 || n%bs != 0:
		return fault.Newf(fault.Invalid, op, e.cfg.Volume, "[%d, +%d) is not whole blocks of %d bytes", off, n, bs)
	case off > e.Size() || n > e.Size()-off:
		return fault.Newf(fault.Invalid, op, e.cfg.Volume, "[%d, +%d) is beyond the end at %d", off, n, e.Size())
	case change && e.ReadOnly():
		return fault.Newf(fault.ReadOnly, op, e.cfg.Volume, "the export is read only")
	}
	return nil
}

// ReadAt fills p.
func (e *Engine) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := e.check(off, int64(len(p)), false); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), writeMax)
		if err := e.read(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

var waits = sync.Pool{New: func() any { return make(chan error, 1) }}

func (e *Engine) read(ctx context.Context, p []byte, off int64) error {
	done := waits.Get().(chan error)
	o := newOp(proto.CmdRead, 0, off, len(p), func(err error) { done <- err })
	o.buf = getBuffer(len(p))
	o.refs.Add(1) // ours: the data are copied from it
	e.submit(o)
	e.Kick()
	select {
	case err := <-done:
		waits.Put(done)
		if err == nil {
			copy(p, o.buf.b)
		}
		o.release()
		return err
	case <-ctx.Done(): // the op goes on without us
		o.release()
		return ctx.Err()
	}
}

// Write keeps no reference to p once it returns.
func (e *Engine) Write(p []byte, off int64, fua bool, done func(error)) {
	if err := e.check(off, int64(len(p)), true); err != nil {
		done(err)
		return
	}
	done = join(pieces(int64(len(p)), writeMax), done)
	for len(p) > 0 {
		n := min(len(p), writeMax)
		o := newOp(proto.CmdWrite, flagsOf(fua), off, n, done)
		o.buf = getBuffer(n)
		copy(o.buf.b, p)
		e.submit(o)
		p, off = p[n:], off+int64(n)
	}
}

// Zero makes a range read as zeros; see target.Device.
func (e *Engine) Zero(off, n int64, fua bool, done func(error)) {
	e.clear(proto.CmdWriteZeroes, off, n, fua, done)
}

// Trim gives a range back; see target.Device.
func (e *Engine) Trim(off, n int64, fua bool, done func(error)) {
	e.clear(proto.CmdTrim, off, n, fua, done)
}

func (e *Engine) clear(cmd proto.Command, off, n int64, fua bool, done func(error)) {
	if err := e.check(off, n, true); err != nil {
		done(err)
		return
	}
	done = join(pieces(n, clearMax), done)
	for n > 0 {
		k := min(n, clearMax)
		e.submit(newOp(cmd, flagsOf(fua), off, int(k), done))
		off, n = off+k, n-k
	}
}

// Flush makes every completed change durable.
func (e *Engine) Flush(done func(error)) {
	if e.ReadOnly() {
		done(nil)
		return
	}
	e.submit(newOp(proto.CmdFlush, 0, 0, 0, done))
}

// Kick sends what was submitted. It may wait for the socket.
func (e *Engine) Kick() {
	e.mu.Lock()
	s := e.sess
	e.mu.Unlock()
	if s != nil {
		s.send()
	}
}

func flagsOf(fua bool) uint16 {
	if fua {
		return proto.FlagFUA
	}
	return 0
}

func pieces(n, most int64) int { return int((n + most - 1) / most) }

// join makes done wait for n calls and pass on the first error.
func join(n int, done func(error)) func(error) {
	if n == 1 {
		return done
	}
	return joinMany(n, done) // what it captures is on the heap
}

func joinMany(n int, done func(error)) func(error) {
	var mu sync.Mutex
	var first error
	return func(err error) {
		mu.Lock()
		if first == nil {
			first = err
		}
		n--
		last := n == 0
		err = first
		mu.Unlock()
		if last {
			done(err)
		}
	}
}

// submit takes an operation over.
func (e *Engine) submit(o *op) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		o.done(errClosed(e.cfg.Volume))
		o.release()
		return
	}
	e.waiting.push(o)
	e.advance()
	e.mu.Unlock()
}

func errClosed(volume string) error {
	return fault.Newf(fault.Unavailable, "attach", volume, "it is being detached")
}

// State is a snapshot.
func (e *Engine) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// Close ends the session. What is not answered fails; flush before. The
// volume's node has let go of the client when Close returns, or is out of reach.
func (e *Engine) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		e.wg.Wait()
		return
	}
	e.closed = true
	s := e.sess
	e.mu.Unlock()
	if s != nil {
		s.part()
	}
	e.cancel()
	e.wg.Wait()
	e.mu.Lock()
	all := e.takeAll()
	e.mu.Unlock()
	end(all, errClosed(e.cfg.Volume))
}

// partMax bounds the wait for a node to say goodbye.
const partMax = 2 * time.Second

// part says DISC and waits until the node hangs up, which it does when the
// volume has nothing of the session any more.
func (s *session) part() {
	s.nc.SetDeadline(time.Now().Add(partMax))
	s.e.mu.Lock()
	for s.sending {
		s.e.sent.Wait()
	}
	s.parting = true // nobody else writes from here on
	s.e.mu.Unlock()
	if _, err := s.nc.Write(proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdDisc})); err == nil {
		<-s.dead
	}
}

// fifo is a queue of operations.
type fifo struct {
	q    []*op
	head int
}

func (f *fifo) len() int { return len(f.q) - f.head }

func (f *fifo) push(o *op) {
	if f.head > 0 && f.head == len(f.q) {
		f.q, f.head = f.q[:0], 0
	}
	f.q = append(f.q, o)
}

func (f *fifo) first() *op { return f.q[f.head] }

func (f *fifo) pop() *op {
	o := f.q[f.head]
	f.q[f.head] = nil
	if f.head++; f.head > 1024 && 2*f.head > len(f.q) {
		n := copy(f.q, f.q[f.head:])
		clear(f.q[n:])
		f.q, f.head = f.q[:n], 0
	}
	return o
}

// set replaces the contents.
func (f *fifo) set(q []*op) { f.q, f.head = q, 0 }

func (f *fifo) all() []*op { return f.q[f.head:] }
