package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/test/nbdclient"
)

const (
	blockSize = 4096
	blocks    = 4096 // of the volume: 16 MiB
)

// op is what operation number k does: write blocks that carry its number, or
// zero some. Anybody can work out the whole history from the numbers.
type op struct {
	block, count int
	zero         bool
}

func operation(k uint64) op {
	rng := rand.New(rand.NewPCG(k, 77))
	o := op{block: rng.IntN(blocks), count: 1 + rng.IntN(8), zero: rng.IntN(5) == 0}
	o.count = min(o.count, blocks-o.block)
	return o
}

func (o op) data(k uint64) []byte {
	p := make([]byte, o.count*blockSize)
	for i := 0; i < len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], k)
	}
	return p
}

// history is what the volume holds after each number of operations, worked out
// step by step.
type history struct {
	done uint64
	data []byte
}

func newHistory() *history { return &history{data: make([]byte, blocks*blockSize)} }

func (h *history) next() {
	h.done++
	o := operation(h.done)
	p := h.data[o.block*blockSize : (o.block+o.count)*blockSize]
	if o.zero {
		clear(p)
	} else {
		copy(p, o.data(h.done))
	}
}

// match finds how many operations content is the result of, between least and
// most.
func match(content []byte, least, most uint64) (uint64, error) {
	for i := 0; i < len(content); i += blockSize {
		least = max(least, binary.LittleEndian.Uint64(content[i:])) // what is in it was done
	}
	h := newHistory()
	for h.done < least {
		h.next()
	}
	for ; h.done <= most; h.next() {
		if bytes.Equal(h.data, content) {
			return h.done, nil
		}
	}
	return 0, fmt.Errorf("it is not the result of %d to %d operations", least, most)
}

// writer carries out one operation after the other until it is stopped or an
// answer is an error.
type writer struct {
	issued, answered atomic.Uint64
	stop             chan struct{}
	done             sync.WaitGroup
	err              error // why it ended, once done
}

// start goes on after the operations answered so far: the one that got no answer
// is carried out again, which comes to the same.
func (w *writer) start(c *nbdclient.Client) {
	w.stop, w.err = make(chan struct{}), nil
	w.done.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			default:
			}
			k := w.answered.Load() + 1
			w.issued.Store(k)
			o := operation(k)
			off := int64(o.block) * blockSize
			if o.zero {
				w.err = c.Trim(off, o.count*blockSize)
			} else {
				w.err = c.WriteAt(o.data(k), off)
			}
			if w.err != nil {
				return
			}
			w.answered.Store(k)
		}
	})
}

// more waits until n more operations are answered.
func (w *writer) more(t *testing.T, n uint64) {
	t.Helper()
	ended := make(chan struct{})
	go func() { w.done.Wait(); close(ended) }()
	for target := w.answered.Load() + n; w.answered.Load() < target; {
		select {
		case <-ended:
			t.Fatalf("after %d operations: %v", w.answered.Load(), w.err)
		default:
		}
	}
}

func (w *writer) end(t *testing.T) {
	t.Helper()
	close(w.stop)
	if w.done.Wait(); w.err != nil {
		t.Fatal(w.err)
	}
}

// readAll reads a whole export.
func readAll(t *testing.T, c *nbdclient.Client) []byte {
	t.Helper()
	p := make([]byte, c.Size)
	for off := 0; off < len(p); off += 1 << 20 {
		if err := c.ReadAt(p[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}
