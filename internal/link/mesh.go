package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/pki"
)

// alpn is the TLS protocol of links between nodes.
const alpn = "gabion/1"

// Limits of a listener.
const (
	HandshakesMax = 64   // TLS handshakes and joins at once
	InboundMax    = 4096 // connections from nodes
)

// MeshConfig describes one node's Mesh. Zero values mean the defaults.
type MeshConfig struct {
	Identity *pki.Identity
	Listen   string // host:port; port 0 takes any
	Log      *slog.Logger
	QueueMax int // bytes waiting to be sent on one connection; QueueMax
	// HandshakeTime bounds connecting and the handshake; 5 s.
	HandshakeTime time.Duration
	// UserTimeout ends a connection whose sent bytes stay unacknowledged; 10 s.
	UserTimeout time.Duration
	// Retries of a connection that failed wait from RetryMin (50 ms), doubling,
	// to RetryMax (2 s).
	RetryMin, RetryMax time.Duration
	// OnJoin carries out the join exchange (pki.JoinServer) on a connection
	// whose handshake is done. The mesh closes the connection. nil refuses.
	OnJoin func(ctx context.Context, conn net.Conn)
}

// Mesh is the Transport between real nodes: TCP with mutual TLS 1.3. It dials
// three connections to each peer (SetPeers), one for bulk messages, one for what nobody
// waits for and one for everything else, and accepts the same from any node that shows a certificate
// of the pool, listed or not: it may have joined a moment ago. Connections
// without messages send nothing: there are no keep-alives, dead peers are found
// by TCP_USER_TIMEOUT and by the overlay's pings.
type Mesh struct {
	base
	cfg    MeshConfig
	log    *slog.Logger
	ln     *net.TCPListener
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	shakes chan struct{} // a token for each handshake under way

	mu       sync.Mutex
	closed   bool
	started  bool
	diallers map[ident.NodeID]*dialler
	inbound  map[inKey]*conn
	raw      map[net.Conn]struct{} // in a handshake or join
	gripe    gripes
	banned   map[ident.NodeID]bool // replaced whole
}

type inKey struct {
	node ident.NodeID
	cls  class
}

// NewMesh binds the listening address. Unavailable: it is taken or wrong.
func NewMesh(cfg MeshConfig) (*Mesh, error) {
	if cfg.Identity == nil || cfg.Log == nil {
		return nil, fault.Newf(fault.Invalid, "link.listen", "", "Identity and Log are required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.HandshakeTime, 5*time.Second)
	def(&cfg.UserTimeout, 10*time.Second)
	def(&cfg.RetryMin, 50*time.Millisecond)
	def(&cfg.RetryMax, 2*time.Second)
	if cfg.QueueMax == 0 {
		cfg.QueueMax = QueueMax
	}
	m := &Mesh{
		cfg: cfg, log: cfg.Log,
		shakes:   make(chan struct{}, HandshakesMax),
		diallers: map[ident.NodeID]*dialler{},
		inbound:  map[inKey]*conn{},
		raw:      map[net.Conn]struct{}{},
	}
	m.self = cfg.Identity.Node
	m.ctx, m.cancel = context.WithCancel(context.Background())
	lc := net.ListenConfig{KeepAlive: -1, Control: m.control}
	ln, err := lc.Listen(m.ctx, "tcp", cfg.Listen)
	if err != nil {
		m.cancel()
		return nil, fault.Newf(fault.Unavailable, "link.listen", cfg.Listen, "%w; choose another address with --listen", err)
	}
	m.ln = ln.(*net.TCPListener)
	return m, nil
}

// control sets what must be known before a connection is made. Buffer sizes
// are left to the kernel, which tunes them up to tcp_rmem and tcp_wmem (6 and 4
// MiB by default); a fixed size would be cut to net.core.rmem_max (208 KiB by
// default) and switch the tuning off. TCP_NODELAY is Go's default.
func (m *Mesh) control(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(m.cfg.UserTimeout.Milliseconds()))
	})
	return errors.Join(cerr, err)
}

