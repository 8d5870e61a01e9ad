package edge

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// Sending. Whoever sets flushing under the lock owns the socket's write side and
// sending, until it finds nothing more to send, or hands both to the writer because
// the socket is full. The reader and completions only ever try to write; the writer
// alone waits.

// chunk is a run of output.
type chunk struct {
	p    []byte  // what is not sent of it yet
	buf  *Buffer // given back when p is sent; nil if it has further chunks
	sent Sent    // to account for then
}

// iovMax is how many chunks go into one system call.
const iovMax = 64

// smallMax is the longest gathered output that is copied behind the reader's own to
// spare a chunk, in bytes.
const smallMax = 4 << 10

// output is what a stream has to send. Guarded by its lock, except for the
// second part, which belongs to whoever set flushing.
type output struct {
	tail      *Buffer // gathers short answers
	from      int     // what of tail is not in queue yet begins here
	tailUnits int
	queue     []chunk
	bytes     int // queued, gathered or being sent
	units     int // the same in answers

	flushing bool // somebody owns what follows
	handed   bool // it is the writer, once it wakes
	called   bool // a wake is on its way
	sending  []chunk
	done     Sent // since it was last accounted for
	iov      [iovMax]syscall.Iovec
	rawN     int
	rawErr   error
	rawWrite func(uintptr) bool // writeFD, bound
}

// Under the lock.

// Unsent is how much output waits to be sent, in bytes and in answers.
func (s *Stream) Unsent() (bytes, units int) { return s.bytes, s.units }

// Room appends n bytes, at most StreamBytes, for the caller to fill before it unlocks.
func (s *Stream) Room(n int) []byte {
	if s.tail != nil && s.tail.Left() < n {
		s.retire()
	}
	if s.tail == nil {
		s.tail, s.from = GetBuffer(StreamBytes), 0
	}
	at := len(s.tail.B)
	s.tail.B = s.tail.B[:at+n]
	s.bytes += n
	return s.tail.B[at : at+n : at+n]
}

// Refer appends p without copying. When it is sent, buf, unless nil, is given back,
// and held counts in Sent.
func (s *Stream) Refer(p []byte, buf *Buffer, held int) {
	if s.tail != nil && len(s.tail.B) > s.from {
		s.enqueue(s.tail.B[s.from:], nil, s.tailUnits)
		s.from, s.tailUnits = len(s.tail.B), 0
	}
	s.queue = append(s.queue, chunk{p: p, buf: buf, sent: Sent{Bytes: len(p), Held: held}})
	s.bytes += len(p)
}

// End notes that an answer is complete.
func (s *Stream) End() {
	s.units++
	if n := len(s.queue); n > 0 && (s.tail == nil || len(s.tail.B) == s.from) {
		s.queue[n-1].sent.Units++
		return
	}
	s.tailUnits++
}

// retire ends the use of the gathering buffer.
func (s *Stream) retire() {
	if s.tail == nil {
		return
	}
	s.enqueue(s.tail.B[s.from:], s.tail, s.tailUnits)
	s.tail, s.tailUnits = nil, 0
}

func (s *Stream) enqueue(p []byte, buf *Buffer, units int) {
	s.queue = append(s.queue, chunk{p: p, buf: buf, sent: Sent{Bytes: len(p), Units: units}})
}

// UnlockAndSend is called, under the lock, after answers were appended; idle tells that
// nothing else is under way. It unlocks.
//
// When idle, the answer goes out here and now: that is the shortest way for a
// shallow queue. Otherwise completions tend to come in bursts, and the writer is woken
// once for all of them.
func (s *Stream) UnlockAndSend(idle bool) {
	if s.waiting > 0 {
		s.cond.Broadcast()
	}
	flush := false
	switch {
	case s.hold || s.flushing: // the reader, or who flushes, comes to it
	case idle || s.dead || s.units >= TurnMax:
		flush = s.take()
	default:
		s.callWriter()
	}
	s.mu.Unlock()
	if flush {
		s.flush()
	}
}

// callWriter wakes the writer.
func (s *Stream) callWriter() {
	if !s.called {
		s.called = true
		s.wake <- struct{}{} // room for one, and called says that it is empty
	}
}

// take moves everything queued to sending and reports whether there is something;
// the caller then owns flushing.
func (s *Stream) take() bool {
	s.retire()
	s.flushing = len(s.queue) > 0
	s.sending, s.queue = s.queue, s.sending[:0]
	return s.flushing
}

// account takes note of what was sent.
func (s *Stream) account() {
	s.bytes -= s.done.Bytes
	s.units -= s.done.Units
	s.owner.Sent(s.done)
	s.done = Sent{}
	if s.waiting > 0 {
		s.cond.Broadcast()
	}
}

// push queues what the reader gathered for itself.
func (s *Stream) push() {
	b := s.own
	if b == nil || len(b.B) == 0 {
		return
	}
	s.own = nil
	s.bytes += len(b.B)
	if t := s.tail; t != nil && s.from == 0 && len(t.B) <= smallMax && len(t.B) <= b.Left() {
		b.B = append(b.B, t.B...)
		s.ownUnits += s.tailUnits
		s.units -= s.tailUnits
		s.tail, s.tailUnits = nil, 0
		t.Put()
	}
	s.retire()
	s.enqueue(b.B, b, s.ownUnits)
	s.units += s.ownUnits
	s.ownUnits = 0
}

