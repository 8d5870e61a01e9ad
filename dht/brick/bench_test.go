package brick

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/vfs"
)

// benchBrick is a brick with the default sizes on the machine's disk
// (GABION_BENCH_DIR, else the temporary directory).
func benchBrick(b *testing.B) *Brick {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("GABION_BENCH_DIR"), "brick")
	must(b, err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	fs, err := vfs.NewOS(dir)
	must(b, err)
	b.Cleanup(func() { fs.Close() })
	k, err := Open(Config{FS: fs, Pool: testPool, Node: testNode, OSDir: dir})
	must(b, err)
	b.Cleanup(func() { must(b, k.Close()) })
	return k
}

// trimmer keeps the journal short, as checkpoints do.
func trimmer(j *Journal, p Pos) {
	if oldest, _, _ := j.Live(); p-oldest > 96<<20 {
		j.Trim(p - 32<<20)
	}
}

func BenchmarkJournalAppendWrite(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("4KiB/batch=%d", batch), func(b *testing.B) {
			j := benchBrick(b).Journal()
			head, body := make([]byte, 64), make([]byte, 4096)
			b.SetBytes(4096)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p, err := j.Append(head, body)
				must(b, err)
				if i%batch == batch-1 {
					must(b, j.Write())
				}
				trimmer(j, p)
			}
		})
	}
}

func BenchmarkJournalSync(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("4KiB/callers=%d", callers), func(b *testing.B) {
			k := benchBrick(b)
			j := k.Journal()
			b.SetBytes(4096)
			b.ReportAllocs()
			work := make(chan struct{}, callers)
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					body, done := make([]byte, 4096), make(chan error, 1)
					report := func(err error) { done <- err }
					for range work {
						p, err := j.Append(body)
						must(b, err)
						j.Sync(report)
						must(b, <-done)
						trimmer(j, p)
					}
				})
			}
			before := k.Stats().Syncs
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/float64(k.Stats().Syncs-before), "records/fdatasync")
		})
	}
}

func BenchmarkPutExtents(b *testing.B) {
	for _, c := range []struct{ size, callers int }{{4096, 1}, {4096, 64}, {1 << 20, 1}, {1 << 20, 4}} {
		b.Run(fmt.Sprintf("%dKiB/callers=%d", c.size>>10, c.callers), func(b *testing.B) {
			k := benchBrick(b)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			work := make(chan uint64, c.callers)
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					data := make([]byte, c.size)
					for n := range work {
						x := numbered(data, n)
						must(b, k.PutExtents([]Extent{x}))
						if n%64 == 63 {
							must(b, k.DeleteExtents(addrs(x)))
						}
					}
				})
			}
			for n := uint64(0); b.Loop(); n++ {
				work <- n
			}
			close(work)
			wg.Wait()
		})
	}
}

func BenchmarkTryReadExtent(b *testing.B) {
	k := benchBrick(b)
	var xs []Extent
	for n := range uint64(64) {
		xs = append(xs, testExtent(testVolume, n, 1<<20))
	}
	must(b, k.PutExtents(xs))
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if !k.TryReadExtent(xs[i%64].Addr, p, int64(i*7919%255)*4096) {
			b.Fatal("not in memory")
		}
	}
}
