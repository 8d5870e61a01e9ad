package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
)

// held is a device whose operations end only when the test says so.
type held struct {
	*targettest.Memory
	mu      sync.Mutex
	waiting []func()
	arrived chan struct{} // one for each operation
	// cancelled gets one for each read that its context ended.
	cancelled chan struct{}
}

func newHeld(size int64) *held {
	return &held{Memory: targettest.NewMemory(size, 4096), arrived: make(chan struct{}, 1<<16),
		cancelled: make(chan struct{}, 1<<16)}
}

func (h *held) hold(f func()) {
	h.mu.Lock()
	h.waiting = append(h.waiting, f)
	h.mu.Unlock()
	h.arrived <- struct{}{}
}

// release ends everything that waits and tells how much it was.
func (h *held) release() int {
	h.mu.Lock()
	w := h.waiting
	h.waiting = nil
	h.mu.Unlock()
	for _, f := range w {
		f()
	}
	return len(w)
}

func (h *held) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.waiting)
}

func (h *held) TryReadAt([]byte, int64) bool { return false }

func (h *held) ReadAt(ctx context.Context, p []byte, off int64) error {
	done := make(chan struct{})
	h.hold(func() { close(done) })
	select {
	case <-done:
		return h.Memory.ReadAt(ctx, p, off)
	case <-ctx.Done():
		h.cancelled <- struct{}{}
		return ctx.Err()
	}
}

func (h *held) Write(p []byte, off int64, fua bool, done func(error)) {
	h.Memory.Write(p, off, fua, func(err error) { h.hold(func() { done(err) }) })
}

func (h *held) Flush(done func(error)) {
	h.Memory.Flush(func(err error) { h.hold(func() { done(err) }) })
}

func serveHeld(t *testing.T, h target.Session, set func(*nbd.Config)) (*targettest.Exports, *nbd.Server, string) {
	var e targettest.Exports
	e.Add("v", h)
	s, addr := start(t, &e, set)
	return &e, s, addr
}

func TestSessionEndsAfterItsOperations(t *testing.T) {
	h := newHeld(1 << 20)
	_, s, addr := serveHeld(t, h, nil)
	w := dial(t, "tcp", addr).enter("v")
	for i := range 10 {
		w.request(proto.Request{Cmd: proto.CmdWrite, Offset: uint64(i) * 4096, Length: 4096}, make([]byte, 4096)...)
	}
	w.request(proto.Request{Cmd: proto.CmdRead, Length: 4096})
	for range 11 {
		<-h.arrived
	}
	w.Conn.(*net.TCPConn).SetLinger(0) // dies with a reset
	w.Close()
	<-h.cancelled // the read: the server knows
	if h.Closed() != 0 {
		t.Error("the session was closed with operations under way")
	}
	h.release()
	until(t, "the session is closed", func() bool { return h.Closed() == 1 })
	until(t, "the connection is gone", func() bool { return s.Stats().Connections == 0 })
}

// After DISC everything under way is still answered.
func TestDisconnectWaitsForAnswers(t *testing.T) {
	h := newHeld(1 << 20)
	_, _, addr := serveHeld(t, h, nil)
	w := dial(t, "tcp", addr).enter("v")
	for i := range 5 {
		w.request(proto.Request{Cmd: proto.CmdFlush, Cookie: uint64(i)})
	}
	w.request(proto.Request{Cmd: proto.CmdDisc})
	for range 5 {
		<-h.arrived
	}
	h.release()
	if b := w.ends(); len(b) != 5*proto.SimpleReplySize {
		t.Errorf("%d bytes of answers", len(b))
	}
	if h.Closed() != 1 {
		t.Error("closed ", h.Closed())
	}
}

