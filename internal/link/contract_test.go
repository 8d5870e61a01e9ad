package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/pki"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/gabion-storage/gabion/internal/gentle.worker")) // stays for a while
}

// node is what Mesh and MemoryNode have in common.
type node interface {
	Transport
	Flusher
	SetPeers(map[ident.NodeID]string)
	Redial(ident.NodeID)
	Addr() string
	Stats() Stats
	Start()
	Close()
}

var (
	_ node        = (*Mesh)(nil)
	_ node        = (*MemoryNode)(nil)
	_ PeerFlusher = (*channel)(nil)
)

// rig makes nodes that are not started yet and knows how to hurt them.
type rig struct {
	t        testing.TB
	make     func(queueMax int) node
	nodes    []node
	dropConn func(from, to node) // ends the connections dialled by from to to
}

func (r *rig) node() node { return r.sized(0) }

func (r *rig) sized(queueMax int) node {
	n := r.make(queueMax)
	r.nodes = append(r.nodes, n)
	r.t.Cleanup(n.Close)
	return n
}

// start connects all nodes with all and waits until they are.
func (r *rig) start() {
	r.t.Helper()
	peers := map[ident.NodeID]string{}
	for _, n := range r.nodes {
		peers[n.Self()] = n.Addr()
	}
	for _, n := range r.nodes {
		n.SetPeers(peers)
		n.Start()
	}
	for _, n := range r.nodes {
		for id := range peers {
			if id != n.Self() {
				until(r.t, "connected", func() bool { return n.Connected(id) })
			}
		}
	}
}

// until polls a condition with a deadline.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func meshRig(t testing.TB) *rig {
	ca, err := pki.NewCA(ident.NewPool())
	if err != nil {
		t.Fatal(err)
	}
	return &rig{
		t: t,
		make: func(queueMax int) node {
			id, err := ca.NewIdentity()
			if err != nil {
				t.Fatal(err)
			}
			m, err := NewMesh(MeshConfig{Identity: id, Listen: "127.0.0.1:0", Log: quiet(), QueueMax: queueMax})
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
		dropConn: func(from, to node) {
			for _, c := range from.(*Mesh).diallers[to.Self()].conns() {
				c.wire.TCPConn.Close()
			}
		},
	}
}

func memoryRig(t testing.TB) *rig {
	n := NewMemory(1)
	return &rig{
		t: t,
		make: func(queueMax int) node {
			if queueMax > 0 {
				n.QueueMax = queueMax
			}
			return n.Node(ident.NodeID(ident.NewPool()))
		},
		dropConn: func(from, to node) { n.Drop(from.Self(), to.Self()) },
	}
}

func both(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Run("mesh", func(t *testing.T) { f(t, meshRig(t)) })
	t.Run("memory", func(t *testing.T) { f(t, memoryRig(t)) })
}

const (
	tPing  Type = 0x10
	tPong  Type = 0x11
	tOther Type = 0x12
	tBulk  Type = 0x40
	tQuiet Type = 0x48
)

// everyWay runs f with a usual type, and with one that nobody waits for.
func everyWay(t *testing.T, f func(t *testing.T, r *rig, typ Type)) {
	both(t, func(t *testing.T, r *rig) { f(t, r, tPing) })
	t.Run("gentle", func(t *testing.T) { f(t, meshRig(t), tQuiet) })
}

func TestMessagesArriveInOrderAndWhole(t *testing.T) {
	everyWay(t, func(t *testing.T, r *rig, typ Type) {
		a, b := r.node(), r.node()
		const count = 3000
		next, done := uint64(0), make(chan struct{})
		b.Handle(typ, func(from Peer, body []byte, more bool) {
			i := binary.LittleEndian.Uint64(body)
			if i != next || from.ID() != a.Self() || len(body) != 8+int(i%5000) {
				t.Errorf("message %d of %d bytes from %v, want %d", i, len(body), from.ID(), next)
			}
			for _, c := range body[8:] {
				if c != byte(i) {
					t.Error("wrong bytes")
					break
				}
			}
			if next++; next == count {
				close(done)
			}
		})
		r.start()
		for i := range uint64(count) {
			head := binary.LittleEndian.AppendUint64(nil, i)
			body := bytes.Repeat([]byte{byte(i)}, int(i%5000))
			send := a.Send
			if i%3 == 0 {
				send = a.SendLater
			}
			if err := send(b.Self(), typ, head, body); err != nil {
				t.Fatal(err)
			}
			clear(head)
			clear(body) // may be reused when Send returns
		}
		a.Flush(b.Self())
		<-done
	})
}

