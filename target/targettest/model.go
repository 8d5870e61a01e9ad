package targettest

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/gabion-storage/gabion/target"
)

// Model is a flat array that remembers, for each block, every content that a
// read may return while operations overlap in time, and every one that may
// remain after a power cut. Tests tell it when operations begin and end; its
// rules are those of target.Device:
//
//  1. A read returns the content of a write that began before the read ended,
//     unless another write began after that one had ended and itself ended
//     before the read began.
//  2. After a power cut a block has the content of a write, unless a write that
//     began after that one had ended is durable. A write is durable when it
//     ended with fua, or before a flush that succeeded began.
//  3. A write without an answer may have happened or not.
//
// It may be used concurrently.
type Model struct {
	block int

	mu     sync.Mutex
	clock  int64
	stamp  uint64
	blocks [][]version // oldest first
	reads  map[*Op]struct{}
}

// version is one write of one block. The stamp names its content; 0 is zeros.
type version struct {
	stamp      uint64
	begin, end int64
	maybe      bool // it does not replace what was before: unanswered, or a trim
	durable    bool
}

const open = math.MaxInt64 // the end of what has not ended

// NewModel makes a model of size bytes, all zero and durable.
func NewModel(size int64, block int) *Model {
	m := &Model{block: block, clock: 1, reads: map[*Op]struct{}{}}
	m.blocks = make([][]version, size/int64(block))
	for i := range m.blocks {
		m.blocks[i] = []version{{durable: true}}
	}
	return m
}

// Op is an operation that has begun.
type Op struct {
	m           *Model
	first, last int // blocks, half open
	begin       int64
	stamp       uint64
	trim        bool
}

func (m *Model) tick() int64 {
	m.clock++
	return m.clock
}

func (m *Model) op(off int64, n int) *Op {
	b := int64(m.block)
	return &Op{m: m, first: int(off / b), last: int((off + int64(n)) / b), begin: m.tick()}
}

// BeginWrite tells that a write of [off, off+len(p)) begins, and fills p with
// contents never used before.
func (m *Model) BeginWrite(p []byte, off int64) *Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stamp++
	o := m.op(off, len(p))
	o.stamp = m.stamp
	for b := o.first; b < o.last; b++ {
		fill(p[(b-o.first)*m.block:][:m.block], o.stamp, b)
	}
	m.add(o)
	return o
}

// BeginZero tells that a zeroing begins, or a trim, which may also do nothing.
func (m *Model) BeginZero(off int64, n int, trim bool) *Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.op(off, n)
	o.trim = trim
	m.add(o)
	return o
}

func (m *Model) add(o *Op) {
	for b := o.first; b < o.last; b++ {
		if len(m.blocks[b])%16 == 0 {
			m.prune(b)
		}
		m.blocks[b] = append(m.blocks[b], version{stamp: o.stamp, begin: o.begin, end: open, maybe: o.trim})
	}
}

// Done tells that a write, zeroing or trim succeeded.
func (o *Op) Done(fua bool) { o.settle(fua, false) }

// Lost tells that it ended without an answer: nothing more will happen of it,
// but all of it, some or nothing may have.
func (o *Op) Lost() { o.settle(false, true) }

func (o *Op) settle(durable, maybe bool) {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.tick()
	for b := o.first; b < o.last; b++ {
		for i := range m.blocks[b] {
			if v := &m.blocks[b][i]; v.begin == o.begin {
				v.end, v.durable, v.maybe = now, durable, v.maybe || maybe
			}
		}
	}
}

// BeginFlush tells that a flush begins; call Flushed when it succeeded.
func (m *Model) BeginFlush() *Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Op{m: m, begin: m.tick()}
}

// Flushed tells that a flush succeeded.
func (o *Op) Flushed() {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := range m.blocks {
		for i := range m.blocks[b] {
			if v := &m.blocks[b][i]; v.end < o.begin && !v.maybe {
				v.durable = true
			}
		}
	}
}

// BeginRead tells that a read of [off, off+n) begins; call Check or Forget.
func (m *Model) BeginRead(off int64, n int) *Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.op(off, n)
	m.reads[o] = struct{}{}
	return o
}

// Forget tells that a read failed.
func (o *Op) Forget() {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	delete(o.m.reads, o)
}

