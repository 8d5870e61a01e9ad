package edge

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"
)

// Owner is the protocol's side of a Stream.
type Owner interface {
	// Kick gets the device going with what it was given. The reader calls it
	// before it waits or sends.
	Kick()
	// Sent is called under the lock when output is sent, or never will be.
	Sent(Sent)
	// Stalled is the error for a client that took no output for the stall timeout.
	Stalled() error
}

// Sent sums up output that left.
type Sent struct {
	Bytes int // as queued
	Held  int // bytes that were to be released then
	Units int // answers
}

// Stream is a connection on which requests come in and answers go out.
//
// One goroutine, the reader, decodes input. While a further whole request is
// buffered, it goes on and leaves answers and kicks for later; before it waits for
// anything it calls Pause, and completions send for themselves from then on.
// Completions run on any goroutine and never block: what the socket does not take is
// left to the writer, a goroutine of the stream that is woken for that alone.
//
// Methods belong to the reader, or are called under the lock, or from anywhere, as
// the groups below say. The lock is the connection's: it guards whatever its owner
// says, too.
type Stream struct {
	conn   net.Conn // bytes of the protocol
	socket net.Conn // conn itself, or what is below TLS
	raw    syscall.RawConn
	owner  Owner
	stall  time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // to the writer; one fits
	dying  chan struct{} // closed by Kill
	ended  chan struct{} // closed when nothing is under way any more

	in   *Buffer // of the reader; [r, w) of its bytes is not decoded yet
	r, w int
	turn int

	own      *Buffer // of the reader: output that it gathers without the lock
	ownUnits int

	mu      sync.Mutex
	cond    sync.Cond // on mu
	waiting int
	hold    bool // the reader runs, and will send what is queued
	dead    bool
	why     error // of death
	output
}

// Start begins a stream on conn, which runs over socket: the same, or what is below TLS.
// rest is input that was read before. It has room for n bytes of data, at most
// StreamBytes, and is longer than rest. Output that the client does not take for
// stall ends it.
func (s *Stream) Start(owner Owner, conn, socket net.Conn, n int, rest []byte, stall time.Duration) {
	s.owner, s.conn, s.socket, s.stall = owner, conn, socket, stall
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wake, s.dying, s.ended = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	s.cond.L = &s.mu
	s.hold = true
	s.newInput(n, rest)
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	s.rawWrite = s.writeFD
	s.Go(s.writer)
}

// From anywhere.

// Context ends with the stream.
func (s *Stream) Context() context.Context { return s.ctx }

// Dying is closed by Kill.
func (s *Stream) Dying() <-chan struct{} { return s.dying }

// Ended is closed by Close, when nobody sends any more.
func (s *Stream) Ended() <-chan struct{} { return s.ended }

// Go runs f on a goroutine that Close waits for: f ends when Ended is closed.
func (s *Stream) Go(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// Lock and Unlock are the lock of the connection.
func (s *Stream) Lock() { s.mu.Lock() }

// Unlock is the end of Lock.
func (s *Stream) Unlock() { s.mu.Unlock() }

// Kill ends the connection now: what is under way completes unheard. The first
// reason counts.
func (s *Stream) Kill(why error) {
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return
	}
	s.dead, s.why = true, why
	s.cond.Broadcast()
	s.mu.Unlock()
	close(s.dying)
	s.cancel()
	s.socket.Close() // TLS would want to say goodbye first, and wait for it
}

// Close ends the stream and returns when its goroutines have ended. Nothing may be
// under way any more that would append to it.
func (s *Stream) Close() {
	s.mu.Lock()
	s.dead = true
	if s.flushing {
		s.socket.Close()
	}
	for s.flushing { // the last owner lets go at once
		s.Wait()
	}
	s.mu.Unlock()
	close(s.ended)
	s.cancel()
	s.conn.Close()
	s.wg.Wait()
	s.recycle()
	s.in.Put()
}

// Under the lock.

// Dead tells that nothing is sent any more.
func (s *Stream) Dead() bool { return s.dead }

// Why is the reason of Kill, or nil.
func (s *Stream) Why() error { return s.why }

