package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// conn is a connection in the transmission phase.
//
// Fields above mu belong to the reader, the goroutine that runs transmit, or
// are atomic, or fixed once it runs. Lock order: mu, then budget.mu.
type conn struct {
	srv    *Server
	nc     net.Conn        // bytes of the protocol
	base   net.Conn        // the socket: nc itself, or what is below TLS
	raw    syscall.RawConn // nil if nc has no file descriptor to try writes on
	log    *slog.Logger
	peer   string
	sess   target.Session
	gone   <-chan struct{}
	ctx    context.Context // ends with the connection; for reads that wait
	cancel context.CancelFunc

	style    proto.Style
	contexts []proto.Context // what BLOCK_STATUS tells of
	mapper   target.Mapper   // nil: the device cannot tell
	readOnly bool            // the client may not write, whatever the device takes

	geo   proto.Geometry
	in    *buffer // input; [r, w) of its bytes is not decoded yet
	r, w  int
	mine  *buffer // replies of reads answered at once
	free  []*request
	made  int  // requests that exist
	turn  int  // requests since the last sending
	dirty bool // the device was given something since its last Kick

	// pending counts requests whose replies are not sent yet; only the reader
	// adds. held is what they keep in memory, in bytes: see reserved.
	pending atomic.Int32
	held    atomic.Int64

	warming atomic.Int32 // CACHE commands that read
	leaving atomic.Bool  // nothing more is taken up

	wg    sync.WaitGroup
	wake  chan struct{} // to the writer; one fits
	dying chan struct{} // closed by kill
	ended chan struct{} // closed when nothing is under way any more

	mu      sync.Mutex
	cond    sync.Cond // on mu: for the reader, when it waits
	waiting int
	async   int  // commands that the device has
	hold    bool // the reader runs, and will send what is queued
	dead    bool
	why     error // of death
	idle    []*request
	tail    *buffer // gathers replies, follows queue
	queue   []*buffer
	granted int64 // bytes taken from the shared budget

	flushing bool // somebody owns what follows
	handed   bool // it is the writer, once it wakes
	called   bool // a wake is on its way
	sending  []*buffer
	rawData  []byte
	rawN     int
	rawErr   error
	rawWrite func(uintptr) bool // writeFD, bound
}

var (
	errDisconnect = errors.New("the client disconnected")
	errDrain      = fault.Newf(fault.Fenced, "nbd.serve", "", "the server is shutting down")
)

func newConn(s *Server, nc net.Conn, n *negotiated, peer string) *conn {
	c := &conn{
		srv: s, nc: n.nc, base: nc, peer: peer, sess: n.session, gone: n.gone,
		style: n.style, contexts: n.contexts, readOnly: n.readOnly,
		log:   s.cfg.Log.With("peer", peer, "export", n.export),
		in:    getClass(classStream),
		wake:  make(chan struct{}, 1),
		dying: make(chan struct{}),
		ended: make(chan struct{}),
	}
	c.in.b = c.in.b[:cap(c.in.b)]
	c.w = copy(c.in.b, n.rest)
	c.cond.L = &c.mu
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.mapper, _ = n.session.(target.Mapper)
	c.geo = c.geometry()
	if sc, ok := n.nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	c.rawWrite = c.writeFD
	return c
}

// geometry is what requests are checked against now; the size may have grown.
func (c *conn) geometry() proto.Geometry {
	return proto.Geometry{Size: c.sess.Size(), BlockSize: c.sess.BlockSize(), ReadOnly: c.readOnly || c.sess.ReadOnly(),
		Style: c.style, Contexts: len(c.contexts)}
}

// transmit serves requests until the connection ends, and returns when the
// device has nothing of it any more and the session is closed. The error tells
// why it ended; nil after a DISC or a client that simply left.
func (c *conn) transmit() error {
	c.wg.Add(2)
	go c.writer()
	go c.watch()
	c.hold = true
	err := c.serve()
	c.leaving.Store(true)
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, errDrain), errors.Is(err, io.EOF):
		err = nil // what is under way is finished and answered
	default:
		c.kill(err)
	}
	c.pause()
	c.mu.Lock()
	for c.async > 0 || (!c.dead && c.flushing) {
		c.wait()
	}
	for c.flushing { // a dead connection's last owner lets go at once
		c.wait()
	}
	c.dead = true // nothing is appended from here on
	if c.granted > 0 {
		c.srv.budget.release(c.granted)
		c.granted = 0
	}
	if c.why != nil {
		err = c.why
	}
	c.mu.Unlock()
	c.sess.Close()
	close(c.ended)
	c.cancel()
	c.nc.Close()
	c.wg.Wait()
	c.recycle()
	return err
}

// recycle gives the buffers back once nobody else is left.
func (c *conn) recycle() {
	c.cutTail()
	for _, b := range c.queue {
		b.put()
	}
	c.queue = nil
	if c.mine != nil {
		c.mine.put()
		c.mine = nil
	}
	c.in.put()
}

// watch ends the connection when its attachment is lost.
func (c *conn) watch() {
	defer c.wg.Done()
	select {
	case <-c.gone:
		c.kill(fault.Newf(fault.Fenced, "nbd.session", c.peer, "the volume's attachment ended"))
	case <-c.ended:
	}
}

