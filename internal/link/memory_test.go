package link

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// three makes and starts three connected nodes that record what they hear.
func three(t *testing.T, n *Memory) (nodes [3]*MemoryNode, heard [3]chan string) {
	for i := range nodes {
		nodes[i] = n.Node(ident.NodeID{byte(i + 1)})
		heard[i] = make(chan string, 1000)
		nodes[i].Handle(tPing, func(from Peer, body []byte, _ bool) {
			heard[i] <- fmt.Sprintf("%d:%s", from.ID()[0], body)
		})
		nodes[i].HandleCall(tPing, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
			return body, nil
		})
	}
	for _, x := range nodes {
		x.Start()
		t.Cleanup(x.Close)
	}
	return nodes, heard
}

func TestMemoryDelaysAndKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemory(7)
		n.SetDelay(10*time.Millisecond, 20*time.Millisecond)
		x, heard := three(t, n)
		start := time.Now()
		for i := range 100 {
			if err := x[0].Send(x[1].Self(), tPing, fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			if got := <-heard[1]; got != fmt.Sprint("1:", i) {
				t.Fatal(got)
			}
		}
		if d := time.Since(start); d < 10*time.Millisecond || d > 20*time.Millisecond {
			t.Error(d)
		}
		start = time.Now()
		if _, err := x[0].Call(context.Background(), x[1].Self(), tPing); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 20*time.Millisecond || d > 40*time.Millisecond {
			t.Error(d)
		}
	})
}

func TestMemoryCutIsOneWayAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemory(1)
		x, heard := three(t, n)
		n.Cut(x[0].Self(), x[1].Self())
		x[0].Send(x[1].Self(), tPing, []byte("waits"))
		x[1].Send(x[0].Self(), tPing, []byte("passes"))
		if got := <-heard[0]; got != "2:passes" {
			t.Fatal(got)
		}
		time.Sleep(n.UserTimeout / 2)
		if len(heard[1]) > 0 {
			t.Fatal("a message crossed the cut")
		}
		n.Heal(x[0].Self(), x[1].Self())
		if got := <-heard[1]; got != "1:waits" {
			t.Fatal(got)
		}
		n.Cut(x[0].Self(), x[1].Self())
		x[0].Send(x[1].Self(), tPing, []byte("dies"))
		time.Sleep(n.UserTimeout + time.Second)
		if x[0].Connected(x[1].Self()) {
			t.Fatal("the connection outlived its timeout")
		}
		if err := x[0].Send(x[2].Self(), tPing, []byte("other")); err != nil || <-heard[2] != "1:other" {
			t.Fatal("a third node is affected", err)
		}
		n.Heal(x[0].Self(), x[1].Self())
		synctest.Wait()
		if !x[0].Connected(x[1].Self()) {
			t.Fatal("no reconnection")
		}
	})
}

func TestMemoryCrashAndNextLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemory(1)
		x, heard := three(t, n)
		n.Crash(x[1].Self())
		if err := x[0].Send(x[1].Self(), tPing); !fault.Is(err, fault.Unavailable) {
			t.Fatal(err)
		}
		if err := x[1].Send(x[0].Self(), tPing); !fault.Is(err, fault.Unavailable) {
			t.Fatal("a dead node speaks", err)
		}
		again := n.Node(x[1].Self())
		again.Start()
		defer again.Close()
		if err := again.Send(x[0].Self(), tPing, []byte("back")); err != nil || <-heard[0] != "2:back" {
			t.Fatal(err)
		}
		if !x[0].Connected(again.Self()) {
			t.Fatal("not connected to the next life")
		}
	})
}

func TestMemoryIsolate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewMemory(1)
		x, heard := three(t, n)
		n.Isolate(x[2].Self())
		x[0].Send(x[2].Self(), tPing, []byte("a"))
		x[2].Send(x[0].Self(), tPing, []byte("b"))
		time.Sleep(time.Minute)
		if x[0].Connected(x[2].Self()) || x[2].Connected(x[0].Self()) || len(heard[0])+len(heard[2]) > 0 {
			t.Fatal("not isolated")
		}
		n.Rejoin(x[2].Self())
		synctest.Wait()
		if !x[0].Connected(x[2].Self()) || !x[2].Connected(x[1].Self()) {
			t.Fatal("not back")
		}
	})
}
