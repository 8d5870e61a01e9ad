package iscsi

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
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// Server serves iSCSI initiators. Its methods may be called concurrently.
type Server struct {
	cfg    Config
	budget atomic.Int64 // bytes that are left of MemoryMax

	accepted, refused, malformed, denied atomic.Uint64

	wg   sync.WaitGroup // connections
	stop atomic.Bool    // Shutdown or Close was called

	mu        sync.Mutex
	conns     map[*client]struct{}
	listeners map[net.Listener]struct{}
	sessions  map[uint16]*conn // by TSIH
	ports     map[port]*conn   // normal sessions, by initiator port and target
	lastTSIH  uint16
	full      bool // the last newcomer was refused
}

// port names the two ends of a session, which there can be one of (section 4.4.1).
type port struct {
	initiator, target string
	isid              pdu.ISID
}

func (c *conn) port() port { return port{c.who.Initiator, c.who.Target, c.who.ISID} }

// client is one open connection, as the server keeps it.
type client struct {
	nc    net.Conn
	peer  string
	since time.Time

	// Guarded by Server.mu. chosen is set when the login is about to succeed:
	// it is not evicted from then on. conn is set when the session is open.
	chosen bool
	conn   *conn
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

var past = time.Unix(1, 0)

// NewServer returns a server that serves nothing yet. Kind Invalid names a
// setting that cannot work.
func NewServer(cfg Config) (*Server, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		conns:     map[*client]struct{}{},
		listeners: map[net.Listener]struct{}{},
		sessions:  map[uint16]*conn{},
		ports:     map[port]*conn{},
	}
	s.budget.Store(cfg.MemoryMax)
	return s, nil
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
			return fault.New(fault.Unavailable, "iscsi.accept", l.Addr().String(), err)
		}
		// Out of file descriptors, or a client gone before it was accepted: both
		// pass, so the port is not given up.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.cfg.Log.Warn("cannot accept an iscsi connection", "error", err, "retry_ms", delay.Milliseconds())
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
			s.cfg.Log.Warn("iscsi connections are refused", "peer", c.peer, "connections_max", s.cfg.ConnectionsMax)
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

// evict closes the connection that logs in longest, under mu, so that clients
// who say nothing cannot keep others out.
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

// choose tells that c is past its login; false if it was evicted meanwhile.
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
func (s *Server) serve(cl *client) {
	defer s.wg.Done()
	c := newConn(s, cl.nc, cl.peer)
	c.wg.Add(1)
	go c.writer()
	err := s.converse(cl, c)
	cl.nc.Close()
	// What is told of a connection is told before it is counted, and both before
	// it is forgotten: who sees it in the statistics finds its line in the log.
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, errDrain):
	case fault.Is(err, fault.Invalid):
		c.log.Warn("iscsi connection ended by malformed input", "error", err)
		s.malformed.Add(1)
	case fault.Is(err, fault.Denied):
		c.log.Warn("iscsi login refused", "error", err)
		s.denied.Add(1)
	default:
		c.log.Info("iscsi connection ended", "error", err)
	}
	s.mu.Lock()
	delete(s.conns, cl)
	s.mu.Unlock()
}

func (s *Server) converse(cl *client, c *conn) error {
	err := c.negotiate(cl)
	if err != nil {
		c.kill(err)
		s.leave(c, c.end(err))
		return err
	}
	s.mu.Lock()
	cl.conn = c
	s.mu.Unlock()
	if s.stop.Load() {
		cl.nc.SetReadDeadline(past) // Shutdown may have come before the deadline was lifted
	}
	c.log = c.log.With("initiator", c.who.Initiator)
	if c.who.Discovery {
		c.log.Debug("iscsi discovery began")
	} else {
		c.log = c.log.With("target", c.who.Target)
		c.log.Info("iscsi session began", "tsih", c.tsih, "header_digest", c.digests.Header, "data_digest", c.digests.Data)
	}
	c.heard.Store(time.Now().UnixNano())
	err = c.serve()
	s.leave(c, err)
	if !c.who.Discovery {
		c.log.Info("iscsi session ended")
	}
	return err
}

// enrol gives a session its handle and makes it known.
func (s *Server) enrol(c *conn) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		s.lastTSIH++
		if s.lastTSIH != 0 && s.sessions[s.lastTSIH] == nil {
			break
		}
	}
	s.sessions[s.lastTSIH] = c
	return s.lastTSIH
}

