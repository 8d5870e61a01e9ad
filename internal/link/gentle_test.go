package link

import (
	"bytes"
	"testing"

	"github.com/gabion-storage/gabion/internal/gentle"
	"golang.org/x/sys/unix"
)

// What nobody waits for is read and decrypted where it gives way to all others, and
// nothing else is.
func TestGentleMessagesGiveWay(t *testing.T) {
	r := meshRig(t)
	a, b := r.node(), r.node()
	nice := make(chan int, 1)
	priority := func() int {
		p, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil {
			t.Error(err)
		}
		return 20 - p // the system call's way to give a nice value
	}
	var low int
	gentle.Run(func() { low = priority() })
	handler := func(_ Peer, body []byte, _ bool) {
		if len(body) != 2<<20 {
			t.Error(len(body))
		}
		nice <- priority()
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
		case n != low:
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