// Long messages go out from where they lie: whatever the socket does not take at
// once must be a copy, for the sender uses its bytes again.
func TestLongMessagesKeepTheirPlace(t *testing.T) {
	everyWay(t, func(t *testing.T, r *rig, typ Type) {
		a, b := r.node(), r.node()
		const count = 60
		length := func(i int) int {
			if i%3 == 0 {
				return directMin + 1<<20 + i*53
			}
			return i * 7
		}
		next, sent, done := 0, make(chan struct{}), make(chan struct{})
		b.Handle(typ, func(_ Peer, body []byte, _ bool) {
			<-sent // the socket gets full
			if len(body) != length(next) {
				t.Errorf("message %d has %d bytes, want %d", next, len(body), length(next))
			}
			for i, c := range body {
				if c != byte(next+i/4096) {
					t.Errorf("message %d: wrong byte %d", next, i)
					break
				}
			}
			if next++; next == count {
				close(done)
			}
		})
		r.start()
		for i := range count {
			body := make([]byte, length(i))
			for k := range body {
				body[k] = byte(i + k/4096)
			}
			at := len(body) / 3
			if err := a.Send(b.Self(), typ, body[:at:at], nil, body[at:]); err != nil {
				t.Fatal(err)
			}
			clear(body)
		}
		close(sent)
		<-done
	})
}

func TestTheLastMessageOfATypeHasNoMore(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		const count = 2000
		var got [2]int
		bursts, put := 0, [2]int{}
		done := make(chan struct{})
		handle := func(which int) Handler {
			return func(_ Peer, _ []byte, more bool) {
				put[which]++
				if more {
					return
				}
				bursts++
				got[which] += put[which]
				put[which] = 0
				if got[0]+got[1] == 2*count {
					close(done)
				}
			}
		}
		b.Handle(tPing, handle(0))
		b.Handle(tOther, handle(1))
		r.start()
		for range count {
			a.SendLater(b.Self(), tPing, make([]byte, 100))
			a.SendLater(b.Self(), tOther, make([]byte, 100))
		}
		a.Flush(b.Self())
		<-done
		if bursts > count/10 {
			t.Errorf("%d bursts for %d messages", bursts, 2*count)
		}
	})
}

func TestPeersAnswerThroughTheSameConnection(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		var later atomic.Value
		b.Handle(tPing, func(from Peer, body []byte, more bool) {
			later.Store(from)
			if err := from.Send(tPong, body); err != nil {
				t.Error(err)
			}
		})
		pongs := make(chan string, 10)
		a.Handle(tPong, func(from Peer, body []byte, more bool) {
			if from.ID() != b.Self() {
				t.Error("wrong peer")
			}
			pongs <- string(body)
		})
		r.start()
		if err := a.Send(b.Self(), tPing, []byte("he"), []byte("llo")); err != nil {
			t.Fatal(err)
		}
		if got := <-pongs; got != "hello" {
			t.Fatal(got)
		}
		p := later.Load().(Peer)
		if err := p.(PeerFlusher).SendLater(tPong, []byte("later")); err != nil {
			t.Fatal(err)
		}
		p.(PeerFlusher).Flush()
		if got := <-pongs; got != "later" {
			t.Fatal(got)
		}
	})
}

func TestCallsCarryResultsAndErrors(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		for _, n := range []node{a, b} {
			n.HandleCall(tPing, func(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
				return append(body, from[:]...), nil
			})
			n.HandleCall(tBulk, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
				return nil, fault.Newf(fault.NoSpace, "brick.put", string(body), "the disk is full")
			})
			n.HandleCall(tOther, func(context.Context, ident.NodeID, []byte) ([]byte, error) {
				return nil, io.ErrUnexpectedEOF
			})
		}
		r.start()
		ctx := context.Background()
		for _, to := range []ident.NodeID{a.Self(), b.Self()} {
			got, err := a.Call(ctx, to, tPing, []byte("x"), []byte("y"))
			if self := a.Self(); err != nil || string(got) != "xy"+string(self[:]) {
				t.Fatalf("%q %v", got, err)
			}
			_, err = a.Call(ctx, to, tBulk, []byte("e1"))
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.NoSpace || e.Op != "brick.put" || e.Subject != "e1" || e.Err.Error() != "the disk is full" {
				t.Fatalf("%#v", err)
			}
			if _, err = a.Call(ctx, to, tOther); err == nil || fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), "unexpected EOF") {
				t.Fatal(err)
			}
			if _, err = a.Call(ctx, to, tPong); !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
		}
		if err := a.Send(a.Self(), tPing); !fault.Is(err, fault.Invalid) {
			t.Fatal(err)
		}
		if _, err := a.Call(ctx, ident.NodeID{1}, tPing); !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		if _, err := a.Call(ctx, b.Self(), tPing, make([]byte, MessageMax+1)); !fault.Is(err, fault.Invalid) {
			t.Fatal(err)
		}
		big, err := a.Call(ctx, b.Self(), tPing, make([]byte, MessageMax-16))
		if err != nil || len(big) != MessageMax {
			t.Fatal(len(big), err)
		}
		if !a.Connected(b.Self()) {
			t.Fatal("not connected any more")
		}
	})
}

