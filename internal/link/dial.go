package link

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// dialler keeps the outbound connections to one node: a goroutine for each
// class dials, reads until the connection ends, and dials again.
type dialler struct {
	mesh   *Mesh
	node   ident.NodeID
	addr   string
	ctx    context.Context
	cancel context.CancelFunc
	nudge  [classes]chan struct{} // ends a pause between attempts
}

// SetPeers makes the mesh keep connections to exactly these nodes (host:port
// by node; Self is left out). Nodes whose address did not change keep their
// connections.
func (m *Mesh) SetPeers(peers map[ident.NodeID]string) {
	var stopped []*dialler
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	for id, d := range m.diallers {
		if addr, ok := peers[id]; !ok || addr != d.addr {
			stopped = append(stopped, d)
			delete(m.diallers, id)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(peers), ident.NodeID.Compare) {
		if id == m.self || m.diallers[id] != nil {
			continue
		}
		d := &dialler{mesh: m, node: id, addr: peers[id]}
		d.ctx, d.cancel = context.WithCancel(m.ctx)
		for c := range d.nudge {
			d.nudge[c] = make(chan struct{}, 1)
		}
		m.diallers[id] = d
		if m.started {
			d.start()
		}
	}
	m.mu.Unlock()
	for _, d := range stopped {
		d.stop(fault.Newf(fault.Unavailable, "link", d.node.Short(), "the node left or moved"))
	}
}

// Redial makes the next attempt to connect to a node happen now.
func (m *Mesh) Redial(to ident.NodeID) {
	m.mu.Lock()
	d := m.diallers[to]
	m.mu.Unlock()
	if d != nil {
		d.hurry()
	}
}

func (d *dialler) start() {
	for c := range classes {
		d.mesh.wg.Add(1)
		go d.keep(c)
	}
}

// stop ends the diallers and their connections without waiting.
func (d *dialler) stop(err error) {
	d.cancel()
	for _, c := range d.conns() {
		c.end(err)
	}
}

func (d *dialler) conns() []*conn {
	var cs []*conn
	o := d.mesh.outbound(d.node)
	for i := range o.conns {
		if c := o.conns[i].Load(); c != nil && c.out.(*conn).dialler == d {
			cs = append(cs, c.out.(*conn))
		}
	}
	return cs
}

func (d *dialler) hurry() {
	for _, n := range d.nudge {
		select {
		case n <- struct{}{}:
		default:
		}
	}
}

// keep is the goroutine of one class.
func (d *dialler) keep(cls class) {
	m := d.mesh
	defer m.wg.Done()
	pause, quiet := m.cfg.RetryMin, false
	for d.ctx.Err() == nil {
		c, err := d.connect(cls)
		if err == nil {
			pause, quiet = m.cfg.RetryMin, false
			err = d.use(c)
			m.log.Info("connection lost", "node", d.node.Short(), "class", uint8(cls), "error", err)
		} else if d.ctx.Err() == nil {
			level := slog.LevelInfo // once for each loss, then only for the curious
			if quiet {
				level = slog.LevelDebug
			}
			quiet = true
			m.log.Log(d.ctx, level, "cannot connect", "node", d.node.Short(), "addr", d.addr, "class", uint8(cls), "error", err)
		}
		// up to a quarter less, so that peers do not meet in step
		t := time.NewTimer(pause - rand.N(pause/4+1))
		select {
		case <-t.C:
		case <-d.nudge[cls]:
			t.Stop()
		case <-d.ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, m.cfg.RetryMax)
	}
}

// use runs a fresh connection until it ends.
func (d *dialler) use(c *conn) error {
	m := d.mesh
	m.base.connected(c.channel)
	if d.ctx.Err() != nil { // stop may have missed it
		c.end(fault.New(fault.Unavailable, "link", d.node.Short(), d.ctx.Err()))
	}
	select { // a nudge from before is used up
	case <-d.nudge[c.cls]:
	default:
	}
	if c.cls == classMain {
		m.log.Info("connected", "node", d.node.Short(), "addr", d.addr)
	}
	err := runOut(c)
	m.base.disconnected(c.channel)
	return err
}

// stuckMax is how long the reader of an ended connection may still be in a handler
// before the next connection is made without it.
const stuckMax = time.Second

// runOut is c.run, but it does not wait for a reader that hangs in a handler.
func runOut(c *conn) error {
	ended := make(chan error, 1)
	go func() { ended <- c.run() }()
	select {
	case err := <-ended:
		return err
	case <-c.gone:
	}
	t := time.NewTimer(stuckMax)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		return fault.Newf(fault.Unavailable, "link", c.peer.Short(), "a handler hangs")
	}
}

func (d *dialler) connect(cls class) (*conn, error) {
	m := d.mesh
	ctx, cancel := context.WithTimeout(d.ctx, m.cfg.HandshakeTime)
	defer cancel()
	nd := net.Dialer{KeepAlive: -1, Control: m.control}
	nc, err := nd.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "link.connect", d.addr, err)
	}
	tcp := nc.(*net.TCPConn)
	if !m.track(tcp) {
		return nil, fault.New(fault.Unavailable, "link.connect", d.addr, net.ErrClosed)
	}
	defer m.untrack(tcp)
	fail := func(err error) (*conn, error) {
		tcp.Close()
		return nil, err
	}
	w, err := newWire(tcp)
	if err != nil {
		return fail(err)
	}
	var peer ident.NodeID
	cfg := m.cfg.Identity.TLS()
	cfg.NextProtos = []string{alpn}
	verify := m.verify(&peer)
	var denied error
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		denied = verify(cs)
		if denied == nil && peer != d.node {
			denied = fault.Newf(fault.Denied, "link.connect", d.addr, "node %s answers there, not %s", peer.Short(), d.node.Short())
		}
		return denied
	}
	t := tls.Client(w, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		if denied != nil {
			err = denied
		}
		return fail(err)
	}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	_, err = hello(t, cls, true, m.cfg.HandshakeTime)
	if !stop() || err != nil {
		if err == nil {
			err = ctx.Err()
		}
		return fail(fault.New(fault.Unavailable, "link.connect", d.addr, err))
	}
	w.buffer()
	c := newConn(m, t, w, d.node, cls)
	c.dialler = d
	return c, nil
}
