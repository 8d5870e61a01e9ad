package link

import (
	"context"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// memConn is one end of a connection of Memory. It holds the frames that its
// side has sent; the other end's reader takes them.
type memConn struct {
	*channel
	local   *MemoryNode
	other   *memConn
	dialled bool
	wake    chan struct{} // tells the reader of this end to look again

	mu      sync.Mutex
	queue   []memFrame
	visible int // frames of queue that have been flushed
	bytes   int
	last    time.Time // when the newest frame arrives
	ended   bool
	stall   *time.Timer
	room    chan struct{} // closed when the queue gets shorter
}

type memFrame struct {
	at    time.Time // arrival; zero is now
	bytes []byte
}

func newMemConn(local, remote *MemoryNode, cls class) *memConn {
	c := &memConn{local: local, wake: make(chan struct{}, 1)}
	c.channel = newChannel(&local.base, remote.self, cls)
	c.channel.out = c
	return c
}

func (c *memConn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *memConn) post(ctx context.Context, h header, mode postMode, wait bool, bufs ...[]byte) error {
	n := headerSize + h.size
	f := memFrame{bytes: appendHeader(make([]byte, 0, n), h)}
	for _, b := range bufs {
		f.bytes = append(f.bytes, b...)
	}
	d := c.local.net.delay()
	limit := c.local.net.QueueMax
	c.mu.Lock()
	for wait && !c.ended && c.bytes > 0 && c.bytes+n > limit/2 {
		if err := c.waitRoom(ctx); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	if c.ended {
		c.mu.Unlock()
		return notConnected(c.peer)
	}
	if c.bytes+n > limit {
		c.mu.Unlock()
		c.base.overflows.Add(1)
		err := fault.Newf(fault.Unavailable, "link.send", c.peer.Short(), "the peer reads too slowly: %d bytes are waiting", limit)
		c.end(err)
		return err
	}
	if d > 0 || !c.last.IsZero() {
		if f.at = time.Now().Add(d); f.at.Before(c.last) {
			f.at = c.last
		}
		c.last = f.at
	}
	c.queue = append(c.queue, f)
	c.bytes += n
	if mode != postLater {
		c.visible = len(c.queue)
	}
	c.mu.Unlock()
	c.base.sent.Add(1)
	c.base.sentBytes.Add(uint64(n))
	c.deliver()
	return nil
}

func (c *memConn) waitRoom(ctx context.Context) error {
	if c.room == nil {
		c.room = make(chan struct{})
	}
	room := c.room
	c.visible = len(c.queue)
	c.mu.Unlock()
	c.deliver()
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

// deliver tells the reader of the other end, or begins to count the time that
// the direction is cut.
func (c *memConn) deliver() {
	if c.local.net.cut(c.local.self, c.peer) {
		c.mu.Lock()
		c.watchStall()
		c.mu.Unlock()
		return
	}
	c.other.nudge()
}

// watchStall ends the connection if it stays cut; mu is held.
func (c *memConn) watchStall() {
	if c.stall != nil || c.ended {
		return
	}
	c.stall = time.AfterFunc(c.local.net.UserTimeout, func() {
		c.mu.Lock()
		c.stall = nil
		stuck := len(c.queue) > 0
		c.mu.Unlock()
		if stuck && c.local.net.cut(c.local.self, c.peer) {
			c.end(fault.Newf(fault.Unavailable, "link", c.peer.Short(), "the peer acknowledges nothing"))
		}
	})
}

func (c *memConn) flush() {
	c.mu.Lock()
	n := len(c.queue)
	news := n > c.visible
	c.visible = n
	c.mu.Unlock()
	if news {
		c.deliver()
	}
}

// take removes the frames that have arrived, up to readBufferMax bytes, and
// appends them to buf. next is when the first of the rest arrives, zero if
// none is on the way.
func (c *memConn) take(buf []byte) (_ []byte, next time.Time) {
	if c.local.net.cut(c.local.self, c.peer) {
		return buf, next
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, now := 0, time.Now()
	for n < c.visible && len(buf) < readBufferMax && !c.queue[n].at.After(now) {
		buf = append(buf, c.queue[n].bytes...)
		c.bytes -= len(c.queue[n].bytes)
		n++
	}
	c.queue = append(c.queue[:0:0], c.queue[n:]...)
	c.visible -= n
	if c.visible > 0 {
		if next = c.queue[0].at; next.IsZero() {
			next = now
		}
	}
	if n > 0 && c.room != nil {
		close(c.room)
		c.room = nil
	}
	return buf, next
}

// read is the reader goroutine of this end.
func (c *memConn) read() {
	defer c.base.wg.Done()
	var buf []byte
	for {
		var next time.Time
		buf, next = c.other.take(buf[:0])
		select {
		case <-c.gone:
			return
		default:
		}
		if len(buf) > 0 {
			c.base.receivedBytes.Add(uint64(len(buf)))
			if _, err := c.consume(buf); err != nil {
				c.end(err)
				return
			}
			continue
		}
		var arrival <-chan time.Time
		if !next.IsZero() {
			arrival = time.After(time.Until(next))
		}
		select {
		case <-c.wake:
		case <-arrival:
		case <-c.gone:
			return
		}
	}
}

// end closes both ends.
func (c *memConn) end(error) {
	for _, e := range []*memConn{c, c.other} {
		e.mu.Lock()
		was := e.ended
		e.ended = true
		e.queue, e.visible, e.bytes = nil, 0, 0
		if e.stall != nil {
			e.stall.Stop()
			e.stall = nil
		}
		e.mu.Unlock()
		e.channel.close()
		if e.dialled && !was {
			e.local.net.forget(e)
		}
	}
}
