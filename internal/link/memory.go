package link

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Memory connects nodes of one process and injects faults. It carries the same
// frames as Mesh, through queues instead of sockets, and uses package time, so
// that it runs under testing/synctest. Every node is connected with every other
// that has started, unless SetPeers says otherwise.
//
// All methods may be called concurrently.
type Memory struct {
	// QueueMax, RetryMin and UserTimeout are as in MeshConfig. They may be
	// changed before the first node starts.
	QueueMax    int
	RetryMin    time.Duration
	UserTimeout time.Duration

	mu       sync.Mutex
	rng      *rand.Rand
	min, max time.Duration
	nodes    map[ident.NodeID]*MemoryNode
	cuts     map[route]bool
	links    map[route][]*memConn // the dialling ends
}

// route is a direction between two nodes.
type route struct{ from, to ident.NodeID }

// NewMemory makes a network whose delays are drawn from seed.
func NewMemory(seed uint64) *Memory {
	return &Memory{
		QueueMax: QueueMax, RetryMin: 50 * time.Millisecond, UserTimeout: 10 * time.Second,
		rng:   rand.New(rand.NewPCG(seed, 0)),
		nodes: map[ident.NodeID]*MemoryNode{},
		cuts:  map[route]bool{},
		links: map[route][]*memConn{},
	}
}

// MemoryNode is the Transport of one node, with the methods of Mesh.
type MemoryNode struct {
	base
	net     *Memory
	started bool // guarded by net.mu, as are the following
	dead    bool
	peers   map[ident.NodeID]string // nil: everybody
}

// Node makes the transport of a node. After Crash or Close it may be called
// again for the node's next life.
func (n *Memory) Node(id ident.NodeID) *MemoryNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.nodes[id]; old != nil && !old.dead {
		panic("link: node " + id.Short() + " is already there")
	}
	t := &MemoryNode{net: n}
	t.self = id
	n.nodes[id] = t
	return t
}

// SetDelay makes every frame take between min and max. Order is kept.
func (n *Memory) SetDelay(min, max time.Duration) {
	n.mu.Lock()
	n.min, n.max = min, max
	n.mu.Unlock()
}

// Cut makes everything from one node to another vanish, one way: frames wait
// as in a TCP send queue, connections with waiting frames die after
// UserTimeout, new ones cannot be made.
func (n *Memory) Cut(from, to ident.NodeID) {
	n.mu.Lock()
	n.cuts[route{from, to}] = true
	var conns []*memConn
	for _, r := range []route{{from, to}, {to, from}} {
		conns = append(conns, n.links[r]...)
	}
	n.mu.Unlock()
	for _, c := range conns {
		if c.local.self != from {
			c = c.other
		}
		c.mu.Lock()
		if len(c.queue) > 0 {
			c.watchStall()
		}
		c.mu.Unlock()
	}
}

// Heal undoes Cut. What waited is delivered.
func (n *Memory) Heal(from, to ident.NodeID) {
	n.mu.Lock()
	delete(n.cuts, route{from, to})
	conns := append([]*memConn(nil), n.links[route{from, to}]...)
	conns = append(conns, n.links[route{to, from}]...)
	n.mu.Unlock()
	for _, c := range conns {
		c.nudge()
		c.other.nudge()
	}
	n.connect(route{from, to})
	n.connect(route{to, from})
}

// Isolate cuts a node off from everybody, both ways; Rejoin undoes it.
func (n *Memory) Isolate(id ident.NodeID) { n.around(id, n.Cut) }
func (n *Memory) Rejoin(id ident.NodeID)  { n.around(id, n.Heal) }

func (n *Memory) around(id ident.NodeID, f func(from, to ident.NodeID)) {
	n.mu.Lock()
	var others []ident.NodeID
	for o := range n.nodes {
		if o != id {
			others = append(others, o)
		}
	}
	n.mu.Unlock()
	for _, o := range others {
		f(id, o)
		f(o, id)
	}
}

// Drop ends the connections between two nodes. Frames under way are lost; the
// connections come back after RetryMin.
func (n *Memory) Drop(a, b ident.NodeID) {
	n.mu.Lock()
	conns := append([]*memConn(nil), n.links[route{a, b}]...)
	conns = append(conns, n.links[route{b, a}]...)
	n.mu.Unlock()
	for _, c := range conns {
		c.end(fault.Newf(fault.Unavailable, "link", "", "dropped"))
	}
}

