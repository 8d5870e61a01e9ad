package client_test

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/targettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakePool has one volume on a flat array with a volatile cache, served by real
// NBD servers. It keeps the promise of target.Resumer in the simplest way and is
// otherwise as nasty as a pool may be: operations take effect late, a holder's
// cache dies with its attachment, and each node is reached through a proxy that
// loses, holds back and delivers late.
type fakePool struct {
	t     *testing.T
	mem   *targettest.Memory
	nodes []*fakeNode
	// Lazy is the longest time that an operation lies at its holder before it
	// takes effect.
	lazy time.Duration

	mu       sync.Mutex
	epoch    uint64
	holder   *fakeNode
	sessions map[*fakeSession]bool
	stale    int // operations of an earlier attachment that came too late
	refuse   error
	forget   int // so many operations are not answered as long as their session lives
}

type fakeNode struct {
	*proxy
	pool *fakePool
	name string
	srv  *nbd.Server
	// behind, if not 0, is the size that a node believes in that has not heard of
	// a later one.
	behind atomic.Int64
	// slow, if set, is what a node does before it refuses a session.
	slow func() error
}

func newPool(t *testing.T, nodes int, size int64) *fakePool {
	p := &fakePool{t: t, mem: targettest.NewMemory(size, 4096), sessions: map[*fakeSession]bool{}}
	p.mem.Volatile = true
	for i := range nodes {
		n := &fakeNode{pool: p, name: string(rune('a' + i))}
		srv, err := nbd.NewServer(nbd.Config{Exports: n})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n.srv = srv
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		n.proxy = newProxy(t, l.Addr().String())
		p.nodes = append(p.nodes, n)
		t.Cleanup(func() {
			n.proxy.close()
			srv.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
	return p
}

// config names all nodes and hurries.
func (p *fakePool) config() client.Config {
	c := client.Config{
		Volume: "v", ID: [16]byte{1}, Start: 1, DialTimeout: 300 * time.Millisecond, OpenTimeout: 3 * time.Second,
		ProbeAfter: 100 * time.Millisecond, StuckAfter: 600 * time.Millisecond, KeepMax: 16 << 20,
		Nodes: func() (out []client.Node) {
			for _, n := range p.nodes {
				out = append(out, client.Node{Name: n.name, Addr: n.addr})
			}
			return out
		},
	}
	if os.Getenv("GABION_TEST_LOG") != "" {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return c
}

func (p *fakePool) open(c client.Config) *client.Engine {
	p.t.Helper()
	e, err := client.Open(p.t.Context(), c)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(e.Close)
	return e
}

func (p *fakePool) node(n client.Node) *fakeNode {
	i := slices.IndexFunc(p.nodes, func(x *fakeNode) bool { return x.addr == n.Addr })
	if i < 0 {
		return nil
	}
	return p.nodes[i]
}

func (n *fakeNode) List(context.Context) ([]target.Export, error) { return nil, nil }

func (n *fakeNode) Stat(context.Context, string) (target.Export, error) {
	return target.Export{Name: "v", Description: "the volume", Size: n.pool.mem.Size(), BlockSize: 4096}, nil
}

func (n *fakeNode) Open(context.Context, string, string) (target.Session, <-chan struct{}, error) {
	return nil, nil, fault.Newf(fault.Denied, "open", "v", "every client here has a name")
}

// Resume implements target.Resumer.
func (n *fakeNode) Resume(ctx context.Context, _, _ string, c target.Client) (target.Session, <-chan struct{}, error) {
	p := n.pool
	if n.slow != nil {
		return nil, nil, n.slow()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return nil, nil, p.refuse
	}
	for s := range p.sessions {
		if s.client.ID != c.ID && !c.Force {
			return nil, nil, fault.Newf(fault.Busy, "open", "v", "another client has it")
		}
		if s.client.ID == c.ID && s.client.Session > c.Session {
			return nil, nil, fault.Newf(fault.Fenced, "open", "v", "there is a later session")
		}
	}
	if p.holder != n { // takeover: the cache of the old holder is lost, its stragglers are fenced
		p.holder = n
		p.epoch++
		for s := range p.sessions {
			s.end()
		}
		p.mem.Crash(func(int64) bool { return rand.IntN(2) == 0 })
	}
	for s := range p.sessions {
		s.end()
	}
	for s := range p.sessions {
		for s.node == n && !s.closed {
			p.mu.Unlock()
			select {
			case <-s.over:
			case <-ctx.Done():
				p.mu.Lock()
				return nil, nil, ctx.Err()
			}
			p.mu.Lock()
		}
	}
	s := &fakeSession{Memory: p.mem, node: n, client: c, epoch: p.epoch, gone: make(chan struct{}), over: make(chan struct{})}
	p.sessions[s] = true
	return s, s.gone, nil
}

// fakeSession is a session with a holder that takes its time.
type fakeSession struct {
	*targettest.Memory
	node   *fakeNode
	client target.Client
	epoch  uint64
	gone   chan struct{}
	over   chan struct{}
	ended  bool
	closed bool
}

func (s *fakeSession) Size() int64 {
	if n := s.node.behind.Load(); n != 0 {
		return n
	}
	return s.Memory.Size()
}

// end is called under fakePool.mu.
func (s *fakeSession) end() {
	if !s.ended {
		s.ended = true
		close(s.gone)
	}
}

func (s *fakeSession) Close() {
	p := s.node.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	s.closed = true
	close(s.over)
	delete(p.sessions, s)
}

// later carries f out after a while, if the attachment is still the newest.
func (s *fakeSession) later(done func(error), f func(done func(error))) {
	p := s.node.pool
	act := func() {
		p.mu.Lock()
		if s.epoch != p.epoch {
			p.stale++
			p.mu.Unlock()
			done(fault.Newf(fault.Fenced, "volume", "v", "somebody took it over"))
			return
		}
		var err error
		f(func(e error) { err = e }) // Memory answers at once
		p.mu.Unlock()
		done(err)
	}
	p.mu.Lock()
	forget := p.forget > 0
	if forget {
		p.forget--
	}
	p.mu.Unlock()
	if forget {
		go func() { <-s.gone; act() }()
		return
	}
	if p.lazy == 0 {
		act()
		return
	}
	time.AfterFunc(rand.N(p.lazy), act)
}

func (s *fakeSession) TryReadAt([]byte, int64) bool { return false }

func (s *fakeSession) ReadAt(ctx context.Context, b []byte, off int64) error {
	done := make(chan error, 1)
	s.later(func(err error) { done <- err }, func(d func(error)) { d(s.Memory.ReadAt(ctx, b, off)) })
	return <-done
}

func (s *fakeSession) Write(b []byte, off int64, fua bool, done func(error)) {
	b = slices.Clone(b)
	s.later(done, func(d func(error)) { s.Memory.Write(b, off, fua, d) })
}

func (s *fakeSession) Zero(off, n int64, fua bool, done func(error)) {
	s.later(done, func(d func(error)) { s.Memory.Zero(off, n, fua, d) })
}

func (s *fakeSession) Trim(off, n int64, fua bool, done func(error)) {
	s.later(done, func(d func(error)) { s.Memory.Zero(off, n, fua, d) })
}

func (s *fakeSession) Flush(done func(error)) { s.later(done, s.Memory.Flush) }

// proxy stands between clients and a server.
type proxy struct {
	addr string
	to   string
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	open  map[*pipe]bool
	deaf  bool // accepts and says nothing
	refus bool // hangs up at once
}

// pipe is one connection through a proxy. While it is frozen bytes wait in it.
type pipe struct {
	a, b   net.Conn
	mu     sync.Mutex
	cond   sync.Cond
	frozen bool
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &proxy{addr: l.Addr().String(), to: to, l: l, open: map[*pipe]bool{}}
	x.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			x.mu.Lock()
			if x.refus {
				a.Close()
				x.mu.Unlock()
				continue
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				x.mu.Unlock()
				continue
			}
			c := &pipe{a: a, b: b, frozen: x.deaf}
			c.cond.L = &c.mu
			x.open[c] = true
			x.mu.Unlock()
			x.wg.Go(func() { c.copy(a, b) })
			x.wg.Go(func() { c.copy(b, a) })
		}
	})
	return x
}

func (c *pipe) copy(to, from net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		c.mu.Lock()
		for c.frozen {
			c.cond.Wait()
		}
		c.mu.Unlock()
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			if err == io.EOF {
				to.(*net.TCPConn).CloseWrite()
			} else {
				to.Close()
			}
			return
		}
	}
}

func (c *pipe) set(frozen bool) {
	c.mu.Lock()
	c.frozen = frozen
	c.mu.Unlock()
	c.cond.Broadcast()
}

// cut hangs up on everybody, as a process that dies does.
func (x *proxy) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for c := range x.open {
		c.a.Close()
		c.b.Close()
		c.set(false)
		delete(x.open, c)
	}
}

// freeze holds back what open connections carry; deaf does so for new ones too.
func (x *proxy) freeze(deaf bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deaf = deaf
	for c := range x.open {
		c.set(true)
	}
}

// thaw delivers all of it.
func (x *proxy) thaw() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deaf = false
	for c := range x.open {
		c.set(false)
	}
}

// down has new connections refused and cuts those that are open.
func (x *proxy) down(down bool) {
	x.mu.Lock()
	x.refus = down
	x.mu.Unlock()
	if down {
		x.cut()
	}
}

func (x *proxy) close() {
	x.l.Close()
	x.cut()
	x.wg.Wait()
}