func TestManyCallsAtOnce(t *testing.T) {
	everyWay(t, func(t *testing.T, r *rig, typ Type) {
		a, b := r.node(), r.node()
		var running, most atomic.Int64
		b.HandleCall(typ, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			defer running.Add(-1)
			return body, nil
		})
		r.start()
		var wg sync.WaitGroup
		for g := range 2 * InboundCallsMax {
			wg.Go(func() {
				body := bytes.Repeat([]byte{byte(g)}, 100_000)
				for range 2 {
					got, err := a.Call(context.Background(), b.Self(), typ, body)
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				}
			})
		}
		wg.Wait()
		if most.Load() > InboundCallsMax {
			t.Errorf("%d calls at once", most.Load())
		}
	})
}

func TestCallEndsWithItsContextAndTellsTheHandler(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		began, ended := make(chan struct{}), make(chan struct{})
		b.HandleCall(tPing, func(ctx context.Context, _ ident.NodeID, _ []byte) ([]byte, error) {
			close(began)
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		})
		r.start()
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-began; cancel() }()
		if _, err := a.Call(ctx, b.Self(), tPing); !fault.Is(err, fault.Timeout) {
			t.Fatal(err)
		}
		<-ended
	})
}

func TestCallIsIndeterminateWhenTheConnectionEnds(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		began := make(chan struct{}, 1)
		b.HandleCall(tPing, func(ctx context.Context, _ ident.NodeID, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		events := make(chan bool, 100)
		a.OnConnect(func(to ident.NodeID, up bool) { events <- up })
		r.start()
		if !<-events {
			t.Fatal("first event is down")
		}
		go func() { <-began; r.dropConn(a, b) }()
		if _, err := a.Call(context.Background(), b.Self(), tPing); !fault.Is(err, fault.Indeterminate) {
			t.Fatal(err)
		}
		if <-events {
			t.Fatal("the loss was not told")
		}
		if !<-events {
			t.Fatal("the reconnection was not told")
		}
		until(t, "connected again", func() bool { return a.Connected(b.Self()) })
	})
}

func TestSlowReaderLosesOnlyItsConnection(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b, c := r.sized(1<<20), r.sized(1<<20), r.sized(1<<20)
		hold, fine := make(chan struct{}), make(chan struct{}, 1)
		b.Handle(tPing, func(Peer, []byte, bool) { <-hold })
		b.Handle(tBulk, func(Peer, []byte, bool) { fine <- struct{}{} })
		c.Handle(tPing, func(Peer, []byte, bool) { fine <- struct{}{} })
		r.start()
		defer close(hold)
		lost := make(chan struct{})
		body := make([]byte, 64<<10)
		go func() {
			defer close(lost)
			for a.Send(b.Self(), tPing, body) == nil {
			}
		}()
		<-lost
		if n := a.Stats().Overflows; n != 1 {
			t.Fatalf("%d overflows", n)
		}
		if err := a.Send(c.Self(), tPing); err != nil { // another node
			t.Fatal(err)
		}
		<-fine
		if _, ok := b.(*Mesh); ok { // the other connection to the same node
			if err := a.Send(b.Self(), tBulk); err != nil {
				t.Fatal(err)
			}
			<-fine
		}
	})
}

func TestAnswersWaitForRoomInsteadOfOverflowing(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.sized(1<<20), r.sized(1<<20)
		b.HandleCall(tBulk, func(context.Context, ident.NodeID, []byte) ([]byte, error) {
			return make([]byte, 300<<10), nil
		})
		r.start()
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				got, err := a.Call(context.Background(), b.Self(), tBulk, make([]byte, 300<<10))
				if err != nil || len(got) != 300<<10 {
					t.Error(len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestCloseEndsCallsInBothDirections(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		began := make(chan struct{}, 2)
		for _, n := range []node{a, b} {
			n.HandleCall(tPing, func(ctx context.Context, _ ident.NodeID, _ []byte) ([]byte, error) {
				began <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			})
		}
		r.start()
		errs := make(chan error, 2)
		go func() { _, err := a.Call(context.Background(), b.Self(), tPing); errs <- err }()
		go func() { _, err := b.Call(context.Background(), a.Self(), tPing); errs <- err }()
		<-began
		<-began
		a.Close()
		for range 2 {
			if err := <-errs; !fault.Is(err, fault.Indeterminate) {
				t.Error(err)
			}
		}
		until(t, "b notices", func() bool { return !b.Connected(a.Self()) })
	})
}

func TestSetPeersEndsConnectionsToOthers(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		a, b := r.node(), r.node()
		r.start()
		a.SetPeers(nil)
		until(t, "a lets go", func() bool { return !a.Connected(b.Self()) })
		if err := a.Send(b.Self(), tPing); !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		if !b.Connected(a.Self()) {
			t.Fatal("b may still speak to a")
		}
		a.SetPeers(map[ident.NodeID]string{b.Self(): b.Addr()})
		until(t, "connected again", func() bool { return a.Connected(b.Self()) })
	})
}
