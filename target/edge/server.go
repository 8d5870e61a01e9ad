package edge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// ErrDrain ends a connection because the server is shutting down.
var ErrDrain = fault.Newf(fault.Fenced, "serve", "", "the server is shutting down")

// Session is a connection past its negotiation.
type Session interface {
	// Kill ends it at once. It may be called from any goroutine.
	Kill(why error)
}

// Config tells a Server what it is for.
type Config struct {
	Protocol string // its name in log lines and errors
	Log      *slog.Logger
	// ConnectionsMax bounds open connections. At the limit a newcomer takes the
	// place of the connection that negotiates longest, or is refused.
	ConnectionsMax int
}

// Server accepts and keeps the connections of one protocol, of which a session is
// an S. Its methods may be called concurrently.
type Server[S Session] struct {
	cfg   Config
	serve func(*Conn[S]) error

	accepted, refused, malformed atomic.Uint64

	wg   sync.WaitGroup // connections
	stop atomic.Bool    // Stop was called
	over chan struct{}  // closed when nothing is left then

	mu        sync.Mutex
	conns     map[*Conn[S]]struct{}
	listeners map[net.Listener]struct{}
	full      bool // the last newcomer was refused
}

// Conn is one open connection, as the server keeps it.
type Conn[S Session] struct {
	Socket net.Conn
	Peer   string       // the other end, for people
	Log    *slog.Logger // names the peer; who serves the connection may have it name more

	srv   *Server[S]
	since time.Time

	// Guarded by Server.mu.
	chosen  bool // Choose said yes: it is not evicted from then on
	begun   bool
	session S // once begun
}

// Counts is a snapshot of a server's counters.
type Counts struct {
	Connections int    // open now
	Negotiating int    // of these, without a session
	Accepted    uint64 // connections, ever
	Refused     uint64 // of these, closed because of ConnectionsMax
	Malformed   uint64 // of these, ended by input that breaks the protocol
}

// NewServer returns a server that takes each connection through its life with
// serve, on a goroutine of its own. The socket is closed when serve returns. Its error
// says why the connection ended: nil, io.EOF or ErrDrain if there is nothing to tell,
// a fault of kind Invalid if the input broke the protocol.
func NewServer[S Session](cfg Config, serve func(*Conn[S]) error) *Server[S] {
	return &Server[S]{
		cfg:       cfg,
		serve:     serve,
		over:      make(chan struct{}),
		conns:     map[*Conn[S]]struct{}{},
		listeners: map[net.Listener]struct{}{},
	}
}

// Serve accepts connections on l until Stop, which gives nil, or until l fails.
// It closes l. It may be called for several listeners.
func (s *Server[S]) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.stop.Load() {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	var delay time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			delay = 0
			s.admit(nc)
			continue
		}
		if s.stop.Load() {
			return nil
		}
		var ne net.Error
		if !errors.As(err, &ne) || errors.Is(err, net.ErrClosed) {
			return fault.New(fault.Unavailable, s.cfg.Protocol+".accept", l.Addr().String(), err)
		}
		// Out of file descriptors, or a client gone before it was accepted: both
		// pass, so the port is not given up.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.cfg.Log.Warn("cannot accept an "+s.cfg.Protocol+" connection", "error", err, "retry_ms", delay.Milliseconds())
		time.Sleep(delay)
	}
}

// admit starts serving nc, or closes it.
func (s *Server[S]) admit(nc net.Conn) {
	s.accepted.Add(1)
	peer := peerOf(nc)
	c := &Conn[S]{Socket: nc, Peer: peer, Log: s.cfg.Log.With("peer", peer), srv: s, since: time.Now()}
	s.mu.Lock()
	if s.stop.Load() {
		s.mu.Unlock()
		nc.Close()
		return
	}
	if len(s.conns) >= s.cfg.ConnectionsMax {
		s.evict()
	}
	if len(s.conns) >= s.cfg.ConnectionsMax {
		first := !s.full
		s.full = true
		s.mu.Unlock()
		s.refused.Add(1)
		if first {
			c.Log.Warn(s.cfg.Protocol+" connections are refused", "connections_max", s.cfg.ConnectionsMax)
		}
		nc.Close()
		return
	}
	s.full = false
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go s.run(c)
}

