package blockdev

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/quorum"
)

// waiter is one operation that waits for a watermark to reach its slot.
type waiter struct {
	slot  uint64
	since time.Time
	done  func(error)
}

// waitQueue is a first-in first-out queue of waiters with rising slots.
type waitQueue struct {
	q    []waiter
	head int
}

func (w *waitQueue) push(x waiter) {
	if w.head > 0 && w.head == len(w.q) {
		w.q, w.head = w.q[:0], 0
	} else if w.head > 1024 && w.head*2 > len(w.q) {
		n := copy(w.q, w.q[w.head:])
		clear(w.q[n:])
		w.q, w.head = w.q[:n], 0
	}
	w.q = append(w.q, x)
}

func (w *waitQueue) len() int { return len(w.q) - w.head }

// take moves all waiters with slot <= mark to out.
func (w *waitQueue) take(mark uint64, out []waiter) []waiter {
	for w.head < len(w.q) && w.q[w.head].slot <= mark {
		out = append(out, w.q[w.head])
		w.q[w.head] = waiter{}
		w.head++
	}
	return out
}

// takeOld moves the waiters that began before limit to out.
func (w *waitQueue) takeOld(limit time.Time, out []waiter) []waiter {
	for w.head < len(w.q) && w.q[w.head].since.Before(limit) {
		out = append(out, w.q[w.head])
		w.q[w.head] = waiter{}
		w.head++
	}
	return out
}

// pending holds the operations of a volume that wait for its members.
type pending struct {
	mu       sync.Mutex
	received uint64 // watermarks as last told by the proposer
	durable  uint64
	// settled is received, for readers that take no lock.
	settled atomic.Uint64
	recv    waitQueue // plain writes: wait for received
	dur     waitQueue // flushes and FUA writes: wait for durable
	err     error
	pace    *Pacer // told how long flushes take; nil for nobody

	scratch []waiter // of progress, whose calls come one at a time
	marks   sync.Cond
}

// reset sets the watermarks to what was recovered: all of it is chosen.
func (p *pending) reset(rec *quorum.Recovered) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.marks.L = &p.mu
	last := rec.Checkpoint.UpTo
	if n := len(rec.Entries); n > 0 {
		last = rec.Entries[n-1].Slot
	}
	p.received, p.durable = max(p.received, last), max(p.durable, last)
	p.settled.Store(p.received)
}

// add queues done until the watermark reaches slot, or calls it at once if it has.
func (p *pending) add(slot uint64, durable bool, done func(error)) {
	p.mu.Lock()
	if p.err != nil {
		err := p.err
		p.mu.Unlock()
		done(err)
		return
	}
	mark, q := p.received, &p.recv
	if durable {
		mark, q = p.durable, &p.dur
	}
	if slot <= mark {
		p.mu.Unlock()
		done(nil)
		return
	}
	q.push(waiter{slot, time.Now(), done})
	p.mu.Unlock()
}

// progress is the proposer's word of new watermarks.
func (p *pending) progress(received, durable uint64) {
	p.mu.Lock()
	p.received, p.durable = max(p.received, received), max(p.durable, durable)
	p.settled.Store(p.received)
	out := p.recv.take(p.received, p.scratch[:0])
	plain := len(out)
	out = p.dur.take(p.durable, out)
	if p.marks.L != nil {
		p.marks.Broadcast()
	}
	p.scratch = nil
	p.mu.Unlock()
	if plain < len(out) && p.pace != nil && p.pace.Wants() {
		p.pace.Foreground(time.Since(out[plain].since))
	}
	for i := range out {
		out[i].done(nil)
		out[i] = waiter{}
	}
	p.mu.Lock()
	p.scratch = out[:0]
	p.mu.Unlock()
}

// durableMark reports the durable watermark.
func (p *pending) durableMark() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.durable
}

func (p *pending) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.recv.len() == 0 && p.dur.len() == 0
}

// fail ends all waiters, now and later, with err.
func (p *pending) fail(err error) {
	p.mu.Lock()
	p.err = err
	out := p.recv.take(^uint64(0), nil)
	out = p.dur.take(^uint64(0), out)
	if p.marks.L != nil {
		p.marks.Broadcast()
	}
	p.mu.Unlock()
	for _, w := range out {
		w.done(err)
	}
}

// expire fails the waiters that began before limit. Their entries stay in the
// log: such a write may or may not have happened, as after any lost answer.
func (p *pending) expire(limit time.Time, volume string) {
	p.mu.Lock()
	out := p.recv.takeOld(limit, nil)
	out = p.dur.takeOld(limit, out)
	p.mu.Unlock()
	for _, w := range out {
		w.done(fault.Newf(fault.Timeout, "volume", volume, "no majority of its members answered in time; see gabion status"))
	}
}
