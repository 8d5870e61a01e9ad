package link

import (
	"testing"
	"time"
)

// The last bytes of a long message that the socket does not take at once are
// sent when it can, though nothing else is ever sent.
func TestTheEndOfALongMessageIsNotLeftBehind(t *testing.T) {
	r := meshRig(t)
	a, b := r.node(), r.node()
	gate, got := make(chan struct{}), make(chan struct{}, 1<<10)
	b.Handle(tPing, func(Peer, []byte, bool) {
		<-gate
		got <- struct{}{}
	})
	r.start()
	main := a.(*Mesh).diallers[b.Self()].conns()[classMain]
	if err := main.wire.SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	full := func() bool {
		main.wire.mu.Lock()
		defer main.wire.mu.Unlock()
		return len(main.wire.out) > 0
	}
	body := make([]byte, flushChunk)
	for round := range 8 {
		sent := 0
		for ; !full(); sent++ {
			if err := a.Send(b.Self(), tPing, body); err != nil {
				t.Fatal(err)
			}
		}
		deadline := time.After(20 * time.Second)
		for n := range sent {
			select {
			case gate <- struct{}{}:
				<-got
			case <-deadline:
				t.Fatalf("round %d: message %d of %d has not come", round, n+1, sent)
			}
		}
		until(t, "all is sent", func() bool { return !full() })
	}
}
