package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// export is what a node says of the volume.
type export struct {
	size        int64
	flags       uint16
	blockSize   int
	description string
}

// wire is a connection in negotiation.
type wire struct {
	node Node
	nc   net.Conn
	in   *bufio.Reader
}

// greet connects to a node, exchanges greetings and starts TLS if secure is
// not nil, all within timeout.
func greet(ctx context.Context, node Node, secure *tls.Config, timeout time.Duration) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	d, network, addr := net.Dialer{Control: impatient}, "tcp", node.Addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		d, network, addr = net.Dialer{}, "unix", path
	}
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "attach", node.String(), err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	w := &wire{node: node, nc: nc, in: bufio.NewReaderSize(nc, 128<<10)}
	err = w.hello()
	if err == nil && secure != nil {
		err = w.startTLS(ctx, secure)
	}
	if err != nil {
		nc.Close()
		if fault.KindOf(err) != fault.Internal {
			return nil, err
		}
		return nil, fault.New(fault.Unavailable, "attach", node.String(), err)
	}
	return w, nil
}

// startTLS has the rest of the connection encrypted.
func (w *wire) startTLS(ctx context.Context, secure *tls.Config) error {
	if _, err := w.option(proto.OptStartTLS, nil); err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(w.node.Addr); err == nil && secure.ServerName == "" {
		secure = secure.Clone()
		secure.ServerName = host
	}
	conn := tls.Client(w.nc, secure)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fault.New(fault.Denied, "attach", w.node.String(), err)
	}
	w.nc, w.in = conn, bufio.NewReaderSize(conn, 128<<10)
	return nil
}

// unackedMax is how long the other machine may leave data unacknowledged before
// the connection counts as lost.
const unackedMax = 5 * time.Second

// impatient tells the kernel of it.
func impatient(_, _ string, c syscall.RawConn) error {
	var err error
	if ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedMax.Milliseconds()))
	}); ctl != nil {
		return ctl
	}
	return err
}

func (w *wire) hello() error {
	var b [proto.GreetingSize]byte
	if _, err := io.ReadFull(w.in, b[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(b[:]) != proto.MagicInit || binary.BigEndian.Uint64(b[8:]) != proto.MagicOption ||
		binary.BigEndian.Uint16(b[16:])&(proto.FlagFixedNewstyle|proto.FlagNoZeroes) != proto.FlagFixedNewstyle|proto.FlagNoZeroes {
		return fault.Newf(fault.Invalid, "attach", w.node.String(), "what listens there is not an NBD server that gabion can use")
	}
	_, err := w.nc.Write(proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true, NoZeroes: true}))
	return err
}

// repliesMax bounds the replies to one option.
const repliesMax = 1000

// option sends an option and returns its information items. A refusal is a
// *refusal.
func (w *wire) option(o proto.Option, data []byte) (items [][]byte, err error) {
	if _, err := w.nc.Write(proto.AppendOption(nil, o, data)); err != nil {
		return nil, err
	}
	for range repliesMax {
		var b [proto.OptionReplyHeaderSize]byte
		if _, err := io.ReadFull(w.in, b[:]); err != nil {
			return nil, err
		}
		h, err := proto.DecodeOptionReplyHeader(b[:])
		if err != nil {
			return nil, err
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(w.in, data); err != nil {
			return nil, err
		}
		switch {
		case h.Option != o:
			return nil, fault.Newf(fault.Invalid, "attach", w.node.String(), "a reply to option %d instead of %d", h.Option, o)
		case h.Reply == proto.RepAck:
			return items, nil
		case h.Reply == proto.RepInfo:
			items = append(items, data)
		default:
			return nil, refused(w.node, h.Reply, string(data))
		}
	}
	return nil, fault.Newf(fault.Invalid, "attach", w.node.String(), "more than %d replies to one option", repliesMax)
}

// refused puts the reply of a node that does not serve the volume in words.
// Unavailable means that the node is not well, Busy that it has a reason.
func refused(n Node, r proto.Reply, text string) error {
	kind := fault.Busy
	switch r {
	case proto.RepErrUnknown:
		kind = fault.NotFound
	case proto.RepErrInvalid:
		kind = fault.Invalid
	case proto.RepErrShutdown:
		kind = fault.Unavailable
	case proto.RepErrTLSReqd:
		return fault.Newf(fault.Denied, "attach", n.String(), "it wants TLS: %s", text)
	case proto.RepErrUnsup:
		return fault.Newf(fault.Invalid, "attach", n.String(), "it does not know clients that come back: it is not gabion, or too old")
	}
	return fault.Newf(kind, "attach", n.String(), "%s", text)
}

var infos = []proto.Info{proto.InfoBlockSize, proto.InfoDescription}

func query(volume string) []byte {
	return proto.AppendExportQuery(nil, proto.ExportQuery{Name: volume, Infos: infos})
}

// enter begins a session; on success the connection is in transmission.
func (w *wire) enter(volume string, who proto.SessionOption) (export, error) {
	if _, err := w.option(proto.OptSession, proto.AppendSessionOption(nil, who)); err != nil {
		return export{}, err
	}
	items, err := w.option(proto.OptGo, query(volume))
	if err != nil {
		return export{}, err
	}
	x := export{blockSize: 1}
	for _, b := range items {
		if len(b) < 2 {
			continue
		}
		switch proto.Info(binary.BigEndian.Uint16(b)) {
		case proto.InfoExport:
			if len(b) == 12 {
				x.size, x.flags = int64(binary.BigEndian.Uint64(b[2:])), binary.BigEndian.Uint16(b[10:])
			}
		case proto.InfoBlockSize:
			if len(b) == 14 {
				x.blockSize = int(binary.BigEndian.Uint32(b[2:]))
			}
		case proto.InfoDescription:
			x.description = string(b[2:])
		}
	}
	return x, x.check(w.node)
}

// check refuses an export that a device cannot be made of.
func (x export) check(n Node) error {
	if x.blockSize < 1 || x.blockSize > 4096 || x.blockSize&(x.blockSize-1) != 0 || x.size <= 0 || x.size%int64(x.blockSize) != 0 {
		return fault.Newf(fault.Invalid, "attach", n.String(), "an export of %d bytes in blocks of %d", x.size, x.blockSize)
	}
	want := proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA
	if x.flags&proto.FlagReadOnly == 0 {
		want |= proto.FlagSendTrim | proto.FlagSendWriteZeroes
	} else {
		want = proto.FlagHasFlags
	}
	if x.flags&want != want {
		return fault.Newf(fault.Invalid, "attach", n.String(), "it lacks a command that is needed: flags %#x", x.flags)
	}
	return nil
}

// probe asks a node whether it lives and would serve the volume, without
// attaching it.
func probe(ctx context.Context, node Node, secure *tls.Config, volume string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	w, err := greet(ctx, node, secure, timeout)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	stop := context.AfterFunc(ctx, func() { w.nc.Close() })
	defer stop()
	if _, err := w.option(proto.OptInfo, query(volume)); err != nil && !fault.Is(err, fault.Busy) && !fault.Is(err, fault.NotFound) {
		return err
	}
	_, _ = w.nc.Write(proto.AppendOption(nil, proto.OptAbort, nil)) // it may hang up first
	return nil
}
