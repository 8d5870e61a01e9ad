// Package nbdclient is a small NBD client for the rigs: fixed newstyle
// handshake with GO, simple replies, any number of requests in flight. It
// exists so that a test can see each answer by itself, which the kernel and
// the library hide.
package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Wire numbers of the NBD protocol (doc/proto.md of the NBD project).
const (
	magicInit    = 0x4e42444d41474943
	magicOption  = 0x49484156454f5054
	magicReply   = 0x3e889045565a9
	magicRequest = 0x25609513
	magicAnswer  = 0x67446698

	optGo       = 7
	repAck      = 1
	repInfo     = 3
	repErrBit   = 1 << 31
	infoExport  = 0
	infoBlock   = 3
	flagFixed   = 1
	flagNoZeros = 2
)

// Commands and command flags.
const (
	CmdRead  = 0
	CmdWrite = 1
	CmdDisc  = 2
	CmdFlush = 3
	CmdTrim  = 4
	CmdZero  = 6

	FlagFUA    = 1 << 0
	FlagNoHole = 1 << 1
)

// handshakeTimeout bounds Dial.
const handshakeTimeout = 10 * time.Second

// replyMax bounds the text of an option reply, in bytes.
const replyMax = 64 << 10

// Refused is the server's answer to GO when it does not serve the export.
type Refused struct {
	Code uint32 // NBD_REP_ERR_*
	Text string
}

func (r *Refused) Error() string { return fmt.Sprintf("export refused (%#x): %s", r.Code, r.Text) }

// Client is one connection to one export. All methods may be called
// concurrently.
type Client struct {
	Size  int64
	Flags uint16 // transmission flags
	// BlockMin, BlockPreferred and BlockMax are what the server announced, or 0.
	BlockMin, BlockPreferred, BlockMax uint32

	conn net.Conn

	send sync.Mutex // one request on the wire at a time; guards w
	w    *bufio.Writer

	mu      sync.Mutex // guards below
	next    uint64
	waiting map[uint64]*call
	dead    error
}

type call struct {
	read []byte
	done func(error)
}

// Dial connects to addr and opens the export. A server that does not serve it
// gives a *Refused.
func Dial(addr, export string) (*Client, error) {
	conn, err := net.DialTimeout("tcp", addr, handshakeTimeout)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, w: bufio.NewWriterSize(conn, 128<<10), waiting: map[uint64]*call{}}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	r := bufio.NewReaderSize(conn, 128<<10)
	if err := c.handshake(r, export); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	go c.receive(r)
	return c, nil
}

func (c *Client) handshake(r *bufio.Reader, export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(r, hello[:]); err != nil {
		return fmt.Errorf("nbd greeting: %w", err)
	}
	if binary.BigEndian.Uint64(hello[:]) != magicInit || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return errors.New("not a newstyle NBD server")
	}
	out := binary.BigEndian.AppendUint32(nil, flagFixed|flagNoZeros)
	out = binary.BigEndian.AppendUint64(out, magicOption)
	out = binary.BigEndian.AppendUint32(out, optGo)
	out = binary.BigEndian.AppendUint32(out, uint32(4+len(export)+2+2))
	out = binary.BigEndian.AppendUint32(out, uint32(len(export)))
	out = append(out, export...)
	out = binary.BigEndian.AppendUint16(out, 1)
	out = binary.BigEndian.AppendUint16(out, infoBlock)
	if _, err := c.conn.Write(out); err != nil {
		return err
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return fmt.Errorf("nbd option reply: %w", err)
		}
		kind, n := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h[:]) != magicReply || n > replyMax {
			return errors.New("malformed NBD option reply")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind == repInfo:
			c.info(body)
		case kind&repErrBit != 0:
			return &Refused{Code: kind, Text: string(body)}
		}
	}
}

func (c *Client) info(b []byte) {
	if len(b) < 2 {
		return
	}
	switch kind := binary.BigEndian.Uint16(b); {
	case kind == infoExport && len(b) >= 12:
		c.Size = int64(binary.BigEndian.Uint64(b[2:]))
		c.Flags = binary.BigEndian.Uint16(b[10:])
	case kind == infoBlock && len(b) >= 14:
		c.BlockMin = binary.BigEndian.Uint32(b[2:])
		c.BlockPreferred = binary.BigEndian.Uint32(b[6:])
		c.BlockMax = binary.BigEndian.Uint32(b[10:])
	}
}

