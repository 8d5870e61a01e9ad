package nbd_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
)

// clients is a set of exports that notes who came.
type clients struct {
	*targettest.Exports
	mu   sync.Mutex
	came []target.Client
	err  error
}

func (c *clients) Resume(ctx context.Context, name, peer string, who target.Client) (target.Session, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.came = append(c.came, who)
	if c.err != nil {
		return nil, nil, c.err
	}
	return c.Open(ctx, name, peer)
}

func TestNamedClientsAreResumed(t *testing.T) {
	e, _ := pool()
	c := &clients{Exports: e}
	_, addr := start(t, c, nil)
	w := dial(t, "tcp", addr).flags()
	who := target.Client{ID: [16]byte{7}, Session: 42, Force: true}
	said := proto.AppendSessionOption(nil, proto.SessionOption{ID: who.ID, Session: who.Session, Force: true})
	if r, text, _ := w.option(proto.OptSession, said[1:]); r != proto.RepErrInvalid {
		t.Errorf("a short option: %#x %s", r, text)
	}
	if r, text, _ := w.option(proto.OptSession, said); r != proto.RepAck {
		t.Fatalf("%#x %s", r, text)
	}
	c.err = fault.Newf(fault.Busy, "volume attach", "a", "another client has it")
	if r, _, _ := w.option(proto.OptGo, query("a")); r != proto.RepErrPolicy {
		t.Errorf("refused with %#x", r)
	}
	c.err = nil
	if r, text, _ := w.option(proto.OptGo, query("a")); r != proto.RepAck {
		t.Fatalf("%#x %s", r, text)
	}
	if len(c.came) != 2 || c.came[0] != who || c.came[1] != who {
		t.Errorf("%+v", c.came)
	}
	dial(t, "tcp", addr).enter("a") // one that says nothing
	if len(c.came) != 2 {
		t.Errorf("%+v", c.came)
	}
	_, plain := start(t, e, nil) // exports that know no clients
	if r, _, _ := dial(t, "tcp", plain).flags().option(proto.OptSession, said); r != proto.RepErrUnsup {
		t.Errorf("%#x from exports that cannot resume", r)
	}
}

// parting is a device whose write fails when its attachment is lost.
type parting struct {
	*targettest.Memory
	lose func()
}

func (p *parting) Write(_ []byte, _ int64, _ bool, done func(error)) {
	p.lose()
	done(fault.Newf(fault.Unavailable, "volume", "v", "detached from this node"))
}

// knowing is a device whose own word comes first, and that of the exports never.
type knowing struct {
	*targettest.Memory
	gone chan struct{}
}

func (k *knowing) Gone() <-chan struct{} { return k.gone }

func (k *knowing) Write(_ []byte, _ int64, _ bool, done func(error)) {
	close(k.gone)
	done(fault.Newf(fault.Unavailable, "volume", "v", "this node is being drained"))
}

func TestSessionKnowsFirstThatItIsOver(t *testing.T) {
	var e targettest.Exports
	e.Add("v", &knowing{targettest.NewMemory(1<<20, 4096), make(chan struct{})})
	_, addr := start(t, &e, nil)
	w := dial(t, "tcp", addr).enter("v")
	w.request(proto.Request{Cmd: proto.CmdWrite, Length: 4096}, make([]byte, 4096)...)
	if errno, _, _ := w.answer(0); errno != proto.ESHUTDOWN {
		t.Error(errno)
	}
}

// What fails because the attachment is lost never looks like a broken disk.
func TestLostAttachmentAnswersShutdown(t *testing.T) {
	var e targettest.Exports
	_, addr := start(t, &e, nil)
	for range 50 {
		e.Add("v", &parting{targettest.NewMemory(1<<20, 4096), func() { e.Lose("v") }})
		w := dial(t, "tcp", addr).enter("v")
		w.request(proto.Request{Cmd: proto.CmdWrite, Length: 4096}, make([]byte, 4096)...)
		b, _ := io.ReadAll(w.in)
		if len(b) == 0 {
			continue // cut off before the answer
		}
		if errno, _, err := proto.DecodeSimpleReply(b); err != nil || errno != proto.ESHUTDOWN {
			t.Fatalf("%v %v", errno, err)
		}
	}
}

// shaky holds volumes that it cannot serve at times.
type shaky struct {
	*targettest.Exports
	cut atomic.Bool
}

func (s *shaky) Able(name string) error {
	if s.cut.Load() {
		return fault.Newf(fault.Unavailable, "open", name, "cut off")
	}
	return nil
}

// Who asks about an export that cannot be served, or for it, is sent elsewhere
// rather than kept waiting.
func TestCutOffExportIsNotGiven(t *testing.T) {
	e, _ := pool()
	s := &shaky{Exports: e}
	_, addr := start(t, s, nil)
	d, err := open(t, "tcp", addr, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s.cut.Store(true)
	if _, err := open(t, "tcp", addr, "a"); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("opened: %v", err)
	}
	if err := targettest.Write(d, make([]byte, 4096), 0, false); err != nil {
		t.Errorf("who has it already: %v", err)
	}
	s.cut.Store(false)
	d2, err := open(t, "tcp", addr, "a")
	if err != nil {
		t.Fatal(err)
	}
	d2.Close()
}
