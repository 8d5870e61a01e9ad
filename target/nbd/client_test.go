package nbd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd/proto"
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
	w.send(append(proto.AppendRequest(nil, r), data...))
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

// device is a client as a target.Session: the shared suites run over it.
type device struct {
	nc    net.Conn
	size  int64
	block int
	cutOK func() // waits until the server let go of the session

	wmu sync.Mutex

	mu      sync.Mutex
	next    uint64
	pending map[uint64]call
	dead    bool
	cut     bool
	joined  chan struct{}
}

type call struct {
	p    []byte // of a read
	done func(error)
}

func open(t testing.TB, network, addr, name string) (*device, error) {
	w := dial(t, network, addr).flags()
	r, text, items := w.option(proto.OptGo, query(name, proto.InfoBlockSize))
	if r != proto.RepAck {
		return nil, fmt.Errorf("GO: %#x %s", r, text)
	}
	w.SetDeadline(time.Time{})
	d := &device{nc: w.Conn, pending: map[uint64]call{}, joined: make(chan struct{})}
	for _, i := range items {
		switch proto.Info(be16(i)) {
		case proto.InfoExport:
			d.size = int64(be64(i[2:]))
		case proto.InfoBlockSize:
			d.block = int(be32(i[2:]))
		}
	}
	go d.receive(w.in)
	return d, nil
}

func (d *device) receive(in *bufio.Reader) {
	defer close(d.joined)
	var b [proto.SimpleReplySize]byte
	var err error
	for {
		if _, err = io.ReadFull(in, b[:]); err != nil {
			break
		}
		e, cookie, derr := proto.DecodeSimpleReply(b[:])
		d.mu.Lock()
		c, ok := d.pending[cookie]
		delete(d.pending, cookie)
		d.mu.Unlock()
		if derr != nil || !ok {
			panic(fmt.Sprintf("reply %x: %v, known %v", b, derr, ok))
		}
		if e != proto.OK {
			c.done(errnoError(e))
			continue
		}
		if _, err = io.ReadFull(in, c.p); err != nil {
			c.done(err)
			break
		}
		c.done(nil)
	}
	d.mu.Lock()
	cut := d.cut
	d.mu.Unlock()
	if cut {
		d.cutOK() // the server may still carry out what it had received
	}
	d.mu.Lock()
	d.dead = true
	lost := d.pending
	d.pending = nil
	d.mu.Unlock()
	for _, c := range lost {
		c.done(err)
	}
}

// errnoError turns a refusal back into what the contract has for it.
func errnoError(e proto.Errno) error {
	k := fault.Internal
	switch e {
	case proto.EINVAL, proto.ENOSPC:
		k = fault.Invalid
	case proto.EPERM:
		k = fault.ReadOnly
	}
	return fault.Newf(k, "nbd.client", "", "%v", e)
}

func (d *device) call(r proto.Request, data, p []byte, done func(error)) {
	d.mu.Lock()
	if d.dead {
		d.mu.Unlock()
		done(net.ErrClosed)
		return
	}
	d.next++
	r.Cookie = d.next
	d.pending[r.Cookie] = call{p, done}
	d.mu.Unlock()
	d.wmu.Lock()
	defer d.wmu.Unlock()
	d.nc.Write(append(proto.AppendRequest(nil, r), data...)) // a failure reaches receive too
}

func flagsOf(fua bool) uint16 {
	if fua {
		return proto.FlagFUA
	}
	return 0
}

func (d *device) Size() int64                  { return d.size }
func (d *device) BlockSize() int               { return d.block }
func (d *device) ReadOnly() bool               { return false }
func (d *device) TryReadAt([]byte, int64) bool { return false }
func (d *device) Kick()                        {}

func (d *device) ReadAt(_ context.Context, p []byte, off int64) error {
	c := make(chan error, 1)
	d.call(proto.Request{Cmd: proto.CmdRead, Offset: uint64(off), Length: uint32(len(p))}, nil, p,
		func(err error) { c <- err })
	return <-c
}

func (d *device) Write(p []byte, off int64, fua bool, done func(error)) {
	d.call(proto.Request{Cmd: proto.CmdWrite, Flags: flagsOf(fua), Offset: uint64(off), Length: uint32(len(p))}, p, nil, done)
}

func (d *device) Flush(done func(error)) { d.call(proto.Request{Cmd: proto.CmdFlush}, nil, nil, done) }

func (d *device) Zero(off, n int64, fua bool, done func(error)) {
	d.call(proto.Request{Cmd: proto.CmdWriteZeroes, Flags: flagsOf(fua) | proto.FlagFastZero | proto.FlagNoHole,
		Offset: uint64(off), Length: uint32(n)}, nil, nil, done)
}

func (d *device) Trim(off, n int64, fua bool, done func(error)) {
	d.call(proto.Request{Cmd: proto.CmdTrim, Flags: flagsOf(fua), Offset: uint64(off), Length: uint32(n)}, nil, nil, done)
}

// Close disconnects properly.
func (d *device) Close() {
	d.wmu.Lock()
	d.nc.Write(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdDisc}))
	d.wmu.Unlock()
	<-d.joined
	d.nc.Close()
}

// Cut drops the connection without a word.
func (d *device) Cut() {
	d.mu.Lock()
	d.cut = true
	d.mu.Unlock()
	d.nc.Close()
	<-d.joined
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
func be32(b []byte) uint32 { return uint32(be16(b))<<16 | uint32(be16(b[2:])) }
func be64(b []byte) uint64 { return uint64(be32(b))<<32 | uint64(be32(b[4:])) }
