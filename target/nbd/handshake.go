package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// negotiated is what the handshake leads to.
type negotiated struct {
	opened
	nc       net.Conn // with TLS, if that was negotiated
	readOnly bool     // the client may not write
	style    proto.Style
	contexts []proto.Context
	rest     []byte // input that came with the last option
}

// opened is an export with a session.
type opened struct {
	export  string
	session target.Session // nil: none
	gone    <-chan struct{}
}

// handshake is one client's option haggling.
type handshake struct {
	srv    *Server
	ec     *edge.Conn[*conn]
	nc     net.Conn // with TLS once that is negotiated
	peer   string
	in     *bufio.Reader
	out    []byte // replies not written yet
	flags  proto.ClientFlags
	until  time.Time
	who    *target.Client // nil for a client that did not say
	secure bool           // TLS is on
	proved names          // of the client, from its certificate
	agreed agreed
	done   *negotiated
}

// agreed is what options changed; STARTTLS forgets it.
type agreed struct {
	style    proto.Style
	about    string          // the export that contexts were selected for
	contexts []proto.Context // nil: none
	early    opened          // by selecting a context that only a session can confirm
}

// errAbort ends a negotiation that the client gave up properly.
var errAbort = errors.New("the client aborted the negotiation")

// options is the table of what this server knows. A handler gets the whole data
// of the option, appends replies to h.out, sets h.done to enter transmission,
// and returns an error only to end the connection.
var options = map[proto.Option]func(h *handshake, o proto.Option, data []byte) error{
	proto.OptExportName:      (*handshake).exportName,
	proto.OptAbort:           (*handshake).abort,
	proto.OptList:            (*handshake).list,
	proto.OptStartTLS:        (*handshake).startTLS,
	proto.OptInfo:            (*handshake).info,
	proto.OptGo:              (*handshake).info,
	proto.OptStructuredReply: (*handshake).setStyle,
	proto.OptListMetaContext: (*handshake).metaContext,
	proto.OptSetMetaContext:  (*handshake).metaContext,
	proto.OptExtendedHeaders: (*handshake).setStyle,
	proto.OptSession:         (*handshake).session,
}

// negotiate runs the handshake to its end: nil if the client aborted it.
func negotiate(s *Server, ec *edge.Conn[*conn]) (*negotiated, error) {
	h := &handshake{srv: s, ec: ec, nc: ec.Socket, peer: ec.Peer}
	defer h.letGo()
	h.limit()
	h.out = proto.AppendGreeting(h.out)
	if err := h.flush(); err != nil {
		return nil, err
	}
	h.in = bufio.NewReaderSize(h.nc, 1<<10)
	var b [proto.OptionHeaderSize]byte
	if _, err := io.ReadFull(h.in, b[:proto.ClientFlagsSize]); err != nil {
		return nil, h.readError(err)
	}
	var err error
	if h.flags, err = proto.DecodeClientFlags(b[:proto.ClientFlagsSize]); err != nil {
		return nil, err
	}
	for range OptionsMax {
		if _, err := io.ReadFull(h.in, b[:]); err != nil {
			return nil, h.readError(err)
		}
		o, n, err := proto.DecodeOptionHeader(b[:])
		if err != nil {
			return nil, err
		}
		if err := h.option(o, n); err != nil {
			if errors.Is(err, errAbort) {
				err = nil
			}
			return nil, err
		}
		if err := h.flush(); err != nil {
			if h.done != nil {
				h.done.session.Close()
			}
			return nil, err
		}
		if h.done != nil {
			h.done.nc = h.nc
			h.done.rest, _ = h.in.Peek(h.in.Buffered())
			return h.done, nil
		}
	}
	return nil, fault.Newf(fault.Invalid, "nbd.handshake", h.peer, "more than %d options", OptionsMax)
}