func (s *Stream) sendAndUnlock() {
	s.push()
	flush := !s.flushing && s.take()
	s.mu.Unlock()
	if flush {
		s.flush()
	}
}

// recycle gives buffers back once nobody else is left.
func (s *Stream) recycle() {
	s.retire()
	for i := range s.queue {
		s.spent(&s.queue[i])
	}
	s.queue = nil
	if s.own != nil {
		s.own.Put()
		s.own = nil
	}
}

// Of the reader.

// Own is a buffer in which the reader gathers answers of its own without the lock,
// with room for n bytes, at most StreamBytes. The reader appends to it and calls
// EndOwn; what it has not appended before its next Pause or Turn does not exist.
func (s *Stream) Own(n int) *Buffer {
	if s.own != nil && s.own.Left() < n {
		s.Turn()
	}
	if s.own == nil {
		s.own = GetBuffer(StreamBytes)
	}
	return s.own
}

// EndOwn notes that an answer in Own is complete.
func (s *Stream) EndOwn() { s.ownUnits++ }

// Of who owns flushing, without the lock.

// flush sends until there is nothing left, or leaves the rest to the writer. It
// never blocks.
func (s *Stream) flush() {
	for {
		full := s.try()
		s.mu.Lock()
		s.account()
		if full {
			s.handed = true
			s.callWriter()
			s.mu.Unlock()
			return
		}
		more := s.take()
		s.mu.Unlock()
		if !more {
			return
		}
	}
}

// try writes sending as far as the socket takes it and reports whether it is full.
func (s *Stream) try() (full bool) {
	for {
		s.advance(0) // chunks without bytes
		if len(s.sending) == 0 {
			return false
		}
		n, err := s.tryWrite()
		if err != nil {
			s.Kill(err)
			s.drop()
			return false
		}
		if n == 0 {
			return true
		}
		s.advance(n)
	}
}

// advance takes n sent bytes off sending.
func (s *Stream) advance(n int) {
	i := 0
	for ; i < len(s.sending); i++ {
		k := &s.sending[i]
		if n < len(k.p) {
			k.p = k.p[n:]
			break
		}
		n -= len(k.p)
		s.spent(k)
	}
	rest := copy(s.sending, s.sending[i:])
	clear(s.sending[rest:])
	s.sending = s.sending[:rest]
}

// spent is called when k is sent or never will be.
func (s *Stream) spent(k *chunk) {
	s.done.Bytes += k.sent.Bytes
	s.done.Held += k.sent.Held
	s.done.Units += k.sent.Units
	if k.buf != nil {
		k.buf.Put()
	}
}

// drop forgets sending.
func (s *Stream) drop() {
	for i := range s.sending {
		s.spent(&s.sending[i])
	}
	clear(s.sending)
	s.sending = s.sending[:0]
}

// tryWrite writes what the socket takes without waiting: 0 when it is full, or
// when it cannot be written to in this way.
func (s *Stream) tryWrite() (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.rawN, s.rawErr = 0, nil
	err := s.raw.Write(s.rawWrite)
	if err == nil {
		err = s.rawErr
	}
	return s.rawN, err
}

// writeFD is one attempt; true tells the poller not to wait for another.
func (s *Stream) writeFD(fd uintptr) bool {
	for {
		n, err := s.writeOnce(fd)
		switch err {
		case nil:
			s.rawN = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			s.rawErr = err
		}
		return true
	}
}

// writeOnce is one system call. The race detector takes a plain write for an order
// between the two ends of a connection, which a vector is not to it.
func (s *Stream) writeOnce(fd uintptr) (int, error) {
	if len(s.sending) == 1 {
		return syscall.Write(int(fd), s.sending[0].p)
	}
	n := 0
	for i := range s.sending {
		if p := s.sending[i].p; len(p) > 0 {
			s.iov[n].Base = unsafe.SliceData(p)
			s.iov[n].SetLen(len(p))
			if n++; n == iovMax {
				break
			}
		}
	}
	w, _, errno := syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.iov[0])), uintptr(n))
	clear(s.iov[:n])
	if errno != 0 {
		return 0, errno
	}
	return int(w), nil
}

// writer waits where nobody else may. It ends when ended is closed.
func (s *Stream) writer() {
	for {
		select {
		case <-s.wake:
		case <-s.ended:
			return
		}
		s.mu.Lock()
		s.called = false
		mine := s.handed
		s.handed = false
		if !mine && !s.flushing {
			mine = s.take()
		}
		s.mu.Unlock()
		for mine {
			if s.try() {
				s.await()
			}
			s.mu.Lock()
			s.account()
			if len(s.sending) == 0 {
				mine = s.take()
			}
			s.mu.Unlock()
		}
	}
}

// await writes the first chunk of sending, waiting for the client as long as the
// stall timeout.
func (s *Stream) await() {
	p := s.sending[0].p
	s.conn.SetWriteDeadline(time.Now().Add(s.stall))
	n, err := s.conn.Write(p)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = s.owner.Stalled()
		}
		s.Kill(err)
		s.drop()
		return
	}
	s.advance(n)
	s.conn.SetWriteDeadline(time.Time{})
}
