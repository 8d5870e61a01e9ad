package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
)

// pool exports "a" (4 KiB blocks), "b" (512) and "ro".
func pool() (*targettest.Exports, *targettest.Memory) {
	var e targettest.Exports
	a := targettest.NewMemory(64<<20, 4096)
	e.Add("a", a)
	e.Add("b", targettest.NewMemory(1<<20, 512))
	e.Add("ro", targettest.NewReadOnly(1<<20, 4096))
	return &e, a
}

func TestListNamesEveryExport(t *testing.T) {
	e, _ := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	r, _, items := w.option(proto.OptList, nil)
	if r != proto.RepAck || len(items) != 3 {
		t.Fatalf("%#x, %d items", r, len(items))
	}
	if want := "\x00\x00\x00\x01avolume a of a test"; string(items[0]) != want {
		t.Errorf("%q", items[0])
	}
	if r, text, _ := w.option(proto.OptList, []byte{1}); r != proto.RepErrInvalid {
		t.Errorf("LIST with data: %#x %s", r, text)
	}
}

func TestInfoDescribesWithoutOpening(t *testing.T) {
	e, _ := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	all := []proto.Info{proto.InfoName, proto.InfoDescription, proto.InfoBlockSize, 77}
	r, _, items := w.option(proto.OptInfo, query("b", all...))
	if r != proto.RepAck {
		t.Fatalf("%#x", r)
	}
	got := map[proto.Info][]byte{}
	for _, i := range items {
		got[proto.Info(be16(i))] = i[2:]
	}
	if i := got[proto.InfoExport]; be64(i) != 1<<20 || be16(i[8:]) != proto.TransmissionFlags(false, proto.Simple, false) {
		t.Errorf("export %x", i)
	}
	if i := got[proto.InfoBlockSize]; be32(i) != 512 || be32(i[4:]) != 4096 || be32(i[8:]) != 32<<20 {
		t.Errorf("block size %x", i)
	}
	if string(got[proto.InfoName]) != "b" || string(got[proto.InfoDescription]) != "volume b of a test" || len(got) != 4 {
		t.Errorf("%v", got)
	}
	if r, _, items := w.option(proto.OptInfo, query("ro")); r != proto.RepAck ||
		be16(items[0][10:]) != proto.TransmissionFlags(true, proto.Simple, false) {
		t.Errorf("ro: %#x %x", r, items)
	}
	if n := e.Opened(); n != 0 {
		t.Errorf("INFO opened %d sessions", n)
	}
}

func meta(name string, queries ...string) []byte {
	return proto.AppendMetaQuery(nil, proto.MetaQuery{Export: name, Queries: queries})
}

func TestOptionErrorsTellWhy(t *testing.T) {
	e, _ := pool()
	e.Refuse("a", fault.Newf(fault.Busy, "volume attach", "a", "in use on node n2 (10.0.0.2)"))
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	for _, c := range []struct {
		name string
		o    proto.Option
		data []byte
		want proto.Reply
		text string
	}{
		{"unknown export", proto.OptGo, query("nope"), proto.RepErrUnknown, "nope"},
		{"unknown export, info", proto.OptInfo, query("nope"), proto.RepErrUnknown, "no such volume"},
		{"held elsewhere", proto.OptGo, query("a"), proto.RepErrPolicy, "n2"},
		{"structured reply with data", proto.OptStructuredReply, []byte{1}, proto.RepErrInvalid, "no data"},
		{"extended headers with data", proto.OptExtendedHeaders, []byte{1}, proto.RepErrInvalid, "no data"},
		{"starttls", proto.OptStartTLS, nil, proto.RepErrPolicy, "off"},
		{"meta context with simple replies", proto.OptSetMetaContext, meta("a"), proto.RepErrInvalid, "structured"},
		{"peek export, withdrawn", 4, nil, proto.RepErrUnsup, "4"},
		{"unknown with data", 12345, make([]byte, proto.OptionMax), proto.RepErrUnsup, "12345"},
		{"short query", proto.OptGo, []byte{0, 0}, proto.RepErrInvalid, ""},
		{"lying query", proto.OptGo, []byte{0xff, 0xff, 0xff, 0xff, 0, 0}, proto.RepErrInvalid, ""},
		{"long name", proto.OptGo, query(strings.Repeat("x", proto.NameMax+1)), proto.RepErrTooBig, "4096"},
		{"name with NUL", proto.OptGo, query("a\x00"), proto.RepErrInvalid, "NUL"},
	} {
		r, text, _ := w.option(c.o, c.data)
		if r != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %#x %q, want %#x with %q", c.name, r, text, c.want, c.text)
		}
	}
	e.Refuse("a", nil)
	w.option(proto.OptGo, query("a")) // the connection is as good as new
	w.request(proto.Request{Cmd: proto.CmdFlush, Cookie: 5})
	if e, cookie, _ := w.answer(0); e != proto.OK || cookie != 5 {
		t.Error("flush after failed options: ", e, cookie)
	}
}