// option reads the data of one option and replies.
func (h *handshake) option(o proto.Option, n int) error {
	f, known := options[o]
	if o != proto.OptExportName && !h.flags.FixedNewstyle {
		return fault.Newf(fault.Invalid, "nbd.handshake", h.peer,
			"option %d without the fixed newstyle flag", o)
	}
	plain := h.srv.cfg.TLSRequired && !h.secure && !(mutant.On("talkative") && o == proto.OptList) && o != proto.OptStartTLS && o != proto.OptAbort
	if plain && o == proto.OptExportName {
		return fault.Newf(fault.Denied, "nbd.handshake", h.peer, "EXPORT_NAME without TLS")
	}
	if !known || plain || o == proto.OptAbort { // data, if any, mean nothing
		if _, err := h.in.Discard(n); err != nil {
			return h.readError(err)
		}
		if plain {
			h.refuse(o, proto.RepErrTLSReqd, "this server wants STARTTLS first")
			return nil
		}
		if !known {
			h.refuse(o, proto.RepErrUnsup, fmt.Sprintf("option %d is not supported", o))
			return nil
		}
		return f(h, o, nil)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.in, data); err != nil {
		return h.readError(err)
	}
	if h.srv.conns.Stopping() {
		h.refuse(o, proto.RepErrShutdown, "the server is shutting down")
		return nil
	}
	return f(h, o, data)
}

func (h *handshake) abort(o proto.Option, _ []byte) error {
	h.out = proto.AppendOptionReply(h.out, o, proto.RepAck, nil)
	h.flush() // the client may be gone already, and may be so
	return errAbort
}

func (h *handshake) list(o proto.Option, data []byte) error {
	if len(data) != 0 {
		h.refuse(o, proto.RepErrInvalid, "LIST takes no data")
		return nil
	}
	var exports []target.Export
	err := h.ours(func(ctx context.Context) (err error) {
		exports, err = h.srv.cfg.Exports.List(ctx)
		return err
	})
	if err != nil {
		h.fail(o, err)
		return nil
	}
	for _, e := range exports {
		if h.access(e.Name) == accessNone {
			continue
		}
		h.out = proto.AppendServer(h.out, e.Name, e.Description)
		if len(h.out) >= proto.OptionMax { // a pool may have very many
			if err := h.flush(); err != nil {
				return err
			}
		}
	}
	h.ack(o)
	return nil
}

// info answers INFO, and GO, which is the same and then enters transmission.
func (h *handshake) info(o proto.Option, data []byte) error {
	q, err := proto.DecodeExportQuery(data)
	if err != nil {
		h.malformed(o, err)
		return nil
	}
	if h.hidden(o, q.Name) {
		return nil
	}
	if a, ok := h.srv.cfg.Exports.(target.Able); ok {
		if err := a.Able(q.Name); err != nil {
			h.refuse(o, proto.RepErrShutdown, err.Error()) // the word for: try another node
			return nil
		}
	}
	var e target.Export
	err = h.ours(func(ctx context.Context) (err error) {
		e, err = h.srv.cfg.Exports.Stat(ctx, q.Name)
		if err == nil && o == proto.OptGo {
			err = h.begin(ctx, q.Name, &e)
		}
		return err
	})
	if err != nil {
		h.fail(o, err)
		return nil
	}
	h.out = proto.AppendInfoExport(h.out, o, e.Size, h.transmissionFlags(q.Name, e))
	// Asked for or not: a client that heeds it is spared a refusal later.
	h.out = proto.AppendInfoBlockSize(h.out, o, e.BlockSize)
	if q.Wants(proto.InfoName) {
		h.out = proto.AppendInfoText(h.out, o, proto.InfoName, e.Name)
	}
	if q.Wants(proto.InfoDescription) {
		h.out = proto.AppendInfoText(h.out, o, proto.InfoDescription, e.Description)
	}
	h.ack(o)
	return nil
}

// exportName is the old way to begin. It cannot tell of errors but by hanging up.
func (h *handshake) exportName(_ proto.Option, data []byte) error {
	name, err := proto.DecodeName(data)
	if err != nil {
		return err
	}
	if h.agreed.style == proto.Extended {
		return fault.Newf(fault.Invalid, "nbd.handshake", h.peer, "EXPORT_NAME after EXTENDED_HEADERS")
	}
	if h.access(name) == accessNone {
		return fault.Newf(fault.Denied, "nbd.handshake", h.peer, "%s may not see export %s", h.proved, name)
	}
	var e target.Export
	err = h.ours(func(ctx context.Context) error { return h.begin(ctx, name, &e) })
	if err != nil {
		return err
	}
	h.out = proto.AppendExportNameReply(h.out, e.Size, h.transmissionFlags(name, e), h.flags.NoZeroes)
	return nil
}

