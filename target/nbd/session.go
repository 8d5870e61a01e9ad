package nbd

import (
	"context"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// session remembers who the client says it is: see target.Client.
func (h *handshake) session(o proto.Option, data []byte) error {
	if _, ok := h.srv.cfg.Exports.(target.Resumer); !ok {
		h.refuse(o, proto.RepErrUnsup, "the exports here do not know clients by name")
		return nil
	}
	s, err := proto.DecodeSessionOption(data)
	if err != nil {
		h.fail(o, err)
		return nil
	}
	h.who = &target.Client{ID: s.ID, Session: s.Session, Force: s.Force}
	h.out = proto.AppendOptionReply(h.out, o, proto.RepAck, nil)
	return nil
}

// open begins a session, as the client that it said it is.
func (h *handshake) open(ctx context.Context, name string) (target.Session, <-chan struct{}, error) {
	if r, ok := h.srv.cfg.Exports.(target.Resumer); ok && h.who != nil {
		return r.Resume(ctx, name, h.peer, *h.who)
	}
	return h.srv.cfg.Exports.Open(ctx, name, h.peer)
}

// over tells whether the session's attachment is lost. What fails from then on
// fails because of that.
func (c *conn) over() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}
