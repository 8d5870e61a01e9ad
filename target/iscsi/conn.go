package iscsi

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// conn is a connection, and the session that lives and ends with it.
//
// Fields above leaving belong to the reader, the goroutine that serves it, or are
// atomic, or fixed once the full feature phase begins.
type conn struct {
	edge.Stream
	srv   *Server
	nc    net.Conn
	log   *slog.Logger
	peer  string
	local string // address that the client reached

	who    login.Who
	params login.Params
	tsih   uint16
	unit   Unit
	nexus  *scsi.Nexus // nil in a discovery session

	digests pdu.Digests
	recvMax int        // longest data segment the client may send, bytes
	header  pdu.Header // of the PDU that is carried out
	dirty   bool       // the device server was given something since its last Kick
	text    textState
	heard   atomic.Int64 // time of the last input, unix nanoseconds

	// Guarded by the lock.
	leaving   bool // the target was reset: a deadline ends the reader
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
	share     edge.Share
}

var errLogout = errors.New("the initiator logged out")

// loginBytes is the room for input of who logs in: login.TextMax and what is around it.
const loginBytes = 32 << 10

func newConn(s *Server, ec *edge.Conn[*conn]) *conn {
	c := &conn{
		srv: s, nc: ec.Socket, peer: ec.Peer, log: ec.Log,
		recvMax: login.TextMax,
		params:  login.Defaults(),
		tasks:   map[uint32]*task{},
		share:   edge.NewShare(s.budget),
	}
	if a := c.nc.LocalAddr(); a != nil {
		c.local = a.String()
	}
	c.Start(c, c.nc, c.nc, loginBytes, nil, s.cfg.StallTimeout)
	return c
}

// serve takes the connection through the full feature phase, and returns when
// the device server has nothing of it any more. The error tells why it ended; nil
// after a logout, or if the client simply left.
func (c *conn) serve() error {
	c.Go(c.watch)
	err := c.loop()
	switch {
	case errors.Is(err, errLogout), errors.Is(err, edge.ErrDrain), errors.Is(err, io.EOF):
		c.Lock()
		c.dropGathering(func(*task) bool { return true })
		c.Unlock()
		c.Finish(c.busy) // what is under way comes to its end and is answered
		err = nil
	default:
		c.Kill(err)
	}
	return c.end(err)
}

// busy tells, under the lock, that the device server has something of the connection.
func (c *conn) busy() bool { return c.executing > 0 || c.managing > 0 }

// end closes the nexus and gives everything back.
func (c *conn) end(err error) error {
	c.Lock()
	c.Stop()
	c.dropGathering(func(*task) bool { return true })
	c.Unlock()
	if c.nexus != nil {
		closed := make(chan struct{})
		c.nexus.Close(func() { close(closed) })
		c.unit.LU.Kick()
		<-closed
	}
	c.Lock()
	for c.busy() {
		c.Wait()
	}
	c.Unlock()
	c.Close()
	c.share.Return()
	if why := c.Why(); why != nil {
		err = why
	}
	return err
}

// watch ends the connection when its volume is gone, and asks a silent client
// for a sign of life.
func (c *conn) watch() {
	timer := time.NewTimer(c.srv.cfg.PingInterval)
	defer timer.Stop()
	for {
		select {
		case <-c.unit.Gone:
			c.Kill(fault.Newf(fault.Fenced, "iscsi.session", c.peer, "the volume is not served any more"))
			return
		case <-c.Ended():
			return
		case <-timer.C:
			timer.Reset(c.pingOrWait())
		}
	}
}

// hear notes a sign of life of the client.
func (c *conn) hear() { c.heard.Store(time.Now().UnixNano()) }

// fill makes the input at least n bytes long. io.EOF means that the client ended
// between PDUs.
func (c *conn) fill(n int) error {
	if len(c.Input()) >= n {
		return nil
	}
	defer c.hear()
	if err := c.Fill(n); err != nil {
		return c.readError(err, n == pdu.HeaderSize && len(c.Input()) == 0)
	}
	return nil
}

// readFull fills p.
func (c *conn) readFull(p []byte) error {
	if len(p) > len(c.Input()) {
		defer c.hear()
	}
	if err := c.ReadFull(p); err != nil {
		return c.readError(err, false)
	}
	return nil
}

// readError explains why there is no more input. between says that the input
// so far ended with a whole PDU.
func (c *conn) readError(err error, between bool) error {
	c.Lock()
	leaving := c.leaving
	c.Unlock()
	if leaving && errors.Is(err, os.ErrDeadlineExceeded) {
		return errLogout
	}
	return c.srv.conns.EndOfInput(err, between)
}

// Kick implements edge.Owner.
func (c *conn) Kick() {
	if c.dirty {
		c.dirty = false
		c.unit.LU.Kick()
	}
}

// Sent implements edge.Owner.
func (c *conn) Sent(s edge.Sent) { c.release(s.Held) }

// Stalled implements edge.Owner.
func (c *conn) Stalled() error {
	return fault.Newf(fault.Timeout, "iscsi.response", c.peer, "the initiator took no response for %v", c.srv.cfg.StallTimeout)
}

// reserve takes n bytes of memory for a command, under the lock, and reports whether
// there was room.
func (c *conn) reserve(n int) bool {
	held := int64(c.held + n)
	if !mutant.On("memory-unbounded") && (held > c.srv.cfg.BytesMax || !c.share.Cover(held)) {
		return false
	}
	c.held += n
	return true
}

// release gives n bytes back, under the lock.
func (c *conn) release(n int) {
	c.held -= n
	c.share.Shrink(int64(c.held))
}
