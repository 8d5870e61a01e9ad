package client_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/targettest"
)

// plain serves a memory to any client, without ado.
type plain struct{ targettest.Exports }

func (p *plain) Resume(ctx context.Context, name, peer string, _ target.Client) (target.Session, <-chan struct{}, error) {
	return p.Open(ctx, name, peer)
}

func openPlain(tb testing.TB) *client.Engine {
	x := new(plain)
	x.Add("v", targettest.NewMemory(64<<20, 4096))
	srv, err := nbd.NewServer(nbd.Config{Exports: x})
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	tb.Cleanup(func() { srv.Close(); <-served })
	e, err := client.Open(context.Background(), client.Config{Volume: "v", ID: [16]byte{1}, Start: 1,
		Nodes: func() []client.Node { return []client.Node{{Addr: l.Addr().String()}} }})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(e.Close)
	return e
}

// burst writes n blocks side by side and flushes.
func burst(e *client.Engine, p []byte, n int, wg *sync.WaitGroup, done func(error)) {
	wg.Add(n)
	for i := range n {
		e.Write(p, int64(i)<<12, false, done)
	}
	e.Kick()
	wg.Wait()
	wg.Add(1)
	e.Flush(done)
	e.Kick()
	wg.Wait()
}

func TestRequestsAllocateNothing(t *testing.T) {
	e := openPlain(t)
	var wg sync.WaitGroup
	done := func(err error) {
		if err != nil {
			t.Error(err)
		}
		wg.Done()
	}
	p := block(1)
	burst(e, p, 100, &wg, done)
	per := testing.AllocsPerRun(50, func() { burst(e, p, 100, &wg, done) })
	if per > 20 && !raceEnabled { // of 101 requests; pools may be emptied by a collection
		t.Errorf("%.1f allocations for 101 requests", per)
	}
}

// What the engine adds to a request: two sockets and a copy on one machine.
func BenchmarkWrite4K(b *testing.B) {
	e := openPlain(b)
	var wg sync.WaitGroup
	done := func(error) { wg.Done() }
	p := block(1)
	b.SetBytes(32 * 4096)
	for b.Loop() {
		burst(e, p, 32, &wg, done)
	}
}
