package targettest

import (
	"context"
	"maps"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// layout is what a Memory knows of its blocks beside their contents.
type layout struct {
	written   []uint64 // clock of the last change of each block; 0: never
	stored    []bool   // not a hole
	clock     uint64
	snapshots map[string]uint64 // clock at which each was taken
}

// note marks [first, last) as changed.
func (l *layout) note(first, last int64, stored bool) {
	l.clock++
	if n := int(last) - len(l.written); n > 0 {
		l.written = append(l.written, make([]uint64, n)...)
		l.stored = append(l.stored, make([]bool, n)...)
	}
	for b := first; b < last; b++ {
		l.written[b], l.stored[b] = l.clock, stored
	}
}

// flags describes one block; since is the clock of a snapshot, or -1.
func (l *layout) flags(b, since int64) target.StretchFlags {
	var written uint64
	stored := false
	if b < int64(len(l.written)) {
		written, stored = l.written[b], l.stored[b]
	}
	switch {
	case since >= 0 && written > uint64(since):
		return target.Dirty
	case since < 0 && !stored:
		return target.Hole | target.Zero
	}
	return 0
}

// Map is that of target.Mapper. What was zeroed or trimmed is a hole.
func (m *Memory) Map(ctx context.Context, off, n int64, snapshot string, limit int, dst []target.Stretch) ([]target.Stretch, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.check("map", off, n); err != nil {
		return dst, err
	}
	if err := ctx.Err(); err != nil {
		return dst, fault.New(fault.Timeout, "memory.map", "", err)
	}
	since := int64(-1)
	if snapshot != "" {
		at, ok := m.layout.snapshots[snapshot]
		if !ok {
			return dst, fault.Newf(fault.NotFound, "memory.map", snapshot, "there is no such snapshot")
		}
		since = int64(at)
	}
	size := int64(m.block)
	first := len(dst)
	for b := off / size; b < (off+n)/size; b++ {
		f := m.layout.flags(b, since)
		if len(dst) > first && dst[len(dst)-1].Flags == f {
			dst[len(dst)-1].Length += size
			continue
		}
		if len(dst)-first == limit {
			break
		}
		dst = append(dst, target.Stretch{Length: size, Flags: f})
	}
	return dst, nil
}

// Snapshots is that of target.Mapper.
func (m *Memory) Snapshots() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.layout.snapshots))
}

// Snapshot keeps the present contents under name and returns them as a device
// of their own, which is read-only.
func (m *Memory) Snapshot(name string) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.layout.snapshots == nil {
		m.layout.snapshots = map[string]uint64{}
	}
	m.layout.snapshots[name] = m.layout.clock
	s := &Memory{block: m.block, readOnly: true, Delay: m.Delay, data: slices.Clone(m.data)}
	s.layout = layout{written: slices.Clone(m.layout.written), stored: slices.Clone(m.layout.stored), clock: m.layout.clock,
		snapshots: maps.Clone(m.layout.snapshots)}
	return s
}
