package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
)

// Extent is one stretch of a BLOCK_STATUS answer.
type Extent struct {
	Length int64 // bytes
	State  uint32
}

// Failure is the server's answer to a request that failed.
type Failure struct {
	Errno syscall.Errno
	Text  string // for people, may be empty
	// At is the offset of the failure in bytes, or -1 where the server names none.
	At int64
}

func (f *Failure) Error() string { return fmt.Sprintf("nbd: %v: %s", f.Errno, f.Text) }

// Unwrap gives the errno.
func (f *Failure) Unwrap() error { return f.Errno }

// call is a request that is not answered.
type call struct {
	cmd, flags uint16
	off, n     int64
	read       []byte
	spans      [][2]int64 // of read, as they came
	status     map[uint32][]Extent
	failed     *Failure
	done       func(error)
}

// Start sends one request and returns; done is called exactly once, on the
// receiver's goroutine or, when the connection is gone, on the caller's. p is
// the payload of a write (not kept) or the destination of a read (in use until
// done). n is the length in bytes for the other commands.
func (c *Client) Start(cmd, flags uint16, off int64, n int, p []byte, done func(error)) {
	k := &call{cmd: cmd, flags: flags, off: off, n: int64(n), done: done}
	var payload []byte
	switch cmd {
	case CmdRead:
		k.read = p
	case CmdWrite:
		payload = p
		if c.Style == Extended {
			flags |= FlagPayloadLen
		}
	}
	c.start(k, flags, n, payload)
}

// start sends k with a length of n in its header.
func (c *Client) start(k *call, flags uint16, n int, payload []byte) {
	c.send.Lock()
	c.mu.Lock()
	if c.dead != nil {
		err := c.dead
		c.mu.Unlock()
		c.send.Unlock()
		k.done(err)
		return
	}
	c.next++
	cookie := c.next
	c.waiting[cookie] = k
	c.mu.Unlock()
	c.w.Write(c.header(k.cmd, flags, cookie, k.off, n))
	c.w.Write(payload)
	err := c.w.Flush()
	c.send.Unlock()
	if err != nil {
		c.conn.Close() // and the receiver ends k with all others
	}
}

func (c *Client) header(cmd, flags uint16, cookie uint64, off int64, n int) []byte {
	h := make([]byte, 0, 32)
	if c.Style == Extended {
		h = binary.BigEndian.AppendUint32(h, magicExtended)
	} else {
		h = binary.BigEndian.AppendUint32(h, magicRequest)
	}
	h = binary.BigEndian.AppendUint16(h, flags)
	h = binary.BigEndian.AppendUint16(h, cmd)
	h = binary.BigEndian.AppendUint64(h, cookie)
	h = binary.BigEndian.AppendUint64(h, uint64(off))
	if c.Style == Extended {
		return binary.BigEndian.AppendUint64(h, uint64(n))
	}
	return binary.BigEndian.AppendUint32(h, uint32(n))
}

// BlockStatus asks for the state of [off, off+n) in the contexts with these
// ids, of which none means all; some need Extended. one asks for one extent each.
func (c *Client) BlockStatus(off int64, n int, one bool, ids ...uint32) (map[uint32][]Extent, error) {
	done := make(chan error, 1)
	k := &call{cmd: CmdBlockStatus, off: off, n: int64(n), status: map[uint32][]Extent{}, done: func(err error) { done <- err }}
	flags, length := uint16(0), n
	var payload []byte
	if one {
		flags |= FlagReqOne
	}
	if len(ids) > 0 {
		payload = binary.BigEndian.AppendUint64(nil, uint64(n))
		for _, id := range ids {
			payload = binary.BigEndian.AppendUint32(payload, id)
		}
		flags, length = flags|FlagPayloadLen, len(payload)
	}
	k.flags = flags
	c.start(k, flags, length, payload)
	return k.status, <-done
}

// Holes is the number of holes in all answers so far.
func (c *Client) Holes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holes
}

// receive hands answers out until the connection ends.
func (c *Client) receive(r *bufio.Reader) {
	defer close(c.over)
	for {
		if err := c.answer(r); err != nil {
			c.mu.Lock()
			lost := c.lost
			c.mu.Unlock()
			if lost != nil {
				lost()
			}
			c.fail(fmt.Errorf("nbd connection: %w", err))
			return
		}
	}
}

