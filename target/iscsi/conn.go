package iscsi

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
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// conn is a connection, and the session that lives and ends with it.
//
// Fields above mu belong to the reader, the goroutine that serves it, or are
// atomic, or fixed once the full feature phase begins.
type conn struct {
	srv   *Server
	nc    net.Conn
	raw   syscall.RawConn // nil if nc has no file descriptor to try writes on
	log   *slog.Logger
	peer  string
	local string // address that the client reached

	who    login.Who
	params login.Params
	tsih   uint16
	unit   Unit
	nexus  *scsi.Nexus // nil in a discovery session

	digests pdu.Digests
	recvMax int     // longest data segment the client may send, bytes
	in      *buffer // input; [r, w) of its bytes is not decoded yet
	r, w    int
	turn    int  // PDUs since the last sending
	dirty   bool // the device server was given something since its last Kick
	text    textState
	heard   atomic.Int64 // time of the last input, unix nanoseconds

	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	wake     chan struct{}      // to the writer; one fits
	dying    chan struct{}      // closed by kill
	ended    chan struct{}      // closed when nothing is under way any more
	rawWrite func(uintptr) bool // writeFD, bound

	mu        sync.Mutex
	cond      sync.Cond // on mu: for the reader, when it waits
	waiting   int
	hold      bool // the reader runs, and will send what is queued
	dead      bool
	why       error // of death
	leaving   bool  // the target was reset: a deadline ends the reader
	tasks     map[uint32]*task
	counted   int // tasks that the window of CmdSN counts
	immediate int // tasks and functions that it does not
	executing int // tasks that the device server has
	managing  int // task management functions under way
	idle      []*task
	statSN    uint32
	expCmdSN  uint32
	ttt       uint32 // last target transfer tag
	ping      uint32 // its tag, while a ping is not answered; else 0
	held      int    // bytes of memory reserved
	granted   int    // of these, from the shared budget
	out       output
}

var (
	errLogout = errors.New("the initiator logged out")
	errDrain  = fault.Newf(fault.Fenced, "iscsi.serve", "", "the server is shutting down")
)

func newConn(s *Server, nc net.Conn, peer string) *conn {
	c := &conn{
		srv: s, nc: nc, peer: peer, log: s.cfg.Log.With("peer", peer),
		in:      getClass(classLogin),
		recvMax: login.TextMax,
		params:  login.Defaults(),
		wake:    make(chan struct{}, 1),
		dying:   make(chan struct{}),
		ended:   make(chan struct{}),
		tasks:   map[uint32]*task{},
	}
	c.in.b = c.in.b[:cap(c.in.b)]
	c.cond.L = &c.mu
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if a := nc.LocalAddr(); a != nil {
		c.local = a.String()
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	c.rawWrite = c.writeFD
	return c
}

// serve takes the connection through the full feature phase, and returns when
// the device server has nothing of it any more. The error tells why it ended; nil
// after a logout, or if the client simply left.
func (c *conn) serve() error {
	c.wg.Add(1)
	go c.watch()
	c.mu.Lock()
	c.hold = true
	c.mu.Unlock()
	err := c.loop()
	switch {
	case errors.Is(err, errLogout), errors.Is(err, errDrain), errors.Is(err, io.EOF):
		c.finish()
		err = nil
	default:
		c.kill(err)
	}
	return c.end(err)
}

// finish lets what is under way come to its end and be answered.
func (c *conn) finish() {
	c.pause()
	c.mu.Lock()
	c.dropGathering(func(*task) bool { return true })
	for !c.dead && (c.executing > 0 || c.managing > 0 || c.out.flushing || c.out.bytes > 0) {
		if !c.out.flushing && c.take() {
			c.mu.Unlock()
			c.flush()
			c.mu.Lock()
			continue
		}
		c.wait()
	}
	c.mu.Unlock()
}

// end closes the nexus and gives everything back.
func (c *conn) end(err error) error {
	c.mu.Lock()
	c.hold = false
	c.dead = true // nothing is appended from here on
	c.dropGathering(func(*task) bool { return true })
	c.mu.Unlock()
	if c.nexus != nil {
		closed := make(chan struct{})
		c.nexus.Close(func() { close(closed) })
		c.unit.LU.Kick()
		<-closed
	}
	c.mu.Lock()
	for c.executing > 0 || c.managing > 0 {
		c.wait()
	}
	c.nc.Close()
	for c.out.flushing { // a dead connection's last owner lets go at once
		c.wait()
	}
	if c.granted > 0 {
		c.srv.budget.Add(int64(c.granted))
		c.granted = 0
	}
	if c.why != nil {
		err = c.why
	}
	c.mu.Unlock()
	close(c.ended)
	c.cancel()
	c.wg.Wait()
	c.retire()
	for i := range c.out.queue {
		c.spent(&c.out.queue[i])
	}
	c.in.put()
	return err
}

// watch ends the connection when its volume is gone, and asks a silent client
// for a sign of life.
func (c *conn) watch() {
	defer c.wg.Done()
	timer := time.NewTimer(c.srv.cfg.PingInterval)
	defer timer.Stop()
	for {
		select {
		case <-c.unit.Gone:
			c.kill(fault.Newf(fault.Fenced, "iscsi.session", c.peer, "the volume is not served any more"))
			return
		case <-c.ended:
			return
		case <-timer.C:
			timer.Reset(c.pingOrWait())
		}
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
	c.nc.Close()
}

// wait waits on cond, under mu.
func (c *conn) wait() {
	c.waiting++
	c.cond.Wait()
	c.waiting--
}

// fill makes [r, w) at least n bytes long, n at most the input buffer. io.EOF
// means that the client ended between PDUs.
func (c *conn) fill(n int) error {
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
			return c.readError(err, n == pdu.HeaderSize && c.w == c.r)
		}
	}
	c.resume()
	return nil
}