// Addr is the address that the mesh listens on.
func (m *Mesh) Addr() string { return m.ln.Addr().String() }

// Start begins to accept and to dial. Handlers must be registered before.
func (m *Mesh) Start() {
	m.wg.Add(1)
	go m.accept()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.diallers {
		d.start()
	}
	m.started = true
}

// Close ends all connections and waits for every goroutine, call handlers
// included; their contexts are cancelled.
func (m *Mesh) Close() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	diallers := m.diallers
	m.diallers = map[ident.NodeID]*dialler{}
	var conns []*conn
	for _, c := range m.inbound {
		conns = append(conns, c)
	}
	for c := range m.raw {
		c.Close()
	}
	m.mu.Unlock()
	m.cancel()
	m.ln.Close()
	err := fault.Newf(fault.Unavailable, "link", "", "the node shuts down")
	for _, c := range conns {
		c.end(err)
	}
	for _, d := range diallers {
		d.stop(err)
	}
	m.wg.Wait()
}

// Stats returns counters and gauges.
func (m *Mesh) Stats() Stats {
	s := m.stats()
	m.mu.Lock()
	conns := make([]*conn, 0, len(m.inbound))
	for _, c := range m.inbound {
		conns = append(conns, c)
	}
	m.mu.Unlock()
	s.InboundConns = len(conns)
	m.peers.Range(func(_, o any) bool {
		for i := range o.(*outbound).conns {
			if c := o.(*outbound).conns[i].Load(); c != nil {
				s.Outbound++
				conns = append(conns, c.out.(*conn))
			}
		}
		return true
	})
	for _, c := range conns {
		c.mu.Lock()
		s.QueuedBytes += int64(c.taken + len(c.pending))
		c.mu.Unlock()
	}
	return s
}

func (m *Mesh) accept() {
	defer m.wg.Done()
	for {
		select {
		case m.shakes <- struct{}{}:
		case <-m.ctx.Done():
			return
		}
		c, err := m.ln.AcceptTCP()
		if err != nil {
			<-m.shakes
			if m.ctx.Err() != nil {
				return
			}
			m.gripe.warn(m.log, "cannot accept connections", "error", err)
			select { // out of file descriptors: do not spin
			case <-time.After(m.cfg.RetryMin):
			case <-m.ctx.Done():
				return
			}
			continue
		}
		m.wg.Add(1)
		go m.welcome(c)
	}
}

// track makes Close find c while it is not yet a conn.
func (m *Mesh) track(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		c.Close()
		return false
	}
	m.raw[c] = struct{}{}
	return true
}

func (m *Mesh) untrack(c net.Conn) {
	m.mu.Lock()
	delete(m.raw, c)
	m.mu.Unlock()
}

// welcome is the goroutine of one accepted connection.
func (m *Mesh) welcome(tcp *net.TCPConn) {
	defer m.wg.Done()
	defer tcp.Close()
	shaking := true
	done := func() {
		if shaking {
			shaking = false
			<-m.shakes
		}
	}
	defer done()
	if !m.track(tcp) {
		return
	}
	defer m.untrack(tcp)
	from := tcp.RemoteAddr().String()
	refuse := func(err error) {
		if m.ctx.Err() == nil {
			m.refused.Add(1)
			m.gripe.warn(m.log, "connection refused", "from", from, "error", err)
		}
	}
	w, err := newWire(tcp)
	if err != nil {
		refuse(err)
		return
	}
	var peer ident.NodeID
	t := tls.Server(w, m.serverTLS(&peer))
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.HandshakeTime)
	err = t.HandshakeContext(ctx)
	cancel()
	if err != nil {
		refuse(err)
		return
	}
	if t.ConnectionState().NegotiatedProtocol == pki.ALPNJoin {
		m.cfg.OnJoin(m.ctx, t)
		return
	}
	cls, err := hello(t, 0, false, m.cfg.HandshakeTime)
	if err != nil {
		refuse(err)
		return
	}
	done()
	m.serveInbound(newConn(m, t, w, peer, cls))
}

