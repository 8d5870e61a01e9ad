package link

import (
	"context"
	"crypto/tls"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/gentle"
	"github.com/gabion-storage/gabion/internal/ident"
)

const (
	// QueueMax bounds the bytes that wait to be sent on one connection.
	QueueMax = 64 << 20
	// flushChunk is how much is encrypted before it is given to the socket.
	flushChunk = 256 << 10
	// inlineFlushMax is how much one Send writes, for itself and others, before
	// it leaves the rest to the connection's writer.
	inlineFlushMax = 1 << 20
	// buffers above keepBuffer (of a bulk connection, above keepBulk) are given
	// back when they get empty
	keepBuffer = 1 << 20
	keepBulk   = 4 << 20
)

// conn carries a channel over TCP and TLS.
//
// Sending: frames are appended to pending. Whoever finds no flush in progress
// becomes the flusher: it takes what is pending, encrypts it and writes it to
// the socket without waiting, until nothing is left. If the socket is full it
// passes the role to the writer goroutine, which sleeps otherwise. So a lone
// message costs no switch of goroutines, and under load messages share records
// and system calls.
type conn struct {
	*channel
	mesh    *Mesh
	dialler *dialler // of an outbound connection
	tls     *tls.Conn
	wire    *wire
	max     int
	keep    int

	// batch[off:] is what the flusher has taken; only the flusher touches it.
	batch []byte
	off   int
	head  []byte // of direct, for reuse

	wake chan struct{} // hands the role of flusher to the writer; capacity 1

	mu       sync.Mutex
	pending  []byte
	spare    []byte
	taken    int // bytes in the flusher's hands
	flushing bool
	ended    bool
	reason   error
	room     chan struct{} // closed when the queue gets shorter; nil if nobody waits
}

func newConn(m *Mesh, t *tls.Conn, w *wire, peer ident.NodeID, cls class) *conn {
	c := &conn{mesh: m, tls: t, wire: w, max: m.cfg.QueueMax, wake: make(chan struct{}, 1)}
	c.keep = keepBuffer
	if cls != classMain {
		c.keep = keepBulk
	}
	c.channel = newChannel(&m.base, peer, cls)
	c.channel.out = c
	return c
}

func (c *conn) post(ctx context.Context, h header, mode postMode, wait bool, bufs ...[]byte) error {
	n := headerSize + h.size
	c.mu.Lock()
	for wait && !c.ended && c.taken+len(c.pending) > 0 && c.taken+len(c.pending)+n > c.max/2 {
		if err := c.waitRoom(ctx); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	if c.ended {
		c.mu.Unlock()
		return notConnected(c.peer)
	}
	if c.taken+len(c.pending)+n > c.max {
		c.mu.Unlock()
		c.base.overflows.Add(1)
		err := fault.Newf(fault.Unavailable, "link.send", c.peer.Short(), "the peer reads too slowly: %d bytes are waiting", c.max)
		c.end(err)
		return err
	}
	if n >= directMin && mode != postLater && !c.flushing && len(c.pending) == 0 {
		c.flushing, c.taken = true, n
		c.mu.Unlock()
		c.gently(func() { c.direct(h, bufs) })
		c.base.sent.Add(1)
		c.base.sentBytes.Add(uint64(n))
		return nil
	}
	c.pending = appendHeader(slices.Grow(c.pending, n), h)
	for _, b := range bufs {
		c.pending = append(c.pending, b...)
	}
	if c.flushing || (mode == postLater && len(c.pending) < flushChunk) {
		c.mu.Unlock()
	} else {
		c.flushing = true
		c.mu.Unlock()
		if mode == postYield {
			runtime.Gosched()
		}
		c.gently(func() { c.drain(false) })
	}
	c.base.sent.Add(1)
	c.base.sentBytes.Add(uint64(n))
	return nil
}

// waitRoom waits, with mu released, until the queue gets shorter.
func (c *conn) waitRoom(ctx context.Context) error {
	if c.room == nil {
		c.room = make(chan struct{})
	}
	room := c.room
	if !c.flushing { // what others left for later must move, or nothing will
		c.flushing = true
		c.mu.Unlock()
		c.drain(false)
	} else {
		c.mu.Unlock()
	}
	var err error
	select {
	case <-room:
	case <-c.gone:
	case <-ctx.Done():
		err = fault.New(fault.Timeout, "link.call", c.peer.Short(), ctx.Err())
	}
	c.mu.Lock()
	return err
}

func (c *conn) flush() {
	c.mu.Lock()
	if c.flushing || len(c.pending) == 0 || c.ended {
		c.mu.Unlock()
		return
	}
	c.flushing = true
	c.mu.Unlock()
	c.drain(false)
}

// drain is the flusher's loop. The caller has set flushing. With patient (the
// writer goroutine) it waits for the socket; else it passes the role on when
// the socket is full or it has done enough for others.
func (c *conn) drain(patient bool) {
	sent := 0
	for {
		if c.off == len(c.batch) && !c.take() {
			return
		}
		chunk := c.batch[c.off:min(len(c.batch), c.off+flushChunk)]
		c.off += len(chunk)
		_, err := c.tls.Write(chunk)
		done := true
		if err == nil {
			done, err = c.wire.push()
		}
		if err == nil && !done && patient {
			err = c.wire.wait()
		}
		if err != nil {
			c.end(fault.New(fault.Unavailable, "link.send", c.peer.Short(), err))
			return // flushing stays set: nobody writes any more
		}
		sent += len(chunk)
		if !patient && (!done || sent >= inlineFlushMax) {
			c.wake <- struct{}{} // never blocks: there is one flusher
			return
		}
	}
}

// take moves what is pending into the flusher's hands. It returns false, and
// ends the flush, if there is nothing.
func (c *conn) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.batch != nil && cap(c.batch) <= c.keep {
		c.spare = c.batch[:0]
	}
	c.batch, c.off = nil, 0
	c.taken = len(c.pending)
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
	if len(c.pending) == 0 {
		if c.pending == nil {
			c.pending, c.spare = c.spare, nil
		}
		c.flushing = false
		return false
	}
	c.batch, c.pending, c.spare = c.pending, c.spare, nil
	return true
}

