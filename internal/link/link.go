// Package link carries messages between nodes: authenticated, ordered,
// multiplexed. Mesh is the real one (TCP, mutual TLS 1.3); Memory connects
// nodes of one process and injects faults.
package link

import (
	"context"

	"github.com/gabion-storage/gabion/internal/ident"
)

// Type numbers a message. Ranges belong to packages: 0x01-0x0f link, 0x10-0x1f
// overlay, 0x20-0x3f quorum, 0x40-0x4f dht (0x40-0x47 sent on the bulk connection,
// 0x48-0x4f on the gentle one), 0x50-0x5f node control (JSON).
type Type uint8

// MessageMax bounds one message body, in bytes. A longer one ends the connection.
const MessageMax = 4 << 20

// Peer is the other end of one connection.
type Peer interface {
	ID() ident.NodeID
	// Send queues a one-way message; bufs are concatenated and may be reused
	// when it returns. It never blocks: when the connection is gone or its
	// queue is full (QueueMax bytes; the connection is then closed) it returns
	// a fault of kind Unavailable. Messages on one Peer arrive in order or the
	// connection ends.
	Send(typ Type, bufs ...[]byte) error
}

// Handler receives one-way messages. It runs on the connection's reader and
// must not block on anything but local memory and page-cache writes; body is
// valid only until it returns. more tells that at least one further whole
// message of this type from this Peer is already buffered and will be handed
// to this handler next, whatever happens to the connection, so that it may put
// off work to the last.
// from stays usable later, for answers.
type Handler func(from Peer, body []byte, more bool)

// CallHandler answers calls. It runs on a goroutine of its own; body is owned
// by the handler, which may give it back (lend.Put), the result by the link. An error's kind
// and text reach the caller.
type CallHandler func(ctx context.Context, from ident.NodeID, body []byte) ([]byte, error)

// Transport is what nodes talk through. Handlers are registered before Start.
type Transport interface {
	Self() ident.NodeID
	// Send queues a one-way message to a node over the outbound connection,
	// dialling in the background if needed; Unavailable when not connected.
	// Sending to Self is a fault of kind Invalid.
	Send(to ident.NodeID, typ Type, bufs ...[]byte) error
	// Call sends a request and waits for its answer or ctx. Unavailable: not
	// sent. Indeterminate: the connection died while it was under way. Any
	// other kind: the handler's own. bufs may be reused when it returns. The
	// result is owned by the caller, who may give it back (lend.Put). Calls to Self run the handler directly.
	Call(ctx context.Context, to ident.NodeID, typ Type, bufs ...[]byte) ([]byte, error)
	Handle(typ Type, h Handler)
	HandleCall(typ Type, h CallHandler)
	// HandleCallLent is HandleCall for results that nobody else has and that are given back
	// (lend.Put) when they are sent.
	HandleCallLent(typ Type, h CallHandler)
	// OnConnect registers f to be told when the outbound connection to a node
	// comes up or goes down. f must not block.
	OnConnect(f func(to ident.NodeID, up bool))
	// Connected tells whether the outbound connection is up.
	Connected(to ident.NodeID) bool
}
