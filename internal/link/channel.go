package link

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
)

// Limits of one connection.
const (
	// InboundCallsMax bounds the calls from one peer that run at once on one
	// connection.
	InboundCallsMax = 256
	// InboundBytesMax bounds the bytes of their requests. A caller waits until
	// its call fits; a peer that does not is answered Unavailable.
	InboundBytesMax = 64 << 20
	// callCostMin makes one budget of bytes serve both limits.
	callCostMin = InboundBytesMax / InboundCallsMax
	// crowd is the number of calls under way from which a sender lets other
	// goroutines add their frames before it makes a system call.
	crowd = 8
)

// How a frame is posted.
type postMode uint8

const (
	postNow   postMode = iota // send at once, with what else is pending
	postLater                 // leave it pending until the next flush
	postYield                 // let the other runnable goroutines add theirs, then send
)

// carrier moves frames in order to the other end of one connection.
type carrier interface {
	// post queues a frame; see Peer.Send. With wait, it first waits for room
	// in the queue until ctx ends; only goroutines that may block do so.
	post(ctx context.Context, h header, mode postMode, wait bool, bufs ...[]byte) error
	// flush sends what is pending.
	flush()
	// end closes the connection for the stated reason; idempotent.
	end(err error)
}

// channel is one end of one connection: calls and dispatch, the same for Mesh
// and Memory. It is the Peer that handlers see.
type channel struct {
	base   *base
	number uint64 // of base.begun
	peer   ident.NodeID
	cls    class
	out    carrier
	gone   chan struct{} // closed when the connection has ended

	bursts atomic.Uint32 // that its reader has begun to dispatch
	corked atomic.Bool   // its reader is dispatching: answers wait for the burst's end
	counts [256]uint32   // of the reader: one-way frames left in the burst, by type

	limit limiter // of outbound calls

	mu      sync.Mutex
	closed  bool
	nextID  uint64
	calls   map[uint64]*pendingCall
	inbound map[uint64]context.CancelFunc
	inCost  int64
}

type pendingCall struct{ done chan callResult }

type callResult struct {
	body []byte
	err  error
}

func newChannel(b *base, peer ident.NodeID, cls class) *channel {
	c := &channel{
		base: b, number: b.begun.Add(1), peer: peer, cls: cls, gone: make(chan struct{}),
		limit:   limiter{free: InboundBytesMax},
		calls:   map[uint64]*pendingCall{},
		inbound: map[uint64]context.CancelFunc{},
	}
	b.live.Store(c.number, c)
	return c
}

func (c *channel) ID() ident.NodeID { return c.peer }

// Send implements Peer. While the connection's own reader dispatches a burst,
// the frame waits for the burst's end.
func (c *channel) Send(typ Type, bufs ...[]byte) error {
	mode := postNow
	if c.corked.Load() {
		mode = postLater
	}
	err := c.oneWay(typ, mode, bufs)
	if mode == postLater && !c.corked.Load() {
		c.out.flush() // the burst ended in between
	}
	return err
}

// SendLater implements PeerFlusher.
func (c *channel) SendLater(typ Type, bufs ...[]byte) error { return c.oneWay(typ, postLater, bufs) }

// Flush implements PeerFlusher.
func (c *channel) Flush() { c.out.flush() }

func (c *channel) oneWay(typ Type, mode postMode, bufs [][]byte) error {
	n := size(bufs)
	if n > MessageMax {
		return tooLong("link.send", n)
	}
	return c.out.post(context.Background(), header{size: n, typ: typ}, mode, false, bufs...)
}

func tooLong(op string, n int) error {
	return fault.Newf(fault.Invalid, op, "", "a message of %d bytes is longer than %d", n, MessageMax)
}

func cost(n int) int64 { return max(int64(n), callCostMin) }

// call carries out Transport.Call over this connection.
func (c *channel) call(ctx context.Context, typ Type, bufs [][]byte) ([]byte, error) {
	n := size(bufs)
	if n > MessageMax {
		return nil, tooLong("link.call", n)
	}
	if !c.limit.acquire(ctx, c.gone, cost(n)) {
		if err := ctx.Err(); err != nil {
			return nil, fault.New(fault.Timeout, "link.call", c.peer.Short(), err)
		}
		return nil, notConnected(c.peer)
	}
	defer c.limit.release(cost(n))
	p, _ := c.base.callPool.Get().(*pendingCall)
	if p == nil {
		p = &pendingCall{done: make(chan callResult, 1)}
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, notConnected(c.peer)
	}
	c.nextID++
	id := c.nextID
	c.calls[id] = p
	mode := crowded(len(c.calls))
	c.mu.Unlock()
	if err := c.out.post(ctx, header{n, typ, frameCall, id}, mode, true, bufs...); err != nil {
		c.forget(id, p)
		return nil, err
	}
	var r callResult
	select {
	case r = <-p.done:
	case <-ctx.Done():
		if c.forget(id, p) {
			// best effort: an answer that still comes is dropped
			_ = c.out.post(context.Background(), header{typ: typ, kind: frameCancel, id: id}, postNow, false)
			return nil, fault.New(fault.Timeout, "link.call", c.peer.Short(), ctx.Err())
		}
		r = <-p.done // the answer has been taken from the map: it comes
	}
	c.base.callPool.Put(p)
	return r.body, r.err
}

