package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// converse gives a server of its own all of input as one client, and fails if
// the server does not end well.
func converse(t *testing.T, input []byte, set func(*nbd.Config)) {
	mem := targettest.NewMemory(64<<10, 512)
	mem.Snapshot("s")
	var e targettest.Exports
	e.Add("v", mem)
	e.Add("v@s", mem.Snapshot("t"))
	cfg := nbd.Config{Exports: &e}
	if set != nil {
		set(&cfg)
	}
	s, err := nbd.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := newPipes()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := l.dial()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	drained := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c)
		close(drained)
	}()
	c.Write(input)
	c.Close()
	<-drained
	s.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if opened := e.Opened(); opened < mem.Closed() || opened > mem.Closed()+1 { // v@s is another device
		t.Errorf("%d sessions opened, %d closed", opened, mem.Closed())
	}
	if st := s.Stats(); st.Connections != 0 {
		t.Errorf("%+v", st)
	}
}

func hello(options ...[]byte) []byte {
	return append([]byte{0, 0, 0, 3}, bytes.Join(options, nil)...)
}

func FuzzHandshake(f *testing.F) {
	option := func(o proto.Option, data []byte) []byte { return proto.AppendOption(nil, o, data) }
	f.Add([]byte{0, 0, 0, 1})
	f.Add(hello(option(proto.OptList, nil), option(proto.OptAbort, nil)))
	f.Add(hello(option(proto.OptInfo, query("v", proto.InfoName, proto.InfoDescription, proto.InfoBlockSize)), option(proto.OptExportName, []byte("v"))))
	f.Add(hello(option(proto.OptStructuredReply, nil), option(proto.OptListMetaContext, meta("v")), option(proto.OptGo, query("v@s"))))
	f.Add(hello(option(proto.OptExtendedHeaders, nil), option(proto.OptSetMetaContext, meta("v", "base:allocation", "gabion:dirty:s")), option(proto.OptGo, query("v"))))
	f.Add(hello(option(proto.OptStartTLS, nil), []byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 3}))
	a := newAuthority(f)
	cfg := a.server()
	rules, _ := nbd.ParseRules([]byte("anonymous v read"))
	f.Fuzz(func(t *testing.T, input []byte) {
		converse(t, input, nil)
		converse(t, input, func(c *nbd.Config) { c.TLS, c.Rules = cfg, rules })
	})
}

func FuzzTransmission(f *testing.F) {
	for style := range 3 {
		s := proto.Style(style)
		r := rand.New(rand.NewPCG(uint64(style), 1))
		var b []byte
		for _, c := range []proto.Command{0, 1, 3, 4, 5, 6, 7, 0, 9, 2} {
			q := proto.Request{Cmd: c, Flags: uint16(r.IntN(2)), Cookie: r.Uint64(), Offset: uint64(r.IntN(100)) * 512, Length: uint64(1+r.IntN(8)) * 512}
			if c == proto.CmdWrite && s == proto.Extended {
				q.Flags |= proto.FlagPayloadLen
			}
			b = s.AppendRequest(b, q)
			b = append(b, bytes.Repeat([]byte{byte(c)}, int(q.Payload(s)))...)
		}
		f.Add(byte(style), b)
	}
	f.Add(byte(2), append(proto.Extended.AppendRequest(nil, proto.Request{Cmd: 7, Flags: proto.FlagPayloadLen, Length: 16}),
		proto.AppendStatusQuery(nil, 4096, []uint32{0, 1})...))
	f.Fuzz(func(t *testing.T, style byte, input []byte) {
		var options [][]byte
		switch proto.Style(style % 3) {
		case proto.Structured:
			options = append(options, proto.AppendOption(nil, proto.OptStructuredReply, nil))
		case proto.Extended:
			options = append(options, proto.AppendOption(nil, proto.OptExtendedHeaders, nil))
		}
		if style%3 != 0 {
			options = append(options, proto.AppendOption(nil, proto.OptSetMetaContext, meta("v", "base:allocation", "gabion:dirty:s")))
		}
		options = append(options, proto.AppendOption(nil, proto.OptGo, query("v")), input)
		converse(t, hello(options...), nil)
	})
}

