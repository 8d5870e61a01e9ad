package nbd_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// wire is a raw connection for tests that speak the protocol byte by byte.
type wire struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
}

// dial connects and checks the greeting.
func dial(t testing.TB, network, addr string) *wire {
	t.Helper()
	nc, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	w := &wire{t: t, Conn: nc, in: bufio.NewReaderSize(nc, 1<<16)}
	t.Cleanup(func() { nc.Close() })
	want := proto.AppendGreeting(nil)
	if got := w.take(len(want)); string(got) != string(want) {
		t.Fatalf("greeting %x", got)
	}
	return w
}

func (w *wire) send(b []byte) {
	w.t.Helper()
	if _, err := w.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) take(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w.in, b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *wire) flags() *wire {
	w.send(proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true, NoZeroes: true}))
	return w
}

// reply reads one reply to option o.
func (w *wire) reply(o proto.Option) (proto.Reply, []byte) {
	w.t.Helper()
	h, err := proto.DecodeOptionReplyHeader(w.take(proto.OptionReplyHeaderSize))
	if err != nil || h.Option != o {
		w.t.Fatalf("reply %+v to option %d: %v", h, o, err)
	}
	return h.Reply, w.take(h.Length)
}

// replies reads all replies to option o and returns the last, and the data of
// the others.
func (w *wire) replies(o proto.Option) (last proto.Reply, text string, items [][]byte) {
	w.t.Helper()
	for {
		r, data := w.reply(o)
		if r != proto.RepServer && r != proto.RepInfo {
			return r, string(data), items
		}
		items = append(items, data)
	}
}

func (w *wire) option(o proto.Option, data []byte) (proto.Reply, string, [][]byte) {
	w.t.Helper()
	w.send(proto.AppendOption(nil, o, data))
	return w.replies(o)
}

func query(name string, infos ...proto.Info) []byte {
	return proto.AppendExportQuery(nil, proto.ExportQuery{Name: name, Infos: infos})
}

// enter negotiates export name.
func (w *wire) enter(name string) *wire {
	w.t.Helper()
	if r, text, _ := w.flags().option(proto.OptGo, query(name)); r != proto.RepAck {
		w.t.Fatalf("GO %s: %#x %s", name, r, text)
	}
	return w
}

func (w *wire) request(r proto.Request, data ...byte) {
	w.t.Helper()
	w.send(append(proto.Simple.AppendRequest(nil, r), data...))
}

// answer reads one reply, with n bytes of data if it succeeded.
func (w *wire) answer(n int) (e proto.Errno, cookie uint64, data []byte) {
	w.t.Helper()
	e, cookie, err := proto.DecodeSimpleReply(w.take(proto.SimpleReplySize))
	if err != nil {
		w.t.Fatal(err)
	}
	if e == proto.OK {
		data = w.take(n)
	}
	return e, cookie, data
}

// ends checks that the server hangs up, and returns what it sent before.
func (w *wire) ends() []byte {
	w.t.Helper()
	b, err := io.ReadAll(w.in)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		w.t.Fatal("the server does not hang up")
	}
	return b
}

// open is a client with simple replies as a device: the shared suites run over it.
func open(t testing.TB, network, addr, name string) (*nbdclient.Device, error) {
	return openStyle(t, network, addr, name, nbdclient.Simple)
}

func openStyle(t testing.TB, network, addr, name string, style nbdclient.Style) (*nbdclient.Device, error) {
	t.Helper()
	o := nbdclient.Options{Network: network, Addr: addr, Export: name, Style: style}
	if style != nbdclient.Simple {
		o.Contexts = []string{nbdclient.ContextAllocation}
	}
	c, err := nbdclient.Open(o)
	if err != nil {
		return nil, err
	}
	return nbdclient.NewDevice(c, 1), nil
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
func be32(b []byte) uint32 { return uint32(be16(b))<<16 | uint32(be16(b[2:])) }
func be64(b []byte) uint64 { return uint64(be32(b))<<32 | uint64(be32(b[4:])) }

const errPerm = syscall.EPERM

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 1<<16) }