// Start sends one request and returns; done is called exactly once, on the
// receiver's goroutine or, when the connection is gone, on the caller's. p is
// the payload of a write (not kept) or the destination of a read (in use until
// done). n is the length in bytes for the other commands.
func (c *Client) Start(cmd, flags uint16, off int64, n int, p []byte, done func(error)) {
	k := &call{done: done}
	if cmd == CmdRead {
		k.read = p
	}
	c.send.Lock()
	c.mu.Lock()
	if c.dead != nil {
		err := c.dead
		c.mu.Unlock()
		c.send.Unlock()
		done(err)
		return
	}
	c.next++
	cookie := c.next
	c.waiting[cookie] = k
	c.mu.Unlock()

	var h [28]byte
	binary.BigEndian.PutUint32(h[0:], magicRequest)
	binary.BigEndian.PutUint16(h[4:], flags)
	binary.BigEndian.PutUint16(h[6:], cmd)
	binary.BigEndian.PutUint64(h[8:], cookie)
	binary.BigEndian.PutUint64(h[16:], uint64(off))
	binary.BigEndian.PutUint32(h[24:], uint32(n))
	c.w.Write(h[:])
	if cmd == CmdWrite {
		c.w.Write(p)
	}
	err := c.w.Flush()
	c.send.Unlock()
	if err != nil {
		c.fail(err)
	}
}

// receive hands answers out until the connection ends.
func (c *Client) receive(r *bufio.Reader) {
	for {
		var h [16]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			c.fail(fmt.Errorf("nbd connection: %w", err))
			return
		}
		if binary.BigEndian.Uint32(h[:]) != magicAnswer {
			c.fail(errors.New("malformed NBD answer"))
			return
		}
		code, cookie := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
		c.mu.Lock()
		k := c.waiting[cookie]
		c.mu.Unlock()
		if k == nil {
			c.fail(fmt.Errorf("answer to unknown request %d", cookie))
			return
		}
		var err error
		if code != 0 {
			err = fmt.Errorf("nbd: %w", syscall.Errno(code))
		} else if k.read != nil {
			if _, e := io.ReadFull(r, k.read); e != nil {
				c.fail(fmt.Errorf("nbd connection: %w", e))
				return
			}
		}
		c.mu.Lock()
		_, ours := c.waiting[cookie]
		delete(c.waiting, cookie)
		c.mu.Unlock()
		if ours {
			k.done(err)
		}
	}
}

// fail ends every request with err and closes the connection.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.dead == nil {
		c.dead = err
	}
	all := c.waiting
	c.waiting = map[uint64]*call{}
	c.mu.Unlock()
	c.conn.Close()
	for _, k := range all {
		k.done(err)
	}
}

// Err is the reason that the connection ended, or nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

func (c *Client) wait(cmd, flags uint16, off int64, n int, p []byte) error {
	done := make(chan error, 1)
	c.Start(cmd, flags, off, n, p, func(err error) { done <- err })
	return <-done
}

func (c *Client) ReadAt(p []byte, off int64) error  { return c.wait(CmdRead, 0, off, len(p), p) }
func (c *Client) WriteAt(p []byte, off int64) error { return c.wait(CmdWrite, 0, off, len(p), p) }
func (c *Client) WriteFUA(p []byte, off int64) error {
	return c.wait(CmdWrite, FlagFUA, off, len(p), p)
}
func (c *Client) Flush() error                { return c.wait(CmdFlush, 0, 0, 0, nil) }
func (c *Client) Trim(off int64, n int) error { return c.wait(CmdTrim, 0, off, n, nil) }
func (c *Client) Zero(off int64, n int) error { return c.wait(CmdZero, FlagNoHole, off, n, nil) }

// Close says goodbye and closes. Requests in flight end with an error.
func (c *Client) Close() error {
	var h [28]byte
	binary.BigEndian.PutUint32(h[0:], magicRequest)
	binary.BigEndian.PutUint16(h[6:], CmdDisc)
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	c.send.Lock()
	c.w.Write(h[:])
	c.w.Flush()
	c.send.Unlock()
	c.fail(net.ErrClosed)
	return nil
}

// Abort drops the connection as a dying client does.
func (c *Client) Abort() { c.fail(net.ErrClosed) }
