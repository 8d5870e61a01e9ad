package iscsi

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/edge"
)

// Server serves iSCSI initiators. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	budget   *edge.Budget
	conns    *edge.Server[*conn]
	sessions sessions
	denied   atomic.Uint64
}

// Stats is a snapshot of a server's counters.
type Stats struct {
	Connections int            // open now
	Logins      int            // of these, logging in
	Sessions    map[string]int // by target; "" for discovery
	InFlight    int            // commands under way
	BytesHeld   int64          // memory reserved for their data and unsent responses
	Accepted    uint64         // connections, ever
	Refused     uint64         // of these, closed because of ConnectionsMax
	Malformed   uint64         // of these, ended by input that breaks the protocol
	Denied      uint64         // of these, refused at login for want of the right or of proof
}

// NewServer returns a server that serves nothing yet. Kind Invalid names a
// setting that cannot work.
func NewServer(cfg Config) (*Server, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		budget:   edge.NewBudget(cfg.MemoryMax),
		sessions: sessions{byTSIH: map[uint16]*conn{}, byPort: map[port]*conn{}},
	}
	s.conns = edge.NewServer(edge.Config{Protocol: "iscsi", Log: cfg.Log, ConnectionsMax: cfg.ConnectionsMax}, s.serve)
	return s, nil
}

// Serve accepts connections on l until Shutdown or Close, which give nil, or
// until l fails. It closes l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error { return s.conns.Serve(l) }

// serve takes one connection through its whole life.
func (s *Server) serve(ec *edge.Conn[*conn]) error {
	c := newConn(s, ec)
	err := s.converse(ec, c)
	if fault.Is(err, fault.Denied) {
		c.log.Warn("iscsi login refused", "error", err)
		s.denied.Add(1)
		return nil
	}
	ec.Log = c.log
	return err
}

func (s *Server) converse(ec *edge.Conn[*conn], c *conn) error {
	err := c.negotiate(ec)
	if err != nil {
		c.Kill(err)
		c.end(err)
		s.sessions.leave(c)
		return err
	}
	ec.Begin(c)
	c.log = c.log.With("initiator", c.who.Initiator)
	if c.who.Discovery {
		c.log.Debug("iscsi discovery began")
	} else {
		c.log = c.log.With("target", c.who.Target)
		c.log.Info("iscsi session began", "tsih", c.tsih, "header_digest", c.digests.Header, "data_digest", c.digests.Data)
	}
	c.hear()
	err = c.serve()
	s.sessions.leave(c)
	if !c.who.Discovery {
		c.log.Info("iscsi session ended")
	}
	return err
}

// Shutdown stops accepting, asks clients to log out, and after LogoutTimeout
// lets what is in flight finish and be answered, and closes every connection. When ctx
// ends first, the rest is cut off and ctx's error returned. In either case every
// session is closed on return, unless the device still has operations of it when
// ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.conns.Stop()
	s.conns.HangUp()
	_, open := s.conns.Snapshot()
	for _, c := range open {
		if !c.who.Discovery {
			c.askLogout(s.cfg.LogoutTimeout)
		}
	}
	grace, cancel := context.WithTimeout(ctx, s.cfg.LogoutTimeout)
	defer cancel()
	if s.conns.Wait(grace) {
		return nil
	}
	return s.conns.Shutdown(ctx)
}

// Close cuts off every connection and returns when every session is closed,
// which is when the device has completed what it had been given.
func (s *Server) Close() error { return s.conns.Close() }

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	n, open := s.conns.Snapshot()
	st := Stats{
		Connections: n.Connections, Logins: n.Negotiating, Sessions: map[string]int{},
		Accepted: n.Accepted, Refused: n.Refused, Malformed: n.Malformed, Denied: s.denied.Load(),
	}
	for _, c := range open {
		st.Sessions[c.who.Target]++
		c.Lock()
		unsent, _ := c.Unsent()
		st.InFlight += len(c.tasks)
		st.BytesHeld += int64(c.held + unsent)
		c.Unlock()
	}
	return st
}