// Crash ends a node: its connections break, its transport is dead. It does not
// wait for handlers that are running.
func (n *Memory) Crash(id ident.NodeID) {
	n.mu.Lock()
	t := n.nodes[id]
	n.mu.Unlock()
	if t != nil {
		t.kill()
	}
}

// Start begins to connect. Handlers must be registered before.
func (t *MemoryNode) Start() {
	t.net.mu.Lock()
	t.started = true
	t.net.mu.Unlock()
	t.connectAll()
}

// SetPeers restricts whom the node connects to. Addresses do not matter.
func (t *MemoryNode) SetPeers(peers map[ident.NodeID]string) {
	if peers == nil {
		peers = map[ident.NodeID]string{}
	}
	t.net.mu.Lock()
	t.peers = peers
	var gone []*memConn
	for r, conns := range t.net.links {
		if _, ok := peers[r.to]; r.from == t.self && !ok {
			gone = append(gone, conns...)
		}
	}
	t.net.mu.Unlock()
	for _, c := range gone {
		c.end(fault.Newf(fault.Unavailable, "link", "", "the node left"))
	}
	t.connectAll()
}

// Redial tries to connect to a node now.
func (t *MemoryNode) Redial(to ident.NodeID) { t.net.connect(route{t.self, to}) }

// Stats returns counters.
func (t *MemoryNode) Stats() Stats { return t.stats() }

// Addr is a name for the node in place of an address.
func (t *MemoryNode) Addr() string { return t.self.String() }

// Close ends the node's connections and waits for its goroutines.
func (t *MemoryNode) Close() {
	t.kill()
	t.wg.Wait()
}

func (t *MemoryNode) kill() {
	t.net.mu.Lock()
	t.dead = true
	var conns []*memConn
	for r, cs := range t.net.links {
		if r.from == t.self || r.to == t.self {
			for _, c := range cs {
				if c.local == t || c.other.local == t {
					conns = append(conns, c)
				}
			}
		}
	}
	t.net.mu.Unlock()
	for _, c := range conns {
		c.end(fault.Newf(fault.Unavailable, "link", t.self.Short(), "the node is gone"))
	}
}

func (t *MemoryNode) connectAll() {
	t.net.mu.Lock()
	var others []ident.NodeID
	for id := range t.net.nodes {
		if id != t.self {
			others = append(others, id)
		}
	}
	t.net.mu.Unlock()
	for _, id := range others {
		t.net.connect(route{t.self, id})
		t.net.connect(route{id, t.self})
	}
}

// connect makes the connections of a route that are missing, if it can be now.
func (n *Memory) connect(r route) {
	n.mu.Lock()
	a, b := n.nodes[r.from], n.nodes[r.to]
	ok := a != nil && b != nil && a.started && b.started && !a.dead && !b.dead &&
		!n.cuts[r] && !n.cuts[route{r.to, r.from}]
	if ok && a.peers != nil {
		_, ok = a.peers[r.to]
	}
	if !ok {
		n.mu.Unlock()
		return
	}
	var fresh []*memConn
	for cls := range classes {
		there := false
		for _, c := range n.links[r] {
			there = there || c.cls == cls
		}
		if !there {
			c, d := newMemConn(a, b, cls), newMemConn(b, a, cls)
			c.other, d.other, c.dialled = d, c, true
			n.links[r] = append(n.links[r], c)
			fresh = append(fresh, c)
			a.wg.Add(2) // the reader, and this function's use of the connection
			b.wg.Add(1)
		}
	}
	n.mu.Unlock()
	for _, c := range fresh {
		a.base.connected(c.channel)
		go c.read()
		go c.other.read()
		select { // it may have ended before it was in the table
		case <-c.gone:
			a.base.disconnected(c.channel)
		default:
		}
		a.wg.Done()
	}
}

// forget takes an ended connection out and plans its successor.
func (n *Memory) forget(c *memConn) {
	r := route{c.local.self, c.peer}
	n.mu.Lock()
	kept := n.links[r][:0:0]
	for _, o := range n.links[r] {
		if o != c {
			kept = append(kept, o)
		}
	}
	n.links[r] = kept
	again := !c.local.dead && !c.other.local.dead
	n.mu.Unlock()
	c.local.base.disconnected(c.channel)
	if again {
		time.AfterFunc(n.RetryMin, func() { n.connect(r) })
	}
}

func (n *Memory) cut(from, to ident.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[route{from, to}]
}

func (n *Memory) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.max <= 0 {
		return 0
	}
	return n.min + time.Duration(n.rng.Int64N(int64(n.max-n.min)+1))
}