// kill ends the connection now: what is under way completes unheard. The first
// reason counts.
func (c *conn) kill(why error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.dead, c.why = true, why
	c.cond.Broadcast()
	c.mu.Unlock()
	close(c.dying)
	c.cancel()
	c.base.Close() // TLS would want to say goodbye first, and wait for it
}

// wait waits on cond, under mu.
func (c *conn) wait() {
	c.waiting++
	c.cond.Wait()
	c.waiting--
}

// serve is the reader's loop.
func (c *conn) serve() error {
	for {
		head := c.style.RequestSize()
		if err := c.fill(head, true); err != nil {
			return err
		}
		decode := proto.DecodeRequest
		if c.style == proto.Extended {
			decode = proto.DecodeExtendedRequest
		}
		r, err := decode(c.in.b[c.r:c.w])
		if err != nil {
			return err
		}
		c.r += head
		if r.Cmd == proto.CmdDisc {
			return errDisconnect
		}
		if err := c.admit(r); err != nil {
			return err
		}
		if err := c.execute(r); err != nil {
			return err
		}
		if c.turn++; c.turn >= TurnMax {
			c.turnOver()
		}
	}
}

// fill makes [r, w) at least n bytes long, n at most the input buffer. between
// says that they begin a request; io.EOF then means that the client ended
// before it.
func (c *conn) fill(n int, between bool) error {
	have := c.w - c.r
	if have >= n {
		return nil
	}
	if c.r > 0 && (have <= 4<<10 || c.r+n > len(c.in.b)) {
		copy(c.in.b, c.in.b[c.r:c.w])
		c.r, c.w = 0, have
	}
	c.pause()
	for c.w-c.r < n {
		k, err := c.nc.Read(c.in.b[c.w:])
		c.w += k
		if err != nil && c.w-c.r < n {
			return c.readError(err, between && c.w == c.r)
		}
	}
	c.resume()
	return nil
}

// readError explains why there is no more input. between says that the input
// so far ended with a whole request.
func (c *conn) readError(err error, between bool) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && c.srv.draining():
		return errDrain
	case errors.Is(err, io.EOF) && between:
		return io.EOF
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// pause is called before the reader waits for anything: the device must get
// going, and completions must send for themselves from now on.
func (c *conn) pause() {
	c.kick()
	c.mu.Lock()
	c.hold = false
	c.sendAndUnlock()
}

// resume is called when the reader goes on.
func (c *conn) resume() {
	c.mu.Lock()
	c.hold = true
	c.mu.Unlock()
}

// turnOver sends and kicks in the middle of a long run of requests.
func (c *conn) turnOver() {
	c.kick()
	c.mu.Lock()
	c.sendAndUnlock()
}

func (c *conn) kick() {
	c.turn = 0
	if c.dirty {
		c.dirty = false
		c.sess.Kick()
	}
}

func (c *conn) sendAndUnlock() {
	c.push()
	flush := !c.flushing && c.take()
	c.mu.Unlock()
	if flush {
		c.flush()
	}
}

// admit waits until r may be taken up: RequestsMax, BytesMax and the shared
// budget. It reserves what r will hold.
func (c *conn) admit(r proto.Request) error {
	if int(c.pending.Add(1)) > c.srv.cfg.RequestsMax {
		c.pause()
		c.mu.Lock()
		for !c.dead && int(c.pending.Load()) > c.srv.cfg.RequestsMax {
			c.wait()
		}
		c.hold = true
		dead, why := c.dead, c.why
		c.mu.Unlock()
		if dead {
			return why
		}
	}
	if n := r.Payload(c.style); n > proto.PayloadMax {
		return fault.Newf(fault.Invalid, "nbd.request", c.peer,
			"a %v with %d bytes of data, the limit is %d", r.Cmd, n, proto.PayloadMax)
	}
	n := c.reserved(r)
	if n == 0 || c.held.Add(n) <= BytesFree {
		return nil
	}
	return c.admitBytes()
}

// reserved is what a command counts in held between its admission and its
// reply, in bytes: the wire bytes of a read's reply, the data of a write, the
// whole buffer of a block status.
func (c *conn) reserved(r proto.Request) int64 {
	switch {
	case r.Cmd == proto.CmdBlockStatus:
		return statusBytes
	case r.Length > proto.PayloadMax:
		return 0 // it is going to be refused, or is about a range and carries no data
	case r.Cmd == proto.CmdRead:
		return int64(c.style.ReadSize()) + int64(r.Length)
	case r.Cmd == proto.CmdWrite:
		return int64(r.Length)
	case r.Cmd == proto.CmdCache:
		return cacheBytes
	}
	return 0
}

// admitBytes waits until held, which counts the request at hand already, keeps
// to BytesMax and is covered by BytesFree and the shared budget.
func (c *conn) admitBytes() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held.Load() > c.srv.cfg.BytesMax {
		c.mu.Unlock()
		c.pause()
		c.mu.Lock()
		for !c.dead && c.held.Load() > c.srv.cfg.BytesMax {
			c.wait()
		}
		c.hold = true
	}
	if c.dead {
		return c.why
	}
	short := c.held.Load() - BytesFree - c.granted
	if short <= 0 {
		return nil
	}
	short = (short + grantStep - 1) / grantStep * grantStep
	if !c.srv.budget.try(short) {
		c.mu.Unlock()
		c.pause()
		ok := c.srv.budget.acquire(short, c.dying)
		c.mu.Lock()
		if !ok {
			return c.why
		}
		c.hold = true
	}
	c.granted += short
	return nil
}