func TestLostAttachmentEndsItsConnections(t *testing.T) {
	h := newHeld(1 << 20)
	e, s, addr := serveHeld(t, h, nil)
	a, b := dial(t, "tcp", addr).enter("v"), dial(t, "tcp", addr).enter("v")
	a.request(proto.Request{Cmd: proto.CmdFlush})
	b.request(proto.Request{Cmd: proto.CmdRead, Length: 4096})
	<-h.arrived
	<-h.arrived
	e.Lose("v")
	a.ends()
	b.ends()
	h.release()
	until(t, "both sessions are closed", func() bool { return h.Closed() == 2 && s.Stats().Connections == 0 })
	c := dial(t, "tcp", addr).enter("v") // a new attachment
	c.request(proto.Request{Cmd: proto.CmdFlush})
	<-h.arrived
	h.release()
	c.answer(0)
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	h := newHeld(1 << 20)
	_, s, addr := serveHeld(t, h, nil)
	w := dial(t, "tcp", addr).enter("v")
	idle := dial(t, "tcp", addr).enter("v")
	half := dial(t, "tcp", addr).flags()
	for i := range 3 {
		w.request(proto.Request{Cmd: proto.CmdFlush, Cookie: uint64(i)})
		<-h.arrived
	}
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	idle.ends()
	half.ends()
	if nc, err := net.Dial("tcp", addr); err == nil {
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if b, _ := io.ReadAll(nc); len(b) > 0 {
			t.Error("a newcomer is greeted")
		}
		nc.Close()
	}
	select {
	case err := <-done:
		t.Fatal("shut down with operations in flight: ", err)
	default:
	}
	h.release()
	if b := w.ends(); len(b) != 3*proto.SimpleReplySize {
		t.Errorf("%d bytes of answers", len(b))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	h := newHeld(1 << 20)
	_, s, addr := serveHeld(t, h, nil)
	w := dial(t, "tcp", addr).enter("v")
	w.request(proto.Request{Cmd: proto.CmdFlush})
	<-h.arrived
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.ends()
	h.release()
}

// lastRead is a device whose first read does something on the way.
type lastRead struct {
	*targettest.Memory
	first func()
	reads atomic.Int32
}

func (d *lastRead) TryReadAt(p []byte, off int64) bool {
	if d.reads.Add(1) == 1 {
		d.first()
	}
	return d.Memory.TryReadAt(p, off)
}

// What a connection sent before it ended is not carried out after: it may be
// thousands of reads, which nobody hears of and the client's next session waits for.
func TestNothingIsTakenUpAfterTheEnd(t *testing.T) {
	d := &lastRead{Memory: targettest.NewMemory(1<<20, 4096)}
	e, s, addr := serveHeld(t, d, nil)
	w := dial(t, "tcp", addr).enter("v")
	d.first = func() {
		e.Lose("v")
		io.Copy(io.Discard, w.in) // until the server has hung up
	}
	var b []byte
	for range 1000 { // one segment
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdRead, Length: 4096})
	}
	w.send(b)
	until(t, "it is gone", func() bool { return s.Stats().Connections == 0 })
	if n := d.reads.Load(); n != 1 {
		t.Errorf("%d reads after the connection ended", n-1)
	}
}

// A client that sends and never reads is not read from any further, keeps a
// bounded amount of memory, and disturbs nobody.
func TestClientThatTakesNoReplies(t *testing.T) {
	mem := targettest.NewMemory(64<<20, 4096)
	_, s, addr := serveHeld(t, mem, func(c *nbd.Config) { c.RequestsMax = 64 })
	good, err := open(t, "tcp", addr, "v")
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	for _, n := range []uint64{4096, 256 << 10, 32 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := dial(t, "tcp", addr).enter("v")
			stuck := make(chan struct{})
			go func() { // until nothing more is taken
				defer close(stuck)
				b := proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdRead, Length: n})
				for range 1 << 14 {
					w.SetWriteDeadline(time.Now().Add(time.Second))
					if _, err := w.Write(b); err != nil {
						return
					}
				}
			}()
			<-stuck
			st := s.Stats()
			// One request more counts: the one that waits to be let in.
			if st.BytesHeld > 64<<20+int64(n)+proto.SimpleReplySize || st.InFlight > 65 {
				t.Errorf("%+v", st)
			}
			for range 100 {
				if _, err := targettest.Read(good, 0, 4096); err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			until(t, "it is gone", func() bool { return s.Stats().Connections == 1 })
		})
	}
	until(t, "all is given back", func() bool { return s.Stats().BytesHeld == 0 })
}

func TestStalledClientIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := targettest.NewMemory(1<<20, 4096)
		var e targettest.Exports
		e.Add("v", mem)
		var log logLines
		s, err := nbd.NewServer(nbd.Config{Exports: &e, Log: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		l := newPipes()
		go s.Serve(l)
		c := l.dial()
		b := proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true, NoZeroes: true})
		b = proto.AppendOption(b, proto.OptExportName, []byte("v"))
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdRead, Length: 4096})
		go c.Write(b)
		io.ReadFull(c, make([]byte, len(proto.AppendGreeting(nil))+10))
		begin := time.Now()
		synctest.Wait()
		until(t, "it is cut off", func() bool {
			time.Sleep(time.Second) // virtual; until's own limit is not reached in it
			return time.Since(begin) > 9*time.Second || s.Stats().Connections == 0
		})
		time.Sleep(2*time.Minute - time.Since(begin) - time.Second)
		if s.Stats().Connections != 1 {
			t.Error("cut off too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.Stats().Connections != 0 || mem.Closed() != 1 || log.count("took no reply for 2m0s") != 1 {
			t.Errorf("%+v\n%s", s.Stats(), log.String())
		}
		c.Close()
		s.Close()
	})
}

// What all connections hold together is bounded, and a connection that waits
// for its share gets it when another gives it back.
func TestConnectionsShareTheirMemory(t *testing.T) {
	h := newHeld(64 << 20)
	_, s, addr := serveHeld(t, h, func(c *nbd.Config) { c.BytesMax, c.MemoryMax = 40<<20, 40<<20 })
	var ws []*wire
	for range 4 {
		w := dial(t, "tcp", addr).enter("v")
		w.request(proto.Request{Cmd: proto.CmdRead, Length: 32 << 20})
		ws = append(ws, w)
	}
	small, err := open(t, "tcp", addr, "v")
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	done := make(chan error, 4)
	for _, w := range ws {
		go func() {
			_, err := io.CopyN(io.Discard, w.in, 32<<20+proto.SimpleReplySize)
			done <- err
		}()
	}
	for range 4 {
		<-h.arrived
		if n := h.count(); n != 1 {
			t.Errorf("%d reads of 32 MiB at a time", n)
		}
		go func() { // small requests need no share
			<-h.arrived
			h.release()
		}()
		if _, err := targettest.Read(small, 0, 4096); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all is given back", func() bool { return s.Stats().BytesHeld == 0 })
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	h := newHeld(1 << 20)
	_, _, addr := serveHeld(t, h, func(c *nbd.Config) { c.RequestsMax = 8 })
	w := dial(t, "tcp", addr).enter("v")
	for i := range 50 {
		w.request(proto.Request{Cmd: proto.CmdFlush, Cookie: uint64(i)})
	}
	for got := 0; got < 50; {
		n := min(8, 50-got)
		for range n {
			<-h.arrived
		}
		if c := h.count(); c > 8 {
			t.Fatalf("%d operations in flight", c)
		}
		got += h.release()
		for range n {
			w.answer(0)
		}
	}
}

// The device is kicked when the reader has nothing more, not for each request.
func TestKickComesAfterABurst(t *testing.T) {
	h := newHeld(1 << 20)
	_, _, addr := serveHeld(t, h, nil)
	w := dial(t, "tcp", addr).enter("v")
	var b []byte
	for i := range 32 {
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdFlush, Cookie: uint64(i)})
	}
	w.send(b)
	for range 32 {
		<-h.arrived
	}
	until(t, "the device is kicked", func() bool { return h.Kicks() > 0 })
	if n := h.Kicks(); n > 4 {
		t.Errorf("%d kicks for one segment of requests", n)
	}
	h.release()
	for range 32 {
		w.answer(0)
	}
}

func TestRequestsAllocateNothing(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 4096)
	_, _, addr := serveHeld(t, mem, func(c *nbd.Config) { c.Observe = func(string, int, time.Duration, error) {} })
	w := dial(t, "tcp", addr).enter("v")
	var b []byte
	n := 0
	for i := range 20 {
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdRead, Cookie: uint64(i), Length: 4096})
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdWrite, Cookie: uint64(i), Length: 4096})
		b = append(b, make([]byte, 4096)...)
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdFlush, Cookie: uint64(i)})
		b = proto.Simple.AppendRequest(b, proto.Request{Cmd: proto.CmdWriteZeroes, Cookie: uint64(i), Length: 8192})
		n += 4*proto.SimpleReplySize + 4096
	}
	p := make([]byte, n)
	per := testing.AllocsPerRun(200, func() {
		w.Write(b)
		io.ReadFull(w.in, p)
	})
	if per >= 8 && !raceEnabled { // of 80 requests; the pools may be emptied by a collection
		t.Errorf("%.1f allocations for 80 requests", per)
	}
}