func (m *Mesh) serveInbound(c *conn) {
	c.wire.buffer()
	key := inKey{c.peer, c.cls}
	m.mu.Lock()
	old := m.inbound[key]
	if m.banned[c.peer] { // since it was verified
		m.mu.Unlock()
		return
	}
	if m.closed || (old == nil && len(m.inbound) >= InboundMax) {
		m.mu.Unlock()
		m.gripe.warn(m.log, "connection refused", "node", c.peer.Short(), "error", "too many connections")
		return
	}
	m.inbound[key] = c
	d := m.diallers[c.peer]
	m.mu.Unlock()
	if old != nil { // the peer has given it up
		old.end(fault.Newf(fault.Unavailable, "link", c.peer.Short(), "the peer connected anew"))
	}
	if d != nil {
		d.hurry()
	}
	err := c.run()
	m.mu.Lock()
	if m.inbound[key] == c {
		delete(m.inbound, key)
	}
	m.mu.Unlock()
	m.log.Debug("inbound connection ended", "node", c.peer.Short(), "class", uint8(c.cls), "error", err)
}

// Ban makes the mesh refuse connections from and to these nodes, whatever
// certificates they have, and ends those that there are. Each call replaces the one before.
func (m *Mesh) Ban(nodes []ident.NodeID) {
	banned := make(map[ident.NodeID]bool, len(nodes))
	for _, id := range nodes {
		banned[id] = true
	}
	var ended []*conn
	m.mu.Lock()
	m.banned = banned
	for k, c := range m.inbound {
		if banned[k.node] {
			ended = append(ended, c)
		}
	}
	m.mu.Unlock()
	for _, c := range ended {
		c.end(fault.Newf(fault.Denied, "link", c.peer.Short(), "the node was removed from the pool, or declared lost"))
	}
}

func (m *Mesh) isBanned(id ident.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.banned[id]
}

// serverTLS demands a node certificate, except of those that come to join.
func (m *Mesh) serverTLS(peer *ident.NodeID) *tls.Config {
	cfg := m.cfg.Identity.TLS()
	cfg.NextProtos = []string{alpn}
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = m.verify(peer)
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if m.cfg.OnJoin == nil || !slices.Contains(h.SupportedProtos, pki.ALPNJoin) {
			return nil, nil
		}
		join := m.cfg.Identity.TLS()
		join.NextProtos = []string{pki.ALPNJoin}
		return join, nil
	}
	return cfg
}

func (m *Mesh) verify(peer *ident.NodeID) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol != alpn {
			return fault.Newf(fault.Denied, "link.verify", "", "the peer does not speak %s", alpn)
		}
		id, err := m.cfg.Identity.VerifyPeer(cs.PeerCertificates)
		if err != nil {
			return err
		}
		if id == m.self {
			return fault.Newf(fault.Denied, "link.verify", "", "the peer has this node's own key; a key belongs to one node only")
		}
		if m.isBanned(id) {
			return fault.Newf(fault.Denied, "link.verify", id.Short(), "the node was removed from the pool, or declared lost")
		}
		*peer = id
		return nil
	}
}

// gripes lets one warning of a kind through each second and counts the rest.
type gripes struct {
	mu   sync.Mutex
	last map[string]time.Time
	held map[string]int
}

func (g *gripes) warn(log *slog.Logger, msg string, args ...any) {
	now := time.Now()
	g.mu.Lock()
	if g.last == nil {
		g.last, g.held = map[string]time.Time{}, map[string]int{}
	}
	if t, ok := g.last[msg]; ok && now.Sub(t) < time.Second {
		g.held[msg]++
		g.mu.Unlock()
		return
	}
	held := g.held[msg]
	g.last[msg], g.held[msg] = now, 0
	g.mu.Unlock()
	if held > 0 {
		args = append(args, "not_logged", held)
	}
	log.Warn(msg, args...)
}
