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
	h.agreed.early.close() // nobody said whose that one was
	h.agreed.early = opened{}
	h.who = &target.Client{ID: s.ID, Session: s.Session, Force: s.Force}
	h.ack(o)
	return nil
}

// open begins a session, as the client that it said it is.
func (h *handshake) open(ctx context.Context, name string) (opened, error) {
	o := opened{export: name}
	var err error
	if r, ok := h.srv.cfg.Exports.(target.Resumer); ok && h.who != nil {
		o.session, o.gone, err = r.Resume(ctx, name, h.peer, *h.who)
	} else {
		o.session, o.gone, err = h.srv.cfg.Exports.Open(ctx, name, h.peer)
	}
	if err != nil {
		return opened{}, err
	}
	return o, nil
}

// over tells whether the session's attachment is lost. What fails from then on
// fails because of that.
func (c *conn) over() bool {
	if isClosed(c.gone) {
		return true
	}
	s, ok := c.sess.(target.Ender)
	return ok && isClosed(s.Gone())
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
