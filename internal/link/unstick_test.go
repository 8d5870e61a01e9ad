package link

import (
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
)

// TestUnstickLetsANodeBeHeard: a handler hangs on the connection of one peer.
// Afterwards that peer is heard again over a new one, and others never lost theirs.
func TestUnstickLetsANodeBeHeard(t *testing.T) {
	net := NewMemory(1)
	a, b := net.Node(ident.NodeID{1}), net.Node(ident.NodeID{2})
	hang, heard := make(chan struct{}), make(chan struct{}, 100)
	entered := make(chan struct{}, 1)
	b.Handle(0x20, func(Peer, []byte, bool) {
		entered <- struct{}{}
		<-hang
	})
	b.Handle(0x21, func(Peer, []byte, bool) { heard <- struct{}{} })
	a.Start()
	b.Start()
	defer func() {
		close(hang)
		a.Close()
		b.Close()
	}()
	send := func(typ Type) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); a.Send(b.Self(), typ) != nil; {
			if time.Now().After(end) {
				t.Fatal("never connected")
			}
			<-time.After(time.Millisecond)
		}
	}
	if n := b.Unstick(time.Millisecond); n != 0 {
		t.Fatalf("%d connections were stuck before there were any", n)
	}
	send(0x20)
	<-entered
	send(0x21)
	select {
	case <-heard:
		t.Fatal("heard behind a handler that hangs")
	case <-time.After(20 * time.Millisecond):
	}
	if n := b.Unstick(10 * time.Millisecond); n != 1 {
		t.Fatalf("%d connections were stuck, not one", n)
	}
	for got := false; !got; {
		send(0x21)
		select {
		case <-heard:
			got = true
		case <-time.After(10 * time.Millisecond):
		}
	}
}