// readFull fills p, first from what is buffered, then past the buffer.
func (c *conn) readFull(p []byte) error {
	n := copy(p, c.in.b[c.r:c.w])
	c.r += n
	if n == len(p) {
		return nil
	}
	c.pause()
	for n < len(p) {
		k, err := c.nc.Read(p[n:])
		n += k
		if err != nil && n < len(p) {
			return c.readError(err, false)
		}
	}
	c.resume()
	return nil
}

// readError explains why there is no more input. between says that the input
// so far ended with a whole PDU.
func (c *conn) readError(err error, between bool) error {
	c.mu.Lock()
	leaving := c.leaving
	c.mu.Unlock()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && leaving:
		return errLogout
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
	c.heard.Store(time.Now().UnixNano())
	c.mu.Lock()
	c.hold = true
	c.mu.Unlock()
}

// turnOver sends and kicks in the middle of a long run of PDUs.
func (c *conn) turnOver() {
	c.kick()
	c.mu.Lock()
	c.sendAndUnlock()
}

func (c *conn) kick() {
	c.turn = 0
	if c.dirty {
		c.dirty = false
		c.unit.LU.Kick()
	}
}

func (c *conn) sendAndUnlock() {
	flush := !c.out.flushing && c.take()
	c.mu.Unlock()
	if flush {
		c.flush()
	}
}

// reserve takes n bytes of memory for a command, under mu, and reports whether
// there was room.
func (c *conn) reserve(n int) bool {
	if mutant.On("memory-unbounded") {
		c.held += n
		return true
	}
	if int64(c.held+n) > c.srv.cfg.BytesMax {
		return false
	}
	if short := c.held + n - BytesFree - c.granted; short > 0 {
		short = (short + grantStep - 1) / grantStep * grantStep
		if c.srv.budget.Add(-int64(short)) < 0 {
			c.srv.budget.Add(int64(short))
			return false
		}
		c.granted += short
	}
	c.held += n
	return true
}

// release gives n bytes back, under mu. Some of what came from the shared budget
// is kept so that a busy connection does not come back for every command.
func (c *conn) release(n int) {
	c.held -= n
	if c.granted == 0 {
		return
	}
	need := max(0, c.held-BytesFree)
	if need > 0 {
		need += grantStep
	}
	if excess := c.granted - need; excess > 0 && (need == 0 || excess >= 4*grantStep) {
		c.granted -= excess
		c.srv.budget.Add(int64(excess))
	}
}

// grantStep is the unit of taking from the shared budget, in bytes.
const grantStep = 1 << 20
