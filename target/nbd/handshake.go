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
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// negotiated is what the handshake leads to.
type negotiated struct {
	export  string
	session target.Session
	gone    <-chan struct{}
	rest    []byte // input that came with the last option
}

// handshake is one client's option haggling.
type handshake struct {
	srv   *Server
	c     *client
	nc    net.Conn
	peer  string
	in    *bufio.Reader
	out   []byte // replies not written yet
	flags proto.ClientFlags
	until time.Time
	who   *target.Client // nil for a client that did not say
	done  *negotiated
}

// errAbort ends a connection that the client gave up properly.
var errAbort = errors.New("the client aborted the negotiation")

// options is the table of what this server knows. A handler gets the whole data
// of the option, appends replies to h.out, sets h.done to enter transmission,
// and returns an error only to end the connection.
var options = map[proto.Option]func(h *handshake, o proto.Option, data []byte) error{
	proto.OptExportName: (*handshake).exportName,
	proto.OptAbort:      (*handshake).abort,
	proto.OptList:       (*handshake).list,
	proto.OptInfo:       (*handshake).info,
	proto.OptGo:         (*handshake).info,
	proto.OptSession:    (*handshake).session,
}

// negotiate runs the handshake to its end.
func negotiate(s *Server, c *client) (*negotiated, error) {
	h := &handshake{srv: s, c: c, nc: c.nc, peer: c.peer}
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
			return nil, err
		}
		if err := h.flush(); err != nil {
			if h.done != nil {
				h.done.session.Close()
			}
			return nil, err
		}
		if h.done != nil {
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
	if !known || o == proto.OptAbort { // data, if any, mean nothing
		if _, err := h.in.Discard(n); err != nil {
			return h.readError(err)
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
	if h.srv.draining() {
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
		h.out = proto.AppendServer(h.out, e.Name, e.Description)
		if len(h.out) >= proto.OptionMax { // a pool may have very many
			if err := h.flush(); err != nil {
				return err
			}
		}
	}
	h.out = proto.AppendOptionReply(h.out, o, proto.RepAck, nil)
	return nil
}

// info answers INFO, and GO, which is the same and then enters transmission.
func (h *handshake) info(o proto.Option, data []byte) error {
	q, err := proto.DecodeExportQuery(data)
	if err != nil {
		if fault.Is(err, fault.NoSpace) {
			h.refuse(o, proto.RepErrTooBig, err.Error())
		} else {
			h.fail(o, err)
		}
		return nil
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
	h.out = proto.AppendInfoExport(h.out, o, e.Size, proto.TransmissionFlags(e.ReadOnly))
	// Asked for or not: a client that heeds it is spared a refusal later.
	h.out = proto.AppendInfoBlockSize(h.out, o, e.BlockSize)
	if q.Wants(proto.InfoName) {
		h.out = proto.AppendInfoText(h.out, o, proto.InfoName, e.Name)
	}
	if q.Wants(proto.InfoDescription) {
		h.out = proto.AppendInfoText(h.out, o, proto.InfoDescription, e.Description)
	}
	h.out = proto.AppendOptionReply(h.out, o, proto.RepAck, nil)
	return nil
}

// exportName is the old way to begin. It cannot tell of errors but by hanging up.
func (h *handshake) exportName(_ proto.Option, data []byte) error {
	name, err := proto.DecodeName(data)
	if err != nil {
		return err
	}
	var e target.Export
	err = h.ours(func(ctx context.Context) error { return h.begin(ctx, name, &e) })
	if err != nil {
		return err
	}
	h.out = proto.AppendExportNameReply(h.out, e.Size, proto.TransmissionFlags(e.ReadOnly), h.flags.NoZeroes)
	return nil
}

// begin opens a session and takes from it what e says of size and access: they
// may differ from what the catalog knew.
func (h *handshake) begin(ctx context.Context, name string, e *target.Export) error {
	s, gone, err := h.open(ctx, name)
	if err != nil {
		return err
	}
	if h.srv.draining() || !h.srv.choose(h.c) {
		s.Close()
		return fault.Newf(fault.Unavailable, "nbd.open", name, "the server is shutting down or has no room")
	}
	e.Size, e.BlockSize, e.ReadOnly = s.Size(), s.BlockSize(), s.ReadOnly()
	h.done = &negotiated{export: name, session: s, gone: gone}
	return nil
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
	if h.srv.draining() {
		h.nc.SetReadDeadline(past) // after the flag is set: see Server.drain
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
	case errors.Is(err, os.ErrDeadlineExceeded) && h.srv.draining():
		return errDrain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.Newf(fault.Timeout, "nbd.handshake", h.peer,
			"not negotiated within %v", h.srv.cfg.HandshakeTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	}
	return err
}