// answer reads one simple reply or one chunk.
func (c *Client) answer(r *bufio.Reader) error {
	var h [32]byte
	if _, err := io.ReadFull(r, h[:16]); err != nil {
		return err
	}
	magic, cookie := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint64(h[8:])
	c.mu.Lock()
	k := c.waiting[cookie]
	c.mu.Unlock()
	if k == nil {
		return fmt.Errorf("answer to unknown request %d", cookie)
	}
	if magic == magicAnswer && c.Style != Extended {
		if k.read != nil && c.Style != Simple {
			return errors.New("a simple reply to a read")
		}
		if code := binary.BigEndian.Uint32(h[4:]); code != 0 {
			k.failed = &Failure{Errno: syscall.Errno(code), At: -1}
		} else if k.read != nil {
			if _, err := io.ReadFull(r, k.read); err != nil {
				return err
			}
			k.spans = [][2]int64{{k.off, k.off + k.n}}
		}
		return c.end(cookie, k)
	}
	var length uint64
	switch {
	case magic == magicStructured && c.Style == Structured:
		if _, err := io.ReadFull(r, h[16:20]); err != nil {
			return err
		}
		length = uint64(binary.BigEndian.Uint32(h[16:]))
	case magic == magicExtAnswer && c.Style == Extended:
		if _, err := io.ReadFull(r, h[16:]); err != nil {
			return err
		}
		if off := binary.BigEndian.Uint64(h[16:]); off != uint64(k.off) {
			return fmt.Errorf("a chunk of offset %d to a request of offset %d", off, k.off)
		}
		length = binary.BigEndian.Uint64(h[24:])
	default:
		return fmt.Errorf("malformed answer, magic %#x", magic)
	}
	flags, kind := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:])
	if flags&^1 != 0 {
		return fmt.Errorf("a chunk with flags %#x", flags)
	}
	if err := c.chunk(r, k, kind, length, flags&1 != 0); err != nil {
		return err
	}
	if flags&1 != 0 {
		return c.end(cookie, k)
	}
	return nil
}

// Types of chunks.
const (
	typeNone        = 0
	typeData        = 1
	typeHole        = 2
	typeStatus      = 5
	typeStatusExt   = 6
	typeError       = 1<<15 + 1
	typeErrorOffset = 1<<15 + 2
)

// chunkMax bounds a chunk that is read as a whole, in bytes.
const chunkMax = 16 << 20

// chunk reads the length bytes of one chunk.
func (c *Client) chunk(r *bufio.Reader, k *call, kind uint16, length uint64, done bool) error {
	if kind == typeData && length > 8 && k.read != nil {
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		p, err := k.span(binary.BigEndian.Uint64(b[:]), length-8)
		if err == nil {
			_, err = io.ReadFull(r, p)
		}
		return err
	}
	if length > chunkMax {
		return fmt.Errorf("a chunk of type %d with %d bytes", kind, length)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	switch {
	case kind == typeNone && length == 0 && done:
		return nil
	case kind == typeHole && length == 12 && k.read != nil:
		p, err := k.span(binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:])))
		clear(p)
		c.mu.Lock()
		c.holes++
		c.mu.Unlock()
		return err
	case kind == typeStatus && c.Style == Structured && k.status != nil && length >= 12 && length%8 == 4:
		return k.extents(binary.BigEndian.Uint32(b), b[4:], 4)
	case kind == typeStatusExt && c.Style == Extended && k.status != nil && length >= 24 && length%16 == 8:
		if binary.BigEndian.Uint32(b[4:]) != uint32(length/16) {
			return errors.New("a count of descriptors that is not theirs")
		}
		return k.extents(binary.BigEndian.Uint32(b), b[8:], 8)
	case (kind == typeError || kind == typeErrorOffset) && length >= 6:
		return k.fault(kind, b)
	}
	return fmt.Errorf("a chunk of type %d with %d bytes to command %d", kind, length, k.cmd)
}