// evict closes the connection that negotiates longest, under mu, so that
// clients who say nothing cannot keep others out.
func (s *Server[S]) evict() {
	var oldest *Conn[S]
	for c := range s.conns {
		if !c.chosen && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	if oldest != nil {
		s.refused.Add(1)
		delete(s.conns, oldest)
		oldest.Socket.Close()
	}
}

// peerOf names the other end for people.
func peerOf(nc net.Conn) string {
	a := nc.RemoteAddr()
	if a == nil || a.String() == "" || a.String() == "@" {
		return "local"
	}
	return a.String()
}

// run takes one connection through its whole life.
func (s *Server[S]) run(c *Conn[S]) {
	defer s.wg.Done()
	err := s.serve(c)
	c.Socket.Close()
	// What is told of a connection is told before it is counted, and both before
	// it is forgotten: who sees it in the statistics finds its line in the log.
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, ErrDrain):
	case fault.Is(err, fault.Invalid):
		c.Log.Warn(s.cfg.Protocol+" connection ended by malformed input", "error", err)
		s.malformed.Add(1)
	default:
		c.Log.Info(s.cfg.Protocol+" connection ended", "error", err)
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Choose tells that c is about to get its session, which is past negotiation.
// It reports false if c was evicted meanwhile.
func (c *Conn[S]) Choose() bool {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	_, open := c.srv.conns[c]
	c.chosen = open
	return open
}

// Begin makes the session of c known. Deadlines of its negotiation must be lifted
// before: a server that was stopped sets its own.
func (c *Conn[S]) Begin(session S) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.session, c.begun = session, true
	if c.srv.stop.Load() {
		c.Socket.SetReadDeadline(Past)
	}
}

// Stopping tells whether the server is shutting down.
func (s *Server[S]) Stopping() bool { return s.stop.Load() }

// EndOfInput explains an error of reading: ErrDrain if the server is shutting down, io.EOF
// if the client left between two requests, io.ErrUnexpectedEOF if it left within one.
func (s *Server[S]) EndOfInput(err error, between bool) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && s.Stopping():
		return ErrDrain
	case errors.Is(err, io.EOF) && between:
		return io.EOF
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// Stop closes the listeners. Connections go on.
func (s *Server[S]) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop.Swap(true) {
		return
	}
	for l := range s.listeners {
		l.Close()
	}
	go func() {
		s.wg.Wait()
		close(s.over)
	}()
}

// HangUp closes connections that negotiate.
func (s *Server[S]) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if !c.chosen {
			c.Socket.Close()
		}
	}
}

// Drain makes readers end at their next wait. It comes after Stop: whoever sets
// a deadline afterwards looks at Stopping again.
func (s *Server[S]) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Socket.SetReadDeadline(Past)
	}
}

// Wait waits until every connection has ended, after Stop, and reports false
// when ctx ended first.
func (s *Server[S]) Wait(ctx context.Context) bool {
	select {
	case <-s.over:
		return true
	case <-ctx.Done():
		return false
	}
}

// Shutdown stops, drains and waits. When ctx ends first, the rest is cut off and
// ctx's error returned. In either case every connection has ended on return, unless
// its device still has operations of it when ctx ends.
func (s *Server[S]) Shutdown(ctx context.Context) error {
	s.Stop()
	s.Drain()
	if s.Wait(ctx) {
		return nil
	}
	s.cut()
	select {
	case <-s.over:
		return nil
	default:
		return ctx.Err()
	}
}

// Close cuts off every connection and returns when all have ended, which is
// when the device has completed what it had been given.
func (s *Server[S]) Close() error {
	s.Stop()
	s.Drain()
	s.cut()
	<-s.over
	return nil
}

// cut closes every connection.
func (s *Server[S]) cut() {
	_, open := s.Snapshot()
	for _, c := range open {
		c.Kill(ErrDrain)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Socket.Close()
	}
}

// Snapshot returns the counters and the open sessions, in no order.
func (s *Server[S]) Snapshot() (Counts, []S) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := Counts{
		Connections: len(s.conns), Accepted: s.accepted.Load(), Refused: s.refused.Load(), Malformed: s.malformed.Load(),
	}
	var open []S
	for c := range s.conns {
		if c.begun {
			open = append(open, c.session)
		} else {
			n.Negotiating++
		}
	}
	return n, open
}
