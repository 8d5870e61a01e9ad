package nbd

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// conn is a connection in the transmission phase.
//
// Fields above idle belong to the reader, the goroutine that runs transmit, or
// are atomic, or fixed once it runs.
type conn struct {
	edge.Stream
	srv    *Server
	log    *slog.Logger
	peer   string
	export string
	sess   target.Session
	gone   <-chan struct{}

	style    proto.Style
	contexts []proto.Context // what BLOCK_STATUS tells of
	mapper   target.Mapper   // nil: the device cannot tell
	readOnly bool            // the client may not write, whatever the device takes

	geo   proto.Geometry
	free  []*request
	made  int  // requests that exist
	dirty bool // the device was given something since its last Kick

	// pending counts requests whose replies are not sent yet; only the reader
	// adds. held is what they keep in memory, in bytes: see reserved.
	pending atomic.Int32
	held    atomic.Int64

	warming atomic.Int32 // CACHE commands that read
	leaving atomic.Bool  // nothing more is taken up

	// Guarded by the lock.
	idle  []*request
	async int        // commands that the device has
	share edge.Share // of the memory of all
}

var errDisconnect = errors.New("the client disconnected")

func newConn(s *Server, ec *edge.Conn[*conn], n *negotiated) *conn {
	c := &conn{
		srv: s, peer: ec.Peer, export: n.export, sess: n.session, gone: n.gone,
		style: n.style, contexts: n.contexts, readOnly: n.readOnly,
		log:   ec.Log.With("export", n.export),
		share: edge.NewShare(s.budget),
	}
	c.mapper, _ = n.session.(target.Mapper)
	c.geo = c.geometry()
	c.Start(c, n.nc, ec.Socket, edge.StreamBytes, n.rest, s.cfg.StallTimeout)
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
	c.Go(c.watch)
	err := c.serve()
	c.leaving.Store(true)
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, edge.ErrDrain), errors.Is(err, io.EOF):
		err = nil // what is under way is finished and answered
	default:
		c.Kill(err)
	}
	c.Finish(func() bool { return c.async > 0 })
	c.Lock()
	for c.async > 0 {
		c.Wait()
	}
	c.Stop()
	c.share.Return()
	if why := c.Why(); why != nil {
		err = why
	}
	c.Unlock()
	c.sess.Close()
	c.Close()
	return err
}

// watch ends the connection when its attachment is lost.
func (c *conn) watch() {
	select {
	case <-c.gone:
		c.Kill(fault.Newf(fault.Fenced, "nbd.session", c.peer, "the volume's attachment ended"))
	case <-c.Ended():
	}
}

// serve is the reader's loop.
func (c *conn) serve() error {
	for {
		head := c.style.RequestSize()
		if err := c.fill(head, true); err != nil {
			return err
		}
		select {
		case <-c.Dying(): // nobody hears of what the input still has
			return net.ErrClosed // Kill knows why
		default:
		}
		decode := proto.DecodeRequest
		if c.style == proto.Extended {
			decode = proto.DecodeExtendedRequest
		}
		r, err := decode(c.Input())
		if err != nil {
			return err
		}
		c.Next(head)
		if r.Cmd == proto.CmdDisc {
			return errDisconnect
		}
		if err := c.admit(r); err != nil {
			return err
		}
		if err := c.execute(r); err != nil {
			return err
		}
		c.Count()
	}
}

// fill makes the input at least n bytes long. between says that they begin a
// request; io.EOF then means that the client ended before it.
func (c *conn) fill(n int, between bool) error {
	if len(c.Input()) >= n {
		return nil
	}
	err := c.Fill(n)
	if err != nil {
		return c.srv.conns.EndOfInput(err, between && len(c.Input()) == 0)
	}
	return nil
}

// Kick implements edge.Owner.
func (c *conn) Kick() {
	if c.dirty {
		c.dirty = false
		c.sess.Kick()
	}
}

// Sent implements edge.Owner.
func (c *conn) Sent(s edge.Sent) {
	c.pending.Add(-int32(s.Units))
	c.share.Shrink(c.held.Add(-int64(s.Bytes)))
}

// Stalled implements edge.Owner.
func (c *conn) Stalled() error {
	return fault.Newf(fault.Timeout, "nbd.reply", c.peer, "the client took no reply for %v", c.srv.cfg.StallTimeout)
}

// admit waits until r may be taken up: RequestsMax, BytesMax and the shared
// budget. It reserves what r will hold.
func (c *conn) admit(r proto.Request) error {
	if limit := c.srv.cfg.RequestsMax; int(c.pending.Add(1)) > limit {
		if err := c.Await(func() bool { return int(c.pending.Load()) > limit }); err != nil {
			return err
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
	if limit := c.srv.cfg.BytesMax; c.held.Load() > limit {
		if err := c.Await(func() bool { return c.held.Load() > limit }); err != nil {
			return err
		}
	}
	c.Lock()
	defer c.Unlock()
	if c.Dead() {
		return c.Why()
	}
	if c.share.Cover(c.held.Load()) {
		return nil
	}
	short := c.share.Short(c.held.Load())
	c.Unlock()
	c.Pause()
	ok := c.srv.budget.Acquire(short, c.Dying())
	c.Resume()
	c.Lock()
	if !ok {
		return c.Why()
	}
	c.share.Grant(short)
	return nil
}
