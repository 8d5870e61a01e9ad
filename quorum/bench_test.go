package quorum

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// BenchmarkPropose is the write path over the memory transport: 4 KiB entries,
// burst of them between kicks, window of them unanswered.
func BenchmarkPropose(b *testing.B) {
	for _, c := range []struct{ members, burst, window int }{{1, 1, 1}, {3, 1, 1}, {3, 1, 64}, {3, 16, 256}} {
		b.Run(fmt.Sprintf("members%d/burst%d/window%d", c.members, c.burst, c.window), func(b *testing.B) {
			benchPropose(b, c.members, c.burst, c.window)
		})
	}
}

func benchPropose(b *testing.B, members, burst, window int) {
	p := newTestPool(b, members)
	for _, n := range p.nodes {
		n.journal.Discard = true
	}
	p.create(members)
	var received atomic.Uint64
	progress := make(chan struct{}, 1)
	h, err := p.nodes[0].tryOpen(func(c *ProposerConfig) {
		c.OnProgress = func(r, _ uint64) {
			received.Store(r)
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	received.Store(h.Received())
	body := make([]byte, 4096)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		slot, err := h.Propose(EntryData, body)
		if err != nil {
			b.Fatal(err)
		}
		if i%burst == burst-1 || i == b.N-1 {
			h.Kick()
			for slot-received.Load() >= uint64(window) || i == b.N-1 && received.Load() < slot {
				<-progress
			}
		}
		if i%10000 == 9999 {
			h.Sync(slot)
			h.Kick()
			if d := h.Durable(); d > h.core.Checkpoint().UpTo {
				if _, err := h.Checkpoint(d, nil); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.StopTimer()
	h.Close()
}