func crowded(n int) postMode {
	if n >= crowd {
		return postYield
	}
	return postNow
}

// forget removes a call that nobody waits for any more and reports whether it
// was still open.
func (c *channel) forget(id uint64, p *pendingCall) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[id] != p {
		return false
	}
	delete(c.calls, id)
	return true
}

// consume dispatches every whole frame at the start of buf and reports how
// many bytes it used. It runs on the connection's reader. An error means that
// the connection must end.
func (c *channel) consume(buf []byte) (used int, err error) {
	whole := 0
	for whole+headerSize <= len(buf) {
		h, perr := parseHeader(buf[whole:])
		if perr != nil {
			err = perr
			break
		}
		if whole+headerSize+h.size > len(buf) {
			break
		}
		if h.kind == frameOneWay {
			c.counts[h.typ]++
		}
		whole += headerSize + h.size
	}
	if whole == 0 {
		return 0, err
	}
	c.bursts.Add(1)
	c.corked.Store(true)
	for used < whole {
		h, _ := parseHeader(buf[used:])
		c.dispatch(h, buf[used+headerSize:used+headerSize+h.size])
		used += headerSize + h.size
	}
	c.corked.Store(false)
	c.out.flush()
	return used, err
}

func (c *channel) dispatch(h header, body []byte) {
	c.base.received.Add(1)
	switch h.kind {
	case frameOneWay:
		c.counts[h.typ]--
		if f := c.base.handlers[h.typ]; f != nil {
			f(c, body, c.counts[h.typ] > 0)
		} else {
			c.base.unknown.Add(1)
		}
	case frameCall:
		c.serve(h, body)
	case frameAnswer:
		c.answered(h.id, callResult{body: lend.Copy(body)})
	case frameFailure:
		c.answered(h.id, callResult{err: parseError(body)})
	case frameCancel:
		c.mu.Lock()
		if cancel := c.inbound[h.id]; cancel != nil {
			cancel()
		}
		c.mu.Unlock()
	}
}

func (c *channel) answered(id uint64, r callResult) {
	c.mu.Lock()
	p := c.calls[id]
	delete(c.calls, id)
	c.mu.Unlock()
	if p != nil {
		p.done <- r
	}
}

var errCrowded = errors.New("too many calls at once")

// serve starts the handler of an inbound call.
func (c *channel) serve(h header, body []byte) {
	f := c.base.callHandlers[h.typ]
	if f == nil {
		c.fail(h, fault.Newf(fault.Invalid, "link.call", "", "node %s does not know calls of type %#02x; is it older?", c.base.self.Short(), uint8(h.typ)))
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.mu.Lock()
	var refused error
	switch {
	case c.closed:
		cancel()
		c.mu.Unlock()
		return
	case c.inbound[h.id] != nil:
		refused = fault.Newf(fault.Invalid, "link.call", "", "call %d is already under way", h.id)
	case len(c.inbound) >= InboundCallsMax || c.inCost+cost(h.size) > InboundBytesMax:
		refused = fault.New(fault.Unavailable, "link.call", c.base.self.Short(), errCrowded)
	}
	if refused != nil {
		cancel()
		c.mu.Unlock()
		c.fail(h, refused)
		return
	}
	c.inbound[h.id] = cancel
	c.inCost += cost(h.size)
	c.base.wg.Add(1)
	c.mu.Unlock()
	go c.run(ctx, cancel, f, h, lend.Copy(body))
}

// run is the goroutine of one inbound call.
func (c *channel) run(ctx context.Context, cancel context.CancelFunc, f CallHandler, h header, body []byte) {
	defer c.base.wg.Done()
	result, err := f(ctx, c.peer, body)
	c.mu.Lock()
	mode := crowded(len(c.inbound))
	delete(c.inbound, h.id)
	c.inCost -= cost(h.size)
	c.mu.Unlock()
	if err == nil && len(result) > MessageMax {
		err = tooLong("link.call", len(result))
	}
	if ctx.Err() == nil {
		a := header{typ: h.typ, id: h.id, kind: frameAnswer, size: len(result)}
		if err != nil {
			result = appendError(nil, err)
			a.kind, a.size = frameFailure, len(result)
		}
		// the connection's end is the only failure; the caller learns of it by itself
		_ = c.out.post(ctx, a, mode, true, result)
		if err == nil && c.base.lent[h.typ] {
			lend.Put(result)
		}
	}
	cancel()
}

func (c *channel) fail(h header, err error) {
	body := appendError(nil, err)
	_ = c.out.post(context.Background(), header{len(body), h.typ, frameFailure, h.id}, postLater, false, body)
}

// close ends all calls in both directions; idempotent. The carrier calls it.
func (c *channel) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.base.live.Delete(c.number)
	close(c.gone)
	for id, p := range c.calls {
		delete(c.calls, id)
		p.done <- callResult{err: fault.Newf(fault.Indeterminate, "link.call", c.peer.Short(), "the connection ended before the answer came")}
	}
	for _, cancel := range c.inbound {
		cancel()
	}
}

func notConnected(id ident.NodeID) error {
	return fault.Newf(fault.Unavailable, "link.send", id.Short(), "not connected")
}
