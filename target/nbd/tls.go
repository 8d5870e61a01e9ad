package nbd

import (
	"bufio"
	"context"
	"crypto/tls"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// startTLS answers STARTTLS and, if that says yes, shakes hands. What options
// agreed on before is forgotten, and what the client sent ahead of the answer
// ends the connection: it may be another's words in its name.
func (h *handshake) startTLS(o proto.Option, data []byte) error {
	switch {
	case len(data) != 0:
		h.refuse(o, proto.RepErrInvalid, "STARTTLS takes no data")
		return nil
	case h.secure:
		h.refuse(o, proto.RepErrInvalid, "TLS is on already")
		return nil
	case h.srv.cfg.TLS == nil:
		h.refuse(o, proto.RepErrPolicy, "TLS is off on this server")
		return nil
	case h.in.Buffered() > 0 && !mutant.On("early-words"):
		return fault.Newf(fault.Invalid, "nbd.handshake", h.peer, "data behind STARTTLS")
	}
	if !mutant.On("keep-style") {
		h.letGo()
	}
	h.ack(o)
	if err := h.flush(); err != nil {
		return err
	}
	conn := tls.Server(h.nc, h.srv.cfg.TLS)
	if err := conn.HandshakeContext(context.Background()); err != nil { // bounded by the socket's deadline
		return fault.New(fault.Denied, "nbd.tls", h.peer, err)
	}
	h.nc, h.secure = conn, true
	h.in = bufio.NewReaderSize(conn, 1<<10)
	h.proved = namesOf(conn.ConnectionState())
	return nil
}

// access is what the client may do with an export.
func (h *handshake) access(export string) access {
	if h.srv.cfg.Rules == nil {
		return accessWrite
	}
	return h.srv.cfg.Rules.access(h.proved, export)
}

// hidden replies and reports true if the client may not see an export. To one
// who may yet prove who it is with TLS it says so, whether the export exists or not.
func (h *handshake) hidden(o proto.Option, export string) bool {
	switch {
	case h.access(export) != accessNone:
		return false
	case h.srv.cfg.TLS != nil && !h.secure && (o == proto.OptInfo || o == proto.OptGo):
		h.refuse(o, proto.RepErrTLSReqd, "STARTTLS with a certificate may show more")
	default:
		h.fail(o, fault.Newf(fault.NotFound, "export stat", export, "there is no such volume"))
	}
	return true
}
