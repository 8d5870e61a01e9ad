package nbd

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Server serves NBD clients. Its methods may be called concurrently.
type Server struct {
	cfg    Config
	budget budget

	accepted, refused, malformed atomic.Uint64

	wg   sync.WaitGroup // connections
	stop atomic.Bool    // Shutdown or Close was called

	mu        sync.Mutex
	conns     map[*client]struct{}
	listeners map[net.Listener]struct{}
	sessions  map[string]int
	full      bool // the last newcomer was refused
}

// client is one open connection, as the server keeps it.
type client struct {
	nc    net.Conn
	peer  string
	since time.Time

	// Guarded by Server.mu. chosen is set when an export is open and the client
	// is about to hear of it: it is not evicted from then on. conn is set when
	// transmission begins.
	chosen bool
	conn   *conn
}

// Stats is a snapshot of a server's counters.
type Stats struct {
	Connections int            // open now
	Handshakes  int            // of these, negotiating
	Sessions    map[string]int // by export
	InFlight    int            // requests that are not answered, or whose answer is not sent
	BytesHeld   int64          // what they keep in memory, and will, for one that waits to be let in
	Accepted    uint64         // connections, ever
	Refused     uint64         // of these, closed because of ConnectionsMax
	Malformed   uint64         // of these, ended by input that breaks the protocol
}

var past = time.Unix(1, 0)

// NewServer returns a server that serves nothing yet. Kind Invalid names a
// setting that cannot work.
func NewServer(cfg Config) (*Server, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg:       cfg,
		budget:    budget{free: cfg.MemoryMax},
		conns:     map[*client]struct{}{},
		listeners: map[net.Listener]struct{}{},
		sessions:  map[string]int{},
	}, nil
}

// Serve accepts connections on l until Shutdown or Close, which give nil, or
// until l fails. It closes l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
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
			return fault.New(fault.Unavailable, "nbd.accept", l.Addr().String(), err)
		}
		// Out of file descriptors, or a client gone before it was accepted: both
		// pass, so the port is not given up.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.cfg.Log.Warn("cannot accept an nbd connection", "error", err, "retry_ms", delay.Milliseconds())
		time.Sleep(delay)
	}
}

// admit starts serving nc, or closes it.
func (s *Server) admit(nc net.Conn) {
	s.accepted.Add(1)
	c := &client{nc: nc, peer: peerOf(nc), since: time.Now()}
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
			s.cfg.Log.Warn("nbd connections are refused", "peer", c.peer, "connections_max", s.cfg.ConnectionsMax)
		}
		nc.Close()
		return
	}
	s.full = false
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go s.serve(c)
}

// evict closes the connection that negotiates longest, under mu, so that
// clients who say nothing cannot keep others out.
func (s *Server) evict() {
	var oldest *client
	for c := range s.conns {
		if !c.chosen && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	if oldest != nil {
		s.refused.Add(1)
		delete(s.conns, oldest)
		oldest.nc.Close()
	}
}

// choose tells that c is past negotiation; false if it was evicted meanwhile.
func (s *Server) choose(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, open := s.conns[c]
	c.chosen = open
	return open
}

// peerOf names the other end for people.
func peerOf(nc net.Conn) string {
	a := nc.RemoteAddr()
	if a == nil || a.String() == "" || a.String() == "@" {
		return "local"
	}
	return a.String()
}

// serve takes one connection through its whole life.
func (s *Server) serve(c *client) {
	defer s.wg.Done()
	err := s.converse(c)
	c.nc.Close()
	// What is told of a connection is told before it is counted, and both before
	// it is forgotten: who sees it in the statistics finds its line in the log.
	log := s.cfg.Log.With("peer", c.peer)
	switch {
	case err == nil, errors.Is(err, errAbort), errors.Is(err, io.EOF), errors.Is(err, errDrain):
	case fault.Is(err, fault.Invalid):
		log.Warn("nbd connection ended by malformed input", "error", err)
		s.malformed.Add(1)
	default:
		log.Info("nbd connection ended", "error", err)
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

func (s *Server) converse(c *client) error {
	n, err := negotiate(s, c)
	if err != nil {
		return err
	}
	c.nc.SetDeadline(time.Time{})
	conn := newConn(s, c.nc, n, c.peer)
	s.mu.Lock()
	c.conn = conn
	s.sessions[n.export]++
	s.mu.Unlock()
	if s.stop.Load() {
		c.nc.SetReadDeadline(past) // Shutdown may have come before the deadline was lifted
	}
	conn.log.Info("nbd session began", "size_bytes", conn.geo.Size, "block_bytes", conn.geo.BlockSize)
	err = conn.transmit()
	s.mu.Lock()
	if s.sessions[n.export]--; s.sessions[n.export] == 0 {
		delete(s.sessions, n.export)
	}
	s.mu.Unlock()
	conn.log.Info("nbd session ended")
	return err
}

// draining tells whether the server is shutting down.
func (s *Server) draining() bool { return s.stop.Load() }

// Shutdown stops accepting and taking up requests, lets what is in flight
// finish and be answered, and closes every connection. When ctx ends first, the
// rest is cut off and ctx's error returned. In either case every session is
// closed on return, unless the device still has operations of it when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.drain()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.cut()
	select {
	case <-done:
		return nil
	default:
		return ctx.Err()
	}
}

// Close cuts off every connection and returns when every session is closed,
// which is when the device has completed what it had been given.
func (s *Server) Close() error {
	s.drain()
	s.cut()
	s.wg.Wait()
	return nil
}

// drain stops listeners and makes readers end at their next wait. The flag is
// set first: a connection that lifts its deadline afterwards looks at it again.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.nc.SetReadDeadline(past)
	}
}

// cut closes every connection.
func (s *Server) cut() {
	s.mu.Lock()
	open := maps.Clone(s.conns)
	s.mu.Unlock()
	for c := range open {
		s.mu.Lock()
		conn := c.conn
		s.mu.Unlock()
		if conn != nil {
			conn.kill(errDrain)
		}
		c.nc.Close()
	}
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	st := Stats{
		Accepted:  s.accepted.Load(),
		Refused:   s.refused.Load(),
		Malformed: s.malformed.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Connections = len(s.conns)
	st.Sessions = maps.Clone(s.sessions)
	for c := range s.conns {
		if c.conn == nil {
			st.Handshakes++
			continue
		}
		st.InFlight += int(c.conn.pending.Load())
		st.BytesHeld += c.conn.held.Load()
	}
	return st
}