func TestExportNameBeginsOrHangsUp(t *testing.T) {
	e, _ := pool()
	_, addr := start(t, e, nil)
	for _, c := range []struct {
		flags proto.ClientFlags
		n     int
	}{
		{proto.ClientFlags{FixedNewstyle: true, NoZeroes: true}, 10},
		{proto.ClientFlags{FixedNewstyle: true}, 134},
		{proto.ClientFlags{}, 134},
	} {
		w := dial(t, "tcp", addr)
		w.send(proto.AppendClientFlags(nil, c.flags))
		w.send(proto.AppendOption(nil, proto.OptExportName, []byte("b")))
		b := w.take(c.n)
		if be64(b) != 1<<20 || be16(b[8:]) != proto.TransmissionFlags(false, proto.Simple, false) || !bytes.Equal(b[10:], make([]byte, c.n-10)) {
			t.Errorf("%+v: %x", c.flags, b)
		}
		w.request(proto.Request{Cmd: proto.CmdFlush, Cookie: 1})
		w.answer(0)
	}
	for _, name := range []string{"nope", strings.Repeat("x", 5000), "a\xff"} {
		w := dial(t, "tcp", addr).flags()
		w.send(proto.AppendOption(nil, proto.OptExportName, []byte(name)))
		if b := w.ends(); len(b) > 0 {
			t.Errorf("%.10s: answered %x", name, b)
		}
	}
}

func TestAbortIsAcknowledged(t *testing.T) {
	e, _ := pool()
	var log logLines
	_, addr := start(t, e, func(c *nbd.Config) { c.Log = log.logger() })
	for _, data := range [][]byte{nil, []byte("whatever")} {
		w := dial(t, "tcp", addr).flags()
		if r, _, _ := w.option(proto.OptAbort, data); r != proto.RepAck {
			t.Errorf("%#x", r)
		}
		w.ends()
	}
	if s := log.String(); s != "" {
		t.Error("logged: ", s)
	}
}

// Requests may follow GO in the same segment, before its answer.
func TestRequestsBehindGoAreNotLost(t *testing.T) {
	e, _ := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr)
	b := proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true})
	b = proto.AppendOption(b, proto.OptGo, query("a"))
	b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdWrite, Cookie: 1, Length: 4096})
	b = append(b, bytes.Repeat([]byte{5}, 4096)...)
	b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdRead, Cookie: 2, Length: 4096})
	w.send(b)
	w.replies(proto.OptGo)
	for range 2 { // in either order
		if b, _ := w.in.Peek(proto.SimpleReplySize); b[15] == 1 {
			w.answer(0)
		} else if e, cookie, p := w.answer(4096); e != proto.OK || cookie != 2 || p[0] != 5 {
			t.Error(e, cookie)
		}
	}
}

