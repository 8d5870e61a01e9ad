package link

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
)

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCall is a 4 KiB request and a 16 byte answer, both ends in this
// process; cpu-us/op counts both.
func BenchmarkCall(b *testing.B) {
	for _, conc := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("c%d", conc), func(b *testing.B) {
			r := meshRig(b)
			x, y := r.node(), r.node()
			answer := make([]byte, 16)
			y.HandleCall(tPing, func(context.Context, ident.NodeID, []byte) ([]byte, error) { return answer, nil })
			r.start()
			var left atomic.Int64
			left.Store(int64(b.N))
			body := make([]byte, 4096)
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			for range conc {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := x.Call(context.Background(), y.Self(), tPing, body); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkOneWay is the write path of a quorum: 4 KiB messages in bursts,
// each answered with 16 bytes by the handler through its Peer.
func BenchmarkOneWay(b *testing.B) {
	for _, burst := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("burst%d", burst), func(b *testing.B) {
			r := meshRig(b)
			x, y := r.node(), r.node()
			answer := make([]byte, 16)
			y.Handle(tPing, func(from Peer, _ []byte, _ bool) { from.Send(tPong, answer) })
			got, back := 0, make(chan struct{}, 1)
			x.Handle(tPong, func(Peer, []byte, bool) {
				if got++; got%burst == 0 {
					back <- struct{}{}
				}
			})
			r.start()
			body := make([]byte, 4096)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			n := 0
			for n < b.N {
				for range burst {
					if err := x.(Flusher).SendLater(y.Self(), tPing, body); err != nil {
						b.Fatal(err)
					}
					n++
				}
				x.(Flusher).Flush(y.Self())
				<-back
			}
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(n), "cpu-us/op")
		})
	}
}

// BenchmarkBulk moves 1 MiB requests, four at a time.
func BenchmarkBulk(b *testing.B) {
	r := meshRig(b)
	x, y := r.node(), r.node()
	y.HandleCall(tBulk, func(context.Context, ident.NodeID, []byte) ([]byte, error) { return nil, nil })
	r.start()
	body := make([]byte, 1<<20)
	var left atomic.Int64
	left.Store(int64(b.N))
	b.SetBytes(1 << 20)
	b.ResetTimer()
	before := cpu()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := x.Call(context.Background(), y.Self(), tBulk, body); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/op")
}
