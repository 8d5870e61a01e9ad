package link

import (
	"bytes"
	"testing"

	"github.com/gabion-storage/gabion/internal/gentle"
	"golang.org/x/sys/unix"
)

// What nobody waits for is read and decrypted by threads that give way to all others, and
// nothing else is.
func TestGentleMessagesGiveWay(t *testing.T) {
	r := meshRig(t)
	a, b := r.node(), r.node()
	nice := make(chan int, 1)
	handler := func(_ Peer, body []byte, _ bool) {
		p, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil || len(body) != 2<<20 {
			t.Error(len(body), err)
		}
		nice <- 20 - p // the system call's way to give a nice value
	}
	for _, typ := range []Type{tPing, tBulk, tQuiet} {
		b.Handle(typ, handler)
	}
	r.start()
	usual := 0
	for _, typ := range []Type{tPing, tBulk, tQuiet} {
		if err := a.Send(b.Self(), typ, bytes.Repeat([]byte{1}, 2<<20)); err != nil {
			t.Fatal(err)
		}
		switch n := <-nice; {
		case typ != tQuiet:
			usual = n
		case n != max(usual, gentle.Nice):
			t.Errorf("type %#x is read with nice value %d, others with %d", typ, n, usual)
		}
	}
}

// The end of a connection that only waits for messages is seen.
func TestGentleConnectionEnds(t *testing.T) {
	r := meshRig(t)
	a, b := r.node(), r.node()
	r.start()
	c := a.(*Mesh).diallers[b.Self()].conns()[classGentle]
	c.wire.TCPConn.Close()
	<-c.gone
}
