// Package targettest has what the tests of protocols and of devices share: a
// reference device in memory, a set of exports over such devices, a model that
// knows which contents a read may return, and a contract suite and a random
// exerciser for any target.Device.
package targettest

import (
	"context"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Memory is a target.Session on a flat array. With a delay it completes
// operations later, in bursts and on another goroutine, as a replicated device
// does; without one it completes them before they return. It keeps the durable
// contents apart, so that a power cut can be tested. It is a target.Mapper with
// snapshots.
//
// Several sessions may share one Memory: Close is called by each and counted.
type Memory struct {
	block    int
	readOnly bool

	// Delay is the time from an operation to its completion. While it is not
	// zero TryReadAt refuses. Set it before use.
	Delay time.Duration
	// Fail, if set, decides the result of an operation ("read", "write",
	// "flush", "zero", "trim", "map") before it has any effect. Set it before use.
	Fail func(op string, off int64, n int) error
	// Volatile makes contents durable only by Flush and FUA, at the price of a
	// copy, so that Crash has something to lose. Set it before use.
	Volatile bool

	mu      sync.RWMutex
	data    []byte
	durable []byte
	dirty   map[int64]struct{} // blocks whose durable contents are older
	closed  int
	kicks   int
	flushes int
	layout  layout

	later later
}

// NewMemory makes a device of size bytes with blocks of block bytes.
func NewMemory(size int64, block int) *Memory {
	return &Memory{block: block, data: make([]byte, size)}
}

// NewReadOnly makes a device that refuses writes and reads as zeros.
func NewReadOnly(size int64, block int) *Memory {
	m := NewMemory(size, block)
	m.readOnly = true
	return m
}

func (m *Memory) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.data))
}

func (m *Memory) BlockSize() int { return m.block }
func (m *Memory) ReadOnly() bool { return m.readOnly }

// Grow makes the device larger.
func (m *Memory) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
}

// check is what the contract has for every range, under mu.
func (m *Memory) check(op string, off, n int64) error {
	if off < 0 || n <= 0 || off%int64(m.block) != 0 || n%int64(m.block) != 0 {
		return fault.Newf(fault.Invalid, "memory."+op, "", "[%d, +%d) is not whole blocks of %d", off, n, m.block)
	}
	if off > int64(len(m.data)) || n > int64(len(m.data))-off {
		return fault.Newf(fault.Invalid, "memory."+op, "", "[%d, +%d) is beyond %d", off, n, len(m.data))
	}
	if op != "read" && op != "map" && m.readOnly {
		return fault.Newf(fault.ReadOnly, "memory."+op, "", "the device is read only")
	}
	if m.Fail != nil {
		return m.Fail(op, off, int(n))
	}
	return nil
}

func (m *Memory) TryReadAt(p []byte, off int64) bool {
	if m.Delay != 0 {
		return false
	}
	return m.read(p, off) == nil
}

func (m *Memory) read(p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.check("read", off, int64(len(p))); err != nil {
		return err
	}
	copy(p, m.data[off:])
	return nil
}

func (m *Memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if m.Delay == 0 {
		return m.read(p, off)
	}
	done := make(chan error, 1)
	err := m.read(p, off)
	m.complete(func(err error) { done <- err }, err)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Memory) Write(p []byte, off int64, fua bool, done func(error)) {
	m.change("write", off, int64(len(p)), fua, done, func() { copy(m.data[off:], p) })
}

func (m *Memory) Zero(off, n int64, fua bool, done func(error)) {
	m.change("zero", off, n, fua, done, func() { clear(m.data[off : off+n]) })
}

func (m *Memory) Trim(off, n int64, fua bool, done func(error)) {
	m.change("trim", off, n, fua, done, func() { clear(m.data[off : off+n]) })
}

func (m *Memory) change(op string, off, n int64, fua bool, done func(error), apply func()) {
	m.mu.Lock()
	err := m.check(op, off, n)
	if err == nil {
		if m.Volatile {
			m.keep(off, n)
		}
		apply()
		m.layout.note(off/int64(m.block), (off+n)/int64(m.block), op == "write")
		if fua && m.Volatile {
			m.sync(off, n)
		}
	}
	m.mu.Unlock()
	m.complete(done, err)
}

// keep marks blocks whose durable contents are about to be older, under mu.
func (m *Memory) keep(off, n int64) {
	if len(m.durable) < len(m.data) {
		m.durable = append(m.durable, make([]byte, len(m.data)-len(m.durable))...)
	}
	if m.dirty == nil {
		m.dirty = map[int64]struct{}{}
	}
	for b := off; b < off+n; b += int64(m.block) {
		m.dirty[b] = struct{}{}
	}
}

// sync makes [off, off+n) durable, under mu.
func (m *Memory) sync(off, n int64) {
	copy(m.durable[off:off+n], m.data[off:])
	for b := off; b < off+n; b += int64(m.block) {
		delete(m.dirty, b)
	}
}

func (m *Memory) Flush(done func(error)) {
	m.mu.Lock()
	m.flushes++
	var err error
	if m.Fail != nil {
		err = m.Fail("flush", 0, 0)
	}
	if err == nil {
		for b := range m.dirty {
			m.sync(b, int64(m.block))
		}
	}
	m.mu.Unlock()
	m.complete(done, err)
}

// Crash forgets what was not made durable: each such block keeps its newest or
// its durable contents, as survives says.
func (m *Memory) Crash(survives func(off int64) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := range m.dirty {
		if !survives(b) {
			m.layout.note(b/int64(m.block), b/int64(m.block)+1, true)
			copy(m.data[b:b+int64(m.block)], m.durable[b:])
		}
	}
	if m.dirty != nil {
		m.durable = append(m.durable[:0], m.data...)
	}
	clear(m.dirty)
}

func (m *Memory) Kick() {
	m.mu.Lock()
	m.kicks++
	m.mu.Unlock()
}

// Kicks and Flushes tell how often either was called.
func (m *Memory) Kicks() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.kicks
}

func (m *Memory) Flushes() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.flushes
}

// Close ends one session.
func (m *Memory) Close() {
	m.mu.Lock()
	m.closed++
	m.mu.Unlock()
}

// Closed tells how many sessions ended.
func (m *Memory) Closed() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.closed
}

// complete calls done now, or after Delay.
func (m *Memory) complete(done func(error), err error) {
	if m.Delay == 0 {
		done(err)
		return
	}
	m.later.add(time.Now().Add(m.Delay), done, err)
}

// later calls back in the order of adding; all that is due is called in one
// burst. Its goroutine lives while there is something to call.
type later struct {
	mu      sync.Mutex
	queue   []due
	running bool
}

type due struct {
	at   time.Time
	done func(error)
	err  error
}

func (l *later) add(at time.Time, done func(error), err error) {
	l.mu.Lock()
	l.queue = append(l.queue, due{at, done, err})
	if !l.running {
		l.running = true
		go l.run()
	}
	l.mu.Unlock()
}

func (l *later) run() {
	var burst []due
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.running = false
			l.mu.Unlock()
			return
		}
		wait := time.Until(l.queue[0].at)
		if wait <= 0 {
			n := 0
			for now := time.Now(); n < len(l.queue) && !l.queue[n].at.After(now); n++ {
			}
			burst = append(burst[:0], l.queue[:n]...)
			l.queue = append(l.queue[:0], l.queue[n:]...)
		}
		l.mu.Unlock()
		if wait > 0 {
			time.Sleep(wait) // the delay itself
			continue
		}
		for _, d := range burst {
			d.done(d.err)
		}
	}
}