// span is the part of a read's destination that a chunk is about.
func (k *call) span(off, n uint64) ([]byte, error) {
	if off < uint64(k.off) || n == 0 || n > uint64(k.n) || off-uint64(k.off) > uint64(k.n)-n {
		return nil, fmt.Errorf("a chunk of [%d, +%d) in a read of [%d, +%d)", off, n, k.off, k.n)
	}
	for _, s := range k.spans {
		if int64(off) < s[1] && s[0] < int64(off+n) {
			return nil, fmt.Errorf("chunks overlap at %d", off)
		}
	}
	k.spans = append(k.spans, [2]int64{int64(off), int64(off + n)})
	at := int64(off) - k.off
	return k.read[at : at+int64(n)], nil
}

// extents reads descriptors whose numbers have size bytes.
func (k *call) extents(id uint32, b []byte, size int) error {
	if _, twice := k.status[id]; twice {
		return fmt.Errorf("context %d is answered twice", id)
	}
	sum := int64(0)
	for ; len(b) > 0; b = b[2*size:] {
		e := Extent{int64(binary.BigEndian.Uint32(b)), 0}
		if size == 8 {
			e.Length = int64(binary.BigEndian.Uint64(b))
		}
		e.State = binary.BigEndian.Uint32(b[2*size-4:])
		if e.Length <= 0 || sum >= k.n {
			return fmt.Errorf("extent %d of context %d has %d bytes", len(k.status[id]), id, e.Length)
		}
		sum += e.Length
		k.status[id] = append(k.status[id], e)
	}
	if k.flags&FlagReqOne != 0 && (len(k.status[id]) != 1 || sum > k.n) {
		return fmt.Errorf("REQ_ONE of %d bytes is answered with %d extents of %d", k.n, len(k.status[id]), sum)
	}
	return nil
}

// fault reads an error chunk.
func (k *call) fault(kind uint16, b []byte) error {
	f := &Failure{Errno: syscall.Errno(binary.BigEndian.Uint32(b)), At: -1}
	text := b[6:]
	n := int(binary.BigEndian.Uint16(b[4:]))
	if f.Errno == 0 || n > len(text) {
		return errors.New("a malformed error chunk")
	}
	f.Text, text = string(text[:n]), text[n:]
	if kind == typeErrorOffset {
		if len(text) != 8 {
			return errors.New("a malformed error chunk")
		}
		f.At = int64(binary.BigEndian.Uint64(text))
		if f.At < k.off || f.At >= k.off+k.n {
			return fmt.Errorf("an error at %d in [%d, +%d)", f.At, k.off, k.n)
		}
	}
	k.failed = f
	return nil
}

// end gives the answer of a request that is complete.
func (c *Client) end(cookie uint64, k *call) error {
	if k.failed == nil && k.read != nil {
		sum := int64(0)
		for _, s := range k.spans {
			sum += s[1] - s[0]
		}
		if sum != k.n {
			return fmt.Errorf("a read of %d bytes is answered with %d", k.n, sum)
		}
		if k.flags&FlagDF != 0 && len(k.spans) != 1 {
			return fmt.Errorf("a read with DF is answered with %d pieces", len(k.spans))
		}
	}
	c.mu.Lock()
	_, ours := c.waiting[cookie]
	delete(c.waiting, cookie)
	c.mu.Unlock()
	if ours {
		var err error
		if k.failed != nil {
			err = k.failed
		}
		k.done(err)
	}
	return nil
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

// LocalAddr is this end of the connection.
func (c *Client) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// Selected lists the names of the contexts that the server selected, sorted.
func (c *Client) Selected() []string {
	var names []string
	for n := range c.Contexts {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
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

// Cache asks the server to have [off, off+n) at hand.
func (c *Client) Cache(off int64, n int) error { return c.wait(CmdCache, 0, off, n, nil) }

// Close says goodbye and closes. Requests in flight end with an error.
func (c *Client) Close() error {
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	c.send.Lock()
	c.w.Write(c.header(CmdDisc, 0, 0, 0, 0))
	c.w.Flush()
	c.send.Unlock()
	c.fail(net.ErrClosed)
	return nil
}

// Abort drops the connection as a dying client does.
func (c *Client) Abort() { c.fail(net.ErrClosed) }