// Everything that a hostile client can do at once, and one that wants to work
// beside it. The server must not run out of memory or time for the latter.
func TestHostileClientsDisturbNobody(t *testing.T) {
	e, _ := pool()
	for i := range 200 {
		e.Add(fmt.Sprintf("crowd-%d", i), targettest.NewMemory(1<<20, 4096))
	}
	slow := targettest.NewMemory(64<<20, 512)
	slow.Delay = time.Millisecond
	e.Add("slow", slow)
	a := newAuthority(t)
	s, addr := start(t, e, func(c *nbd.Config) {
		c.TLS, c.ConnectionsMax = a.server(), 400
		c.BytesMax, c.MemoryMax = 34<<20, 64<<20
	})
	c, err := nbdclient.Open(nbdclient.Options{Addr: addr, Export: "a", Style: nbdclient.Structured})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := memory()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	kinds := hostiles(a)
	for i := range 4 * len(kinds) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				nc.SetDeadline(time.Now().Add(200 * time.Millisecond))
				kinds[i%len(kinds)](nc)
				nc.Close()
			}
		})
	}
	var worst time.Duration
	peak := uint64(0)
	r := rand.New(rand.NewPCG(1, 1))
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		p := bytes.Repeat([]byte{byte(r.IntN(255))}, 4096*(1+r.IntN(16)))
		off := int64(r.IntN(1000)) * 4096
		begin := time.Now()
		if err := c.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(p))
		if err := c.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
			t.Fatal("a read beside hostile clients: ", err)
		}
		worst = max(worst, time.Since(begin))
		if r.IntN(50) == 0 {
			peak = max(peak, memory())
		}
	}
	close(stop)
	wg.Wait()
	if peak > before+256<<20 {
		t.Errorf("hostile clients use %d MiB", (peak-before)>>20)
	}
	if worst > 15*time.Second { // the bound is generous: the machine may be busy with more than this
		t.Errorf("a write and a read took %v", worst)
	}
	until(t, "all but one have left", func() bool { return s.Stats().Connections == 1 })
	if held := s.Stats().BytesHeld; held > 1<<20 {
		t.Errorf("%d bytes are still held", held)
	}
}

// hostiles are the ways to be one; each ends when its connection does.
func hostiles(a *authority) []func(nc net.Conn) {
	flood := func(nc net.Conn, first, again []byte) {
		go io.Copy(io.Discard, nc)
		nc.Write(first)
		for {
			if _, err := nc.Write(again); err != nil {
				return
			}
		}
	}
	deaf := func(nc net.Conn, first, again []byte) { // takes no answer
		nc.Write(first)
		for {
			if _, err := nc.Write(again); err != nil {
				return
			}
		}
	}
	option := func(o proto.Option, data []byte) []byte { return proto.AppendOption(nil, o, data) }
	wait := func(nc net.Conn) { io.Copy(io.Discard, nc) }
	queries := make([]string, proto.QueriesMax)
	for i := range queries {
		queries[i] = "gabion:"
	}
	style := option(proto.OptStructuredReply, nil)
	enter := hello(style, option(proto.OptSetMetaContext, meta("slow", "base:allocation")), option(proto.OptGo, query("slow")))
	request := func(r proto.Request) []byte { return proto.Structured.AppendRequest(nil, r) }
	return []func(nc net.Conn){
		func(nc net.Conn) { wait(nc) },
		func(nc net.Conn) { nc.Write([]byte{0, 0}); wait(nc) },
		func(nc net.Conn) { flood(nc, hello(), option(proto.OptList, nil)) },
		func(nc net.Conn) { deaf(nc, hello(), option(proto.OptList, nil)) },
		func(nc net.Conn) { flood(nc, hello(), option(99, make([]byte, proto.OptionMax))) },
		func(nc net.Conn) {
			flood(nc, hello(style), option(proto.OptListMetaContext, meta("slow", queries...)))
		},
		func(nc net.Conn) { flood(nc, hello(), option(proto.OptGo, query("nope"))) },
		func(nc net.Conn) { nc.Write(hello(option(proto.OptStartTLS, nil))); wait(nc) },
		func(nc net.Conn) { flood(nc, hello(option(proto.OptStartTLS, nil)), make([]byte, 4096)) },
		func(nc net.Conn) {
			nc.Write(hello()[:4])
			nc.Write([]byte("IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"))
			wait(nc)
		},
		func(nc net.Conn) {
			deaf(nc, enter, request(proto.Request{Cmd: proto.CmdRead, Length: proto.PayloadMax}))
		},
		func(nc net.Conn) {
			deaf(nc, enter, request(proto.Request{Cmd: proto.CmdBlockStatus, Length: 64 << 20}))
		},
		func(nc net.Conn) {
			flood(nc, enter, request(proto.Request{Cmd: proto.CmdCache, Length: 64 << 20}))
		},
		func(nc net.Conn) { // a header that promises, and no data
			nc.Write(append(enter, request(proto.Request{Cmd: proto.CmdWrite, Length: proto.PayloadMax})...))
			wait(nc)
		},
		func(nc net.Conn) {
			nc.Write(append(enter, request(proto.Request{Cmd: proto.CmdWrite, Length: 1<<32 - 1})...))
			wait(nc)
		},
	}
}