// writer sleeps until a flusher finds the socket full.
func (c *conn) writer() {
	defer c.base.wg.Done()
	for {
		select {
		case <-c.wake:
		case <-c.gone:
			return
		}
		// what the last flusher encrypted comes first
		if err := c.wire.wait(); err != nil {
			c.end(fault.New(fault.Unavailable, "link.send", c.peer.Short(), err))
			return
		}
		c.gently(func() { c.drain(true) })
	}
}

// end closes the connection. The first reason is kept.
func (c *conn) end(err error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended = true
	c.reason = err
	c.pending, c.spare = nil, nil
	c.mu.Unlock()
	// No close_notify: frames are delimited, and a full socket would block it.
	c.wire.TCPConn.Close()
	c.channel.close()
}

// run reads until the connection ends and returns why it did. It owns the
// goroutines of the connection.
func (c *conn) run() error {
	c.base.wg.Add(1)
	go c.writer()
	buf := make([]byte, 2*recordMax)
	n := 0
	var err error
	for err == nil {
		if err = c.await(); err == nil {
			c.gently(func() {
				buf, n, err = c.step(buf, n)
				// To change the priority of a thread costs more than to look.
				for err == nil && c.cls == classGentle && c.wire.ready() {
					buf, n, err = c.step(buf, n)
				}
			})
		}
	}
	c.end(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// gently runs what computes: on a gentle connection, where it is in nobody's way.
func (c *conn) gently(f func()) {
	if c.cls == classGentle {
		gentle.Run(f)
	} else {
		f()
	}
}

// await waits, on a gentle connection, until there is something to read: what waits should
// not do so gently.
func (c *conn) await() error {
	if c.cls != classGentle {
		return nil // the next read waits
	}
	if err := c.wire.await(); err != nil {
		return fault.New(fault.Unavailable, "link.read", c.peer.Short(), err)
	}
	return nil
}

// step reads what there is and dispatches the whole frames of it. buf[:n] is what
// is left of a frame.
func (c *conn) step(buf []byte, n int) ([]byte, int, error) {
	buf, n, err := c.read(buf, n)
	if err != nil {
		return buf, n, fault.New(fault.Unavailable, "link.read", c.peer.Short(), err)
	}
	used, err := c.consume(buf[:n])
	if err != nil {
		return buf, n, err
	}
	if used > 0 {
		n = copy(buf, buf[used:n])
	}
	if n == 0 && len(buf) > c.keep {
		buf = make([]byte, 2*recordMax)
	}
	return buf, n, nil
}

// read appends at least one record to buf[:n], and as many more as are at hand
// without waiting. buf grows to hold the frame that it begins with, and up to
// readBufferMax for bursts.
func (c *conn) read(buf []byte, n int) ([]byte, int, error) {
	if need := frameAt(buf[:n]) + recordMax; need > len(buf) {
		buf = grow(buf, n, need)
	}
	for first := true; first || (c.wire.hasRecord() && n < readBufferMax); first = false {
		if len(buf)-n < recordMax {
			buf = grow(buf, n, 2*len(buf))
		}
		m, err := c.tls.Read(buf[n:])
		n += m
		c.base.receivedBytes.Add(uint64(m))
		if err != nil && (first || m == 0) {
			if !first && n > 0 {
				return buf, n, nil // the next read meets the error again
			}
			return buf, n, err
		}
	}
	return buf, n, nil
}

// frameAt is the whole size of the frame that b begins with; 0 if that is not
// known yet or it is bad, which consume will find.
func frameAt(b []byte) int {
	if len(b) < headerSize {
		return 0
	}
	h, err := parseHeader(b)
	if err != nil {
		return 0
	}
	return headerSize + h.size
}

func grow(buf []byte, n, size int) []byte {
	bigger := make([]byte, size)
	copy(bigger, buf[:n])
	return bigger
}

// hello exchanges greetings on a fresh connection; only then has the other
// side accepted the certificate. The dialler's class is returned.
func hello(t *tls.Conn, cls class, dialled bool, limit time.Duration) (class, error) {
	if err := t.SetDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	send := func(cls class) error {
		b := appendHeader(nil, header{size: helloSize, typ: typeHello})
		_, err := t.Write(appendHello(b, cls))
		return err
	}
	if dialled {
		if err := send(cls); err != nil {
			return 0, err
		}
	}
	var b [headerSize + helloSize]byte
	for n := 0; n < len(b); {
		m, err := t.Read(b[n:])
		n += m
		if err != nil && n < len(b) {
			return 0, err
		}
	}
	h, err := parseHeader(b[:])
	if err != nil {
		return 0, err
	}
	if h.typ != typeHello || h.kind != frameOneWay || h.size != helloSize {
		return 0, fault.Newf(fault.Invalid, "link.connect", "", "the peer does not greet")
	}
	got, err := parseHello(b[headerSize:])
	if err != nil {
		return 0, err
	}
	if !dialled {
		if err := send(got); err != nil {
			return 0, err
		}
	}
	return got, t.SetDeadline(time.Time{})
}