// Stop says that nothing is appended from here on.
func (s *Stream) Stop() { s.dead = true }

// Wait waits until a completion has called UnlockAndSend, output was sent, or the stream
// is dead.
func (s *Stream) Wait() {
	s.waiting++
	s.cond.Wait()
	s.waiting--
}

// Of the reader.

// Input is what is not decoded yet. It is valid until the next Fill, ReadFull or Skip.
func (s *Stream) Input() []byte { return s.in.B[s.r:s.w] }

// Next takes n bytes of Input.
func (s *Stream) Next(n int) []byte {
	p := s.in.B[s.r : s.r+n]
	s.r += n
	return p
}

// newInput makes a buffer for n bytes of data that begins with rest.
func (s *Stream) newInput(n int, rest []byte) {
	b := GetBuffer(n)
	b.B = b.B[:cap(b.B)]
	s.r, s.w = 0, copy(b.B, rest)
	s.in = b
}

// Widen makes room for n bytes of data in Input, at most StreamBytes.
func (s *Stream) Widen(n int) {
	old := s.in
	s.newInput(n, s.Input())
	old.Put()
}

// Fill makes Input at least n bytes long, n at most its room. The error is the
// socket's.
func (s *Stream) Fill(n int) error {
	have := s.w - s.r
	if have >= n {
		return nil
	}
	if s.r > 0 && (have <= 4<<10 || s.r+n > len(s.in.B)) {
		copy(s.in.B, s.in.B[s.r:s.w])
		s.r, s.w = 0, have
	}
	s.Pause()
	for s.w-s.r < n {
		k, err := s.conn.Read(s.in.B[s.w:])
		s.w += k
		if err != nil && s.w-s.r < n {
			return err
		}
	}
	s.Resume()
	return nil
}

// ReadFull fills p, first from Input, then past it. The error is the socket's.
func (s *Stream) ReadFull(p []byte) error {
	n := copy(p, s.Input())
	s.r += n
	if n == len(p) {
		return nil
	}
	s.Pause()
	for n < len(p) {
		k, err := s.conn.Read(p[n:])
		n += k
		if err != nil && n < len(p) {
			return err
		}
	}
	s.Resume()
	return nil
}

// Skip passes over n bytes of input. The error is the socket's.
func (s *Stream) Skip(n int) error {
	for n > 0 {
		if err := s.Fill(1); err != nil {
			return err
		}
		k := min(n, s.w-s.r)
		s.r += k
		n -= k
	}
	return nil
}

// Pause is called before the reader waits for anything: the device must get
// going, and completions must send for themselves from now on.
func (s *Stream) Pause() {
	s.kick()
	s.mu.Lock()
	s.hold = false
	s.sendAndUnlock()
}

// Resume is called when the reader goes on.
func (s *Stream) Resume() {
	s.mu.Lock()
	s.hold = true
	s.mu.Unlock()
}

// Count notes that a request was taken up. After TurnMax of them what was put off
// is done.
func (s *Stream) Count() {
	if s.turn++; s.turn >= TurnMax {
		s.Turn()
	}
}

// Turn sends and kicks in the middle of a long run of requests.
func (s *Stream) Turn() {
	s.kick()
	s.mu.Lock()
	s.sendAndUnlock()
}

func (s *Stream) kick() {
	s.turn = 0
	s.owner.Kick()
}

// Await lets the reader wait while busy, which is called under the lock, or until the
// stream is dead, whose reason it returns.
func (s *Stream) Await(busy func() bool) error {
	s.Pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.dead && busy() {
		s.Wait()
	}
	s.hold = true
	return s.why
}

// Finish lets the reader wait while busy, which is called under the lock, and then
// until all output is sent, or until the stream is dead. The reader reads no more.
func (s *Stream) Finish(busy func() bool) {
	s.Pause()
	s.mu.Lock()
	for !s.dead && (busy() || s.bytes > 0) {
		if !s.flushing && s.take() {
			s.mu.Unlock()
			s.flush()
			s.mu.Lock()
			continue
		}
		s.Wait()
	}
	s.mu.Unlock()
}