// leave forgets a session that is over, and ends its use of the unit.
func (s *Server) leave(c *conn, _ error) {
	s.mu.Lock()
	if c.tsih != 0 {
		delete(s.sessions, c.tsih)
	}
	if s.ports[c.port()] == c {
		delete(s.ports, c.port())
	}
	s.mu.Unlock()
	if c.unit.Close != nil {
		c.unit.Close()
	}
}

// replace makes c the session of its port, and waits until the one it replaces,
// if there is one, is over: nothing of that one may take effect behind the login.
func (s *Server) replace(c *conn) bool {
	s.mu.Lock()
	old := s.ports[c.port()]
	s.ports[c.port()] = c
	s.mu.Unlock()
	if old == nil {
		return true
	}
	if mutant.On("reinstate-at-once") {
		go old.kill(errDrain)
		return true
	}
	old.kill(fault.Newf(fault.Fenced, "iscsi.session", c.who.Initiator, "the initiator logged in again"))
	t := time.NewTimer(s.cfg.ReinstateMax)
	defer t.Stop()
	select {
	case <-old.ended:
		return true
	case <-t.C:
		return false
	}
}

// sessionTSIH finds the session that a login claims to belong to.
func (s *Server) sessionTSIH(w login.Who) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.sessions[w.TSIH]
	if c == nil || c.who.Initiator != w.Initiator || c.who.Target != w.Target || c.who.ISID != w.ISID {
		return nil
	}
	return c
}

// of lists the sessions of a target.
func (s *Server) of(target string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*conn
	for _, c := range s.sessions {
		if c.who.Target == target && !c.who.Discovery {
			out = append(out, c)
		}
	}
	return out
}

// dropGathering forgets the commands of a target that await data.
func (s *Server) dropGathering(target string) {
	for _, c := range s.of(target) {
		c.mu.Lock()
		c.dropGathering(func(*task) bool { return true })
		c.mu.Unlock()
	}
}

// coldReset ends every session of the target of by: that one when it has its
// response (section 11.5.1).
func (s *Server) coldReset(by *conn) {
	for _, c := range s.of(by.who.Target) {
		if c != by {
			c.kill(fault.Newf(fault.Fenced, "iscsi.session", c.peer, "the target was reset"))
		}
	}
	by.mu.Lock()
	by.leaving = true
	by.mu.Unlock()
	by.nc.SetReadDeadline(past)
}

// draining tells whether the server is shutting down.
func (s *Server) draining() bool { return s.stop.Load() }

// Shutdown stops accepting, asks clients to log out, and after LogoutTimeout
// lets what is in flight finish and be answered, and closes every connection. When ctx
// ends first, the rest is cut off and ctx's error returned. In either case every
// session is closed on return, unless the device still has operations of it when
// ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.close()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	for _, c := range s.open() {
		if !c.who.Discovery {
			c.askLogout(s.cfg.LogoutTimeout)
		}
	}
	t := time.NewTimer(s.cfg.LogoutTimeout)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	s.drain()
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
	s.close()
	s.drain()
	s.cut()
	s.wg.Wait()
	return nil
}

// close stops listeners and logins.
func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		if !c.chosen {
			c.nc.Close()
		}
	}
}

// drain makes readers end at their next wait.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.nc.SetReadDeadline(past)
	}
}

// open lists the sessions that are open.
func (s *Server) open() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*conn
	for c := range s.conns {
		if c.conn != nil {
			out = append(out, c.conn)
		}
	}
	return out
}

// cut closes every connection.
func (s *Server) cut() {
	for _, c := range s.open() {
		c.kill(errDrain)
	}
	s.mu.Lock()
	open := maps.Clone(s.conns)
	s.mu.Unlock()
	for c := range open {
		c.nc.Close()
	}
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	st := Stats{
		Accepted: s.accepted.Load(), Refused: s.refused.Load(), Malformed: s.malformed.Load(), Denied: s.denied.Load(),
		Sessions: map[string]int{},
	}
	s.mu.Lock()
	st.Connections = len(s.conns)
	var open []*conn
	for cl := range s.conns {
		if cl.conn == nil {
			st.Logins++
			continue
		}
		open = append(open, cl.conn)
	}
	s.mu.Unlock()
	for _, c := range open {
		st.Sessions[c.who.Target]++
		c.mu.Lock()
		st.InFlight += len(c.tasks)
		st.BytesHeld += int64(c.held + c.out.bytes)
		c.mu.Unlock()
	}
	return st
}