// transmissionFlags are those of export name, described by e, for this client.
func (h *handshake) transmissionFlags(name string, e target.Export) uint16 {
	contexts := len(h.agreed.contexts) > 0 && h.agreed.about == name
	return proto.TransmissionFlags(e.ReadOnly || h.access(name) < accessWrite, h.agreed.style, contexts)
}

// begin opens a session and takes from it what e says of size and access: they
// may differ from what the catalog knew.
func (h *handshake) begin(ctx context.Context, name string, e *target.Export) error {
	s := h.agreed.early
	h.agreed.early = opened{}
	if s.session == nil || s.export != name {
		s.close()
		var err error
		if s, err = h.open(ctx, name); err != nil {
			return err
		}
	}
	if h.srv.conns.Stopping() || !h.ec.Choose() {
		s.close()
		return fault.Newf(fault.Unavailable, "nbd.open", name, "the server is shutting down or has no room")
	}
	e.Size, e.BlockSize, e.ReadOnly = s.session.Size(), s.session.BlockSize(), s.session.ReadOnly()
	h.done = &negotiated{opened: s, readOnly: h.access(name) < accessWrite && !mutant.On("write-anyway"), style: h.agreed.style}
	if h.agreed.about == name || mutant.On("stale-contexts") {
		h.done.contexts = h.agreed.contexts
	}
	return nil
}

func (o opened) close() {
	if o.session != nil {
		o.session.Close()
	}
}

// letGo forgets what options changed.
func (h *handshake) letGo() {
	h.agreed.early.close()
	h.agreed, h.who = agreed{}, nil
}

// setStyle answers STRUCTURED_REPLY and EXTENDED_HEADERS.
func (h *handshake) setStyle(o proto.Option, data []byte) error {
	switch {
	case len(data) != 0:
		h.refuse(o, proto.RepErrInvalid, "this option takes no data")
	case o == proto.OptExtendedHeaders:
		h.agreed.style = proto.Extended
		h.ack(o)
	case h.agreed.style == proto.Extended:
		h.refuse(o, proto.RepErrExtHeaderReqd, "extended headers are agreed on already")
	default:
		h.agreed.style = proto.Structured
		h.ack(o)
	}
	return nil
}

func (h *handshake) ack(o proto.Option) {
	h.out = proto.AppendOptionReply(h.out, o, proto.RepAck, nil)
}

// malformed replies that the data of an option cannot be read.
func (h *handshake) malformed(o proto.Option, err error) {
	if proto.TooBig(err) {
		h.refuse(o, proto.RepErrTooBig, err.Error())
	} else {
		h.fail(o, err)
	}
}

// fail replies with what became of err.
func (h *handshake) fail(o proto.Option, err error) {
	h.refuse(o, proto.ReplyOf(err), err.Error())
}

func (h *handshake) refuse(o proto.Option, r proto.Reply, text string) {
	h.out = proto.AppendError(h.out, o, r, text)
}

func (h *handshake) flush() error {
	b := h.out
	h.out = h.out[:0]
	_, err := h.nc.Write(b)
	return err
}

// limit arms the time that the client has for all of its negotiation.
func (h *handshake) limit() {
	if h.until.IsZero() {
		h.until = time.Now().Add(h.srv.cfg.HandshakeTimeout)
	}
	h.nc.SetDeadline(h.until)
	if h.srv.conns.Stopping() {
		h.nc.SetReadDeadline(edge.Past) // see edge.Server.Drain
	}
}

// ours calls f, bounded by OpenTimeout, and does not count the time that it
// takes against the client's.
func (h *handshake) ours(f func(context.Context) error) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), h.srv.cfg.OpenTimeout)
	err := f(ctx)
	cancel()
	h.until = h.until.Add(time.Since(start))
	h.limit()
	return err
}

// readError explains why there is no more input; io.EOF if the client left.
func (h *handshake) readError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && h.srv.conns.Stopping():
		return edge.ErrDrain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.Newf(fault.Timeout, "nbd.handshake", h.peer,
			"not negotiated within %v", h.srv.cfg.HandshakeTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	}
	return err
}
