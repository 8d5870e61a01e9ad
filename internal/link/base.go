package link

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Flusher is an optional power of a Transport, which Mesh and Memory have:
// several messages in one system call. SendLater is Send, but the message may
// stay in the queue until Flush, the next Send to the same node, or until
// 256 KiB are pending. Messages of SendLater and Send keep their order. Flush
// of a node that is not connected does nothing.
type Flusher interface {
	SendLater(to ident.NodeID, typ Type, bufs ...[]byte) error
	Flush(to ident.NodeID)
}

// PeerFlusher is the same power of a Peer. Inside a handler it is not needed:
// what a handler sends to a Peer waits anyway for the end of the burst that the
// Peer's reader is dispatching.
type PeerFlusher interface {
	SendLater(typ Type, bufs ...[]byte) error
	Flush()
}

// Stats are counters since the start.
type Stats struct {
	Sent, Received         uint64 // messages
	SentBytes              uint64 // with headers, before encryption
	ReceivedBytes          uint64
	Unknown                uint64 // messages of types without a handler
	Refused                uint64 // connections refused in the handshake
	Overflows              uint64 // connections closed because of QueueMax
	Connects               uint64 // outbound connections made
	QueuedBytes            int64  // waiting in all queues now
	InboundConns, Outbound int    // connections now
}

// base is what Mesh and Memory share: handlers, and the outbound connections.
type base struct {
	self         ident.NodeID
	handlers     [256]Handler
	callHandlers [256]CallHandler
	lent         [256]bool // by HandleCallLent
	onConnect    []func(ident.NodeID, bool)

	wg sync.WaitGroup // goroutines of inbound calls and connections

	peers sync.Map      // ident.NodeID -> *outbound
	live  sync.Map      // by number, *channel: those that have not ended
	begun atomic.Uint64 // channels; the number of the newest

	callPool sync.Pool // of *pendingCall; not global: channels belong to one synctest bubble

	sent, received, sentBytes, receivedBytes atomic.Uint64
	unknown, refused, overflows, connects    atomic.Uint64
}

// outbound holds the connections dialled to one node.
type outbound struct {
	conns  [classes]atomic.Pointer[channel]
	events sync.Mutex // serializes the OnConnect calls of this node
	up     bool       // as last reported; guarded by events
}

func (b *base) Self() ident.NodeID { return b.self }

func (b *base) Handle(typ Type, h Handler) { b.handlers[typ] = h }

func (b *base) HandleCall(typ Type, h CallHandler) { b.callHandlers[typ] = h }

func (b *base) HandleCallLent(typ Type, h CallHandler) { b.callHandlers[typ], b.lent[typ] = h, true }

// OnConnect implements Transport. A node is up when all of its connections
// are. The calls of f for one node come one after another, in order.
func (b *base) OnConnect(f func(to ident.NodeID, up bool)) { b.onConnect = append(b.onConnect, f) }

func (b *base) outbound(to ident.NodeID) *outbound {
	if o, ok := b.peers.Load(to); ok {
		return o.(*outbound)
	}
	o, _ := b.peers.LoadOrStore(to, &outbound{})
	return o.(*outbound)
}

func (b *base) channel(to ident.NodeID, typ Type) (*channel, error) {
	if to == b.self {
		return nil, fault.Newf(fault.Invalid, "link.send", to.Short(), "a node does not send to itself")
	}
	if o, ok := b.peers.Load(to); ok {
		if c := o.(*outbound).conns[classOf(typ)].Load(); c != nil {
			return c, nil
		}
	}
	return nil, notConnected(to)
}

func (b *base) Connected(to ident.NodeID) bool {
	o, ok := b.peers.Load(to)
	return ok && o.(*outbound).connected()
}

func (o *outbound) connected() bool {
	for i := range o.conns {
		if o.conns[i].Load() == nil {
			return false
		}
	}
	return true
}

// connected makes c the outbound connection of its class.
func (b *base) connected(c *channel) {
	o := b.outbound(c.peer)
	if old := o.conns[c.cls].Load(); old != nil {
		b.disconnected(old)
	}
	o.conns[c.cls].Store(c)
	b.connects.Add(1)
	b.report(c.peer, o)
}

// disconnected takes c out again.
func (b *base) disconnected(c *channel) {
	o := b.outbound(c.peer)
	if !o.conns[c.cls].CompareAndSwap(c, nil) {
		return
	}
	// A quick reconnect must not hide the loss: whoever listens has to learn
	// that messages may be missing.
	o.events.Lock()
	if o.up {
		o.up = false
		b.tell(c.peer, false)
	}
	o.events.Unlock()
	b.report(c.peer, o)
}

func (b *base) report(to ident.NodeID, o *outbound) {
	o.events.Lock()
	defer o.events.Unlock()
	if up := o.connected(); up != o.up {
		o.up = up
		b.tell(to, up)
	}
}

func (b *base) tell(to ident.NodeID, up bool) {
	for _, f := range b.onConnect {
		f(to, up)
	}
}

func (b *base) Send(to ident.NodeID, typ Type, bufs ...[]byte) error {
	c, err := b.channel(to, typ)
	if err != nil {
		return err
	}
	return c.oneWay(typ, postNow, bufs)
}

// SendLater implements Flusher.
func (b *base) SendLater(to ident.NodeID, typ Type, bufs ...[]byte) error {
	c, err := b.channel(to, typ)
	if err != nil {
		return err
	}
	return c.oneWay(typ, postLater, bufs)
}

// Flush implements Flusher.
func (b *base) Flush(to ident.NodeID) {
	if o, ok := b.peers.Load(to); ok {
		for i := range o.(*outbound).conns {
			if c := o.(*outbound).conns[i].Load(); c != nil {
				c.out.flush()
			}
		}
	}
}

func (b *base) Call(ctx context.Context, to ident.NodeID, typ Type, bufs ...[]byte) ([]byte, error) {
	if to == b.self {
		return b.callSelf(ctx, typ, bufs)
	}
	c, err := b.channel(to, typ)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, typ, bufs)
}

func (b *base) callSelf(ctx context.Context, typ Type, bufs [][]byte) ([]byte, error) {
	f := b.callHandlers[typ]
	if f == nil {
		return nil, fault.Newf(fault.Invalid, "link.call", b.self.Short(), "no handler for calls of type %#02x", uint8(typ))
	}
	body := make([]byte, 0, size(bufs))
	for _, p := range bufs {
		body = append(body, p...)
	}
	return f(ctx, b.self, body)
}

func (b *base) stats() Stats {
	return Stats{
		Sent: b.sent.Load(), Received: b.received.Load(),
		SentBytes: b.sentBytes.Load(), ReceivedBytes: b.receivedBytes.Load(),
		Unknown: b.unknown.Load(), Refused: b.refused.Load(),
		Overflows: b.overflows.Load(), Connects: b.connects.Load(),
	}
}