func TestMalformedHandshakeEndsWithOneLine(t *testing.T) {
	e, _ := pool()
	var log logLines
	s, addr := start(t, e, func(c *nbd.Config) { c.Log = log.logger() })
	flags := []byte{0, 0, 0, 3}
	raw := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	cases := []struct {
		name string
		b    []byte
	}{
		{"unknown client flag", []byte{0, 0, 0, 7}},
		{"text", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"bad option magic", raw(flags, []byte("IHAVEOPX"), make([]byte, 8))},
		{"option of 64 KiB + 1", raw(flags, []byte("IHAVEOPT"), []byte{0, 0, 0, 7, 0, 1, 0, 1})},
		{"option of 4 GiB", raw(flags, []byte("IHAVEOPT"), []byte{0, 0, 0, 99, 255, 255, 255, 255})},
		{"LIST without fixed newstyle", raw(make([]byte, 4), proto.AppendOption(nil, proto.OptList, nil))},
	}
	for i, c := range cases {
		w := dial(t, "tcp", addr)
		w.send(c.b)
		w.ends()
		until(t, c.name+" is counted", func() bool { return s.Stats().Malformed == uint64(i+1) })
	}
	if n := log.count("malformed input"); n != len(cases) || strings.Count(log.String(), "\n") != n {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
	// Truncated input is a client that left, whatever it sent before.
	for n := range 24 {
		w := dial(t, "tcp", addr)
		w.send(raw(flags, proto.AppendOption(nil, proto.OptGo, query("a")))[:n])
		w.Close()
	}
	until(t, "all have left", func() bool { return s.Stats().Connections == 0 })
}

func TestOptionFloodEnds(t *testing.T) {
	e, _ := pool()
	s, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	go io.Copy(io.Discard, w.in)
	b := proto.AppendOption(nil, 99, nil)
	for {
		if _, err := w.Write(b); err != nil {
			break
		}
	}
	until(t, "the flood is counted", func() bool { return s.Stats().Malformed == 1 })
}

// A client that sends one byte a second is as slow as one that sends none.
func TestSlowHandshakeEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := pool()
		var log logLines
		s, err := nbd.NewServer(nbd.Config{Exports: e, Log: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		l := newPipes()
		go s.Serve(l)
		c := l.dial()
		go io.Copy(io.Discard, c)
		begin := time.Now()
		b := append([]byte{0, 0, 0, 3}, proto.AppendOption(nil, proto.OptGo, query("a"))...)
		for i := 0; ; i++ {
			time.Sleep(time.Second) // virtual
			if _, err := c.Write(b[i : i+1]); err != nil {
				break
			}
		}
		if d := time.Since(begin); d < 10*time.Second || d > 12*time.Second {
			t.Errorf("hung up after %v", d)
		}
		s.Close()
		if log.count("not negotiated within 10s") != 1 {
			t.Error(log.String())
		}
	})
}

// pipes is a listener of net.Pipe connections, which virtual time understands.
type pipes struct {
	c      chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.c <- b
	return a
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.c:
		return c, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// A thousand clients who say nothing keep nobody out, and cost little.
func TestHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	e, _ := pool()
	s, path := startUnix(t, e, func(c *nbd.Config) { c.ConnectionsMax = 900 })
	d, err := open(t, "unix", path, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	before := memory()
	for i := range 1000 {
		w := dial(t, "unix", path)
		if i%2 == 0 {
			w.send([]byte{0, 0})
		}
	}
	if used := int64(memory()) - int64(before); used > 32<<20 {
		t.Errorf("half-open connections use %d MiB", used>>20)
	}
	if st := s.Stats(); st.Connections > 900 || st.Handshakes < 800 || st.Refused < 100 {
		t.Errorf("%+v", st)
	}
	if err := targettest.Write(d, make([]byte, 4096), 0, false); err != nil {
		t.Error("a session from before: ", err)
	}
	d2, err := open(t, "unix", path, "a")
	if err != nil {
		t.Fatal("a newcomer: ", err)
	}
	d2.Close()
}

func TestConnectionsBeyondTheLimitAreRefused(t *testing.T) {
	e, _ := pool()
	var log logLines
	s, addr := start(t, e, func(c *nbd.Config) { c.ConnectionsMax = 2; c.Log = log.logger() })
	for range 2 {
		d, err := open(t, "tcp", addr, "a")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
	}
	for range 3 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(nc); len(b) != 0 {
			t.Errorf("greeted with %x", b)
		}
		nc.Close()
	}
	// A session counts a moment after its client heard of it.
	until(t, "two sessions, three refused", func() bool {
		st := s.Stats()
		return st.Refused == 3 && fmt.Sprint(st.Sessions) == "map[a:2]"
	})
	if log.count("refused") != 1 {
		t.Error(log.String())
	}
}