// Check tells that a read returned p, and what is wrong with it.
func (o *Op) Check(p []byte) error {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.reads, o)
	for b := o.first; b < o.last; b++ {
		stamp, err := stampOf(p[(b-o.first)*m.block:][:m.block], b)
		if err != nil {
			return err
		}
		if !m.possible(b, stamp, func(w, w2 version) bool { return w2.begin > w.end && w2.end < o.begin }) {
			return fmt.Errorf("block %d has content %d at time %d, possible were %v", b, stamp, o.begin, m.blocks[b])
		}
	}
	return nil
}

// CheckMap tells that a device described what a read was begun of, with at most
// limit stretches, and what is wrong with that: zeros must be what a read could
// have returned.
func (o *Op) CheckMap(got []target.Stretch, limit int) error {
	m := o.m
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.reads, o)
	b := o.first
	for _, s := range got {
		if s.Length <= 0 || s.Length%int64(m.block) != 0 || b >= o.last {
			return fmt.Errorf("blocks [%d, %d) are described as %v", o.first, o.last, got)
		}
		for end := b + int(s.Length)/m.block; b < end; b++ {
			if s.Flags&(target.Hole|target.Zero) != 0 && b < o.last &&
				!m.possible(b, 0, func(w, w2 version) bool { return w2.begin > w.end && w2.end < o.begin }) {
				return fmt.Errorf("block %d is described as zeros at time %d, possible were %v", b, o.begin, m.blocks[b])
			}
		}
	}
	if len(got) == 0 || len(got) > limit || b < o.last && len(got) < limit {
		return fmt.Errorf("blocks [%d, %d) are described as %v, limit %d", o.first, o.last, got, limit)
	}
	return nil
}

// possible tells whether block b may have the content stamp, where replaced
// tells that w2 rules w out.
func (m *Model) possible(b int, stamp uint64, replaced func(w, w2 version) bool) bool {
next:
	for _, w := range m.blocks[b] {
		if w.stamp != stamp {
			continue
		}
		for _, w2 := range m.blocks[b] {
			if !w2.maybe && replaced(w, w2) {
				continue next
			}
		}
		return true
	}
	return false
}

// prune forgets contents of block b that no read and no power cut can show.
func (m *Model) prune(b int) {
	vs := m.blocks[b]
	oldest := m.clock
	for o := range m.reads {
		oldest = min(oldest, o.begin)
	}
	kept := vs[:0:0]
	for _, w := range vs {
		gone := false
		for _, w2 := range vs {
			gone = gone || !w2.maybe && w2.durable && w2.begin > w.end && w2.end < oldest
		}
		if !gone {
			kept = append(kept, w)
		}
	}
	m.blocks[b] = kept
}

// Recovered checks what a device has after a power cut; p is all of it. What is
// there counts as durable from then on. No operation may be under way.
func (m *Model) Recovered(p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := range m.blocks {
		stamp, err := stampOf(p[b*m.block:][:m.block], b)
		if err != nil {
			return err
		}
		if !m.possible(b, stamp, func(w, w2 version) bool { return w2.durable && w2.begin > w.end }) {
			return fmt.Errorf("after a power cut block %d has content %d, possible were %v", b, stamp, m.blocks[b])
		}
		now := m.tick()
		m.blocks[b] = []version{{stamp: stamp, begin: now, end: now, durable: true}}
	}
	return nil
}

// fill writes the content named stamp of block b.
func fill(p []byte, stamp uint64, b int) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp<<20^uint64(b)<<10^uint64(i/8))
	}
}

// stampOf recognises a content of block b; an error means a torn or foreign one.
func stampOf(p []byte, b int) (uint64, error) {
	stamp := (binary.LittleEndian.Uint64(p) ^ uint64(b)<<10) >> 20
	if binary.LittleEndian.Uint64(p) == 0 {
		for i, c := range p {
			if c != 0 {
				return 0, fmt.Errorf("block %d begins with zeros and has %#x at byte %d", b, c, i)
			}
		}
		return 0, nil
	}
	for i := 0; i < len(p); i += 8 {
		if got := binary.LittleEndian.Uint64(p[i:]); got != stamp<<20^uint64(b)<<10^uint64(i/8) {
			return 0, fmt.Errorf("block %d begins with content %d and has %#x at byte %d", b, stamp, got, i)
		}
	}
	return stamp, nil
}
