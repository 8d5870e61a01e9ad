package nbd

import (
	"context"
	"net"
	"time"

	"github.com/gabion-storage/gabion/target/edge"
)

// Server serves NBD clients. Its methods may be called concurrently.
type Server struct {
	cfg    Config
	budget *edge.Budget
	conns  *edge.Server[*conn]
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

// NewServer returns a server that serves nothing yet. Kind Invalid names a
// setting that cannot work.
func NewServer(cfg Config) (*Server, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, budget: edge.NewBudget(cfg.MemoryMax)}
	s.conns = edge.NewServer(edge.Config{Protocol: "nbd", Log: cfg.Log, ConnectionsMax: cfg.ConnectionsMax}, s.serve)
	return s, nil
}

// Serve accepts connections on l until Shutdown or Close, which give nil, or
// until l fails. It closes l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error { return s.conns.Serve(l) }

// serve takes one connection through its whole life.
func (s *Server) serve(ec *edge.Conn[*conn]) error {
	n, err := negotiate(s, ec)
	if err != nil || n == nil {
		return err
	}
	ec.Socket.SetDeadline(time.Time{})
	c := newConn(s, ec, n)
	ec.Begin(c)
	c.log.Info("nbd session began", "size_bytes", c.geo.Size, "block_bytes", c.geo.BlockSize)
	err = c.transmit()
	c.log.Info("nbd session ended")
	return err
}

// Shutdown stops accepting and taking up requests, lets what is in flight
// finish and be answered, and closes every connection. When ctx ends first, the
// rest is cut off and ctx's error returned. In either case every session is
// closed on return, unless the device still has operations of it when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return s.conns.Shutdown(ctx) }

// Close cuts off every connection and returns when every session is closed,
// which is when the device has completed what it had been given.
func (s *Server) Close() error { return s.conns.Close() }

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	n, open := s.conns.Snapshot()
	st := Stats{
		Connections: n.Connections, Handshakes: n.Negotiating, Sessions: map[string]int{},
		Accepted: n.Accepted, Refused: n.Refused, Malformed: n.Malformed,
	}
	for _, c := range open {
		st.Sessions[c.export]++
		st.InFlight += int(c.pending.Load())
		st.BytesHeld += c.held.Load()
	}
	return st
}
