package edge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errStalled = errors.New("stalled")

// owner counts what a stream tells it.
type owner struct {
	Stream
	kicks int
	sent  Sent // under the lock
}

func (o *owner) Kick()          { o.kicks++ }
func (o *owner) Stalled() error { return errStalled }
func (o *owner) Sent(s Sent) {
	o.sent.Bytes += s.Bytes
	o.sent.Held += s.Held
	o.sent.Units += s.Units
}

func newOwner(conn net.Conn, rest []byte) *owner {
	o := &owner{}
	o.Start(o, conn, conn, StreamBytes, rest, time.Minute)
	return o
}

// pair is two ends of a connection.
func pair(t testing.TB, network string) (server, client net.Conn) {
	t.Helper()
	if network == "pipe" {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		return a, b
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

// answer fills p, at least 8 bytes, with its length and what can be checked.
func answer(p []byte) {
	binary.BigEndian.PutUint32(p, uint32(len(p)))
	binary.BigEndian.PutUint32(p[4:], rand.Uint32())
	for i := 8; i < len(p); i++ {
		p[i] = p[4+i%4] + byte(i)
	}
}

// take reads n answers and returns their bytes; whatever does not look like one fails.
func take(t *testing.T, r io.Reader, n int) (total int) {
	var head [8]byte
	for range n {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			t.Error(err)
			return
		}
		size := int(binary.BigEndian.Uint32(head[:]))
		if size < 8 || size > 4<<20 {
			t.Errorf("an answer of %d bytes", size)
			return
		}
		p := make([]byte, size)
		copy(p, head[:])
		if _, err := io.ReadFull(r, p[8:]); err != nil {
			t.Error(err)
			return
		}
		for i := 8; i < size; i++ {
			if p[i] != p[4+i%4]+byte(i) {
				t.Errorf("byte %d of %d is damaged", i, size)
				return
			}
		}
		total += size
	}
	return total
}

// Answers of every kind, from the reader and from completions, arrive whole and
// are accounted for to the byte, whether the socket can be tried or not, and
// whether the client is fast or slow.
func TestAnswersArriveWhole(t *testing.T) {
	for _, network := range []string{"tcp", "pipe"} {
		t.Run(network, func(t *testing.T) {
			server, client := pair(t, network)
			o := newOwner(server, nil)
			const workers, each = 4, 200
			var wg sync.WaitGroup
			async := workers // under the lock
			for range workers {
				wg.Go(func() {
					for i := range each {
						o.Lock()
						if size := 8 + rand.IntN(3000); i%5 != 0 {
							answer(o.Room(size))
						} else {
							b := GetBuffer(size * 100)
							b.B = b.B[:size*20]
							answer(b.B)
							o.Refer(b.B[:size], nil, 0)
							o.Refer(b.B[size:], b, 7)
						}
						o.End()
						if i == each-1 {
							async--
						}
						o.UnlockAndSend(async == 0)
					}
				})
			}
			go func() { // the client asks, and the reader answers some for itself
				for range 300 {
					if _, err := client.Write([]byte("ask!")); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			got := make(chan int, 1)
			go func() {
				time.Sleep(20 * time.Millisecond) // the socket becomes full
				got <- take(t, client, workers*each+300)
			}()
			for range 300 {
				if err := o.Fill(4); err != nil {
					t.Fatal(err)
				}
				o.Next(4)
				size := 8 + rand.IntN(5000)
				b := o.Own(size)
				at := len(b.B)
				b.B = b.B[:at+size]
				answer(b.B[at:])
				o.EndOwn()
				o.Count()
			}
			wg.Wait()
			o.Finish(func() bool { return async > 0 })
			total := <-got
			o.Lock()
			if b, u := o.Unsent(); b != 0 || u != 0 {
				t.Errorf("%d bytes, %d answers are not sent", b, u)
			}
			if want := (Sent{Bytes: total, Held: 7 * workers * each / 5, Units: workers*each + 300}); o.sent != want {
				t.Errorf("%+v, want %+v", o.sent, want)
			}
			o.Unlock()
			o.Close()
			if o.kicks == 0 {
				t.Error("never kicked")
			}
		})
	}
}

// While the reader runs, nothing is sent; when it pauses everything leaves in one go.
func TestReaderSendsOnceForABurst(t *testing.T) {
	server, client := net.Pipe()
	o := newOwner(server, nil)
	for range 3 {
		o.Lock()
		copy(o.Room(2), "ab")
		o.End()
		o.UnlockAndSend(true)
	}
	b := o.Own(3)
	b.B = append(b.B, "xyz"...)
	o.EndOwn()
	if _, units := o.Unsent(); units != 3 || o.flushing {
		t.Errorf("%d units wait, flushing %v", units, o.flushing)
	}
	go o.Pause()
	p := make([]byte, 100)
	n, err := client.Read(p) // one write on a pipe
	if string(p[:n]) != "xyzababab" || err != nil {
		t.Errorf("%q, %v", p[:n], err)
	}
	o.Close()
}

func TestInputThatWasReadBefore(t *testing.T) {
	server, client := net.Pipe()
	o := newOwner(server, []byte("abcdef"))
	if string(o.Next(2)) != "ab" {
		t.Error("the rest is not the input")
	}
	o.Widen(StreamBytes)
	go client.Write([]byte("ghijklmnop"))
	p := make([]byte, 8)
	if err := o.ReadFull(p); err != nil || string(p) != "cdefghij" {
		t.Errorf("%q, %v", p, err)
	}
	if err := o.Skip(3); err != nil {
		t.Error(err)
	}
	go client.Write([]byte("qrstuv"))
	if err := o.Fill(5); err != nil || !bytes.HasPrefix(o.Input(), []byte("nop")) {
		t.Errorf("%q, %v", o.Input(), err)
	}
	client.Close()
	if err := o.Fill(100); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	o.Close()
}

func TestClientThatTakesNothingIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		o := newOwner(server, nil)
		begin := time.Now()
		copy(o.Own(4).B[:4], "spam")
		o.own.B = o.own.B[:4]
		o.EndOwn()
		o.Finish(func() bool { return true }) // returns because it is dead
		if d := time.Since(begin); d != time.Minute || !errors.Is(o.Why(), errStalled) {
			t.Errorf("after %v: %v", d, o.Why())
		}
		if err := o.Await(func() bool { return true }); !errors.Is(err, errStalled) {
			t.Error(err)
		}
		o.Close()
		if o.sent != (Sent{Bytes: 4, Units: 1}) {
			t.Errorf("%+v is accounted for", o.sent)
		}
		client.Close()
	})
}

// Close ends a stream whatever it is at: its goroutines and buffers come back.
func TestCloseAndKillAtAnyTime(t *testing.T) {
	for _, network := range []string{"tcp", "pipe"} {
		for _, kill := range []bool{true, false} {
			server, _ := pair(t, network)
			o := newOwner(server, nil)
			o.Go(func() { <-o.Ended() })
			for range 20 { // more than a socket takes
				b := GetBuffer(1 << 20)
				b.B = b.B[:1<<20]
				o.Lock()
				o.Refer(b.B, b, 1)
				o.End()
				o.UnlockAndSend(true)
			}
			o.Pause()
			if kill {
				o.Kill(errors.New("enough"))
				o.Kill(errors.New("again"))
				<-o.Dying()
				<-o.Context().Done()
			}
			o.Lock()
			o.Stop()
			o.Unlock()
			o.Close()
			if why := o.Why(); kill != (why != nil) || kill && !strings.Contains(why.Error(), "enough") {
				t.Errorf("%s: %v", network, why)
			}
		}
	}
}
