package blockdev

import (
	"context"
	"errors"
	"slices"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/blockdev/tail"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target"
)

const (
	// mapWindow is how many blocks the first step of Map looks at. Each further
	// step looks at mapGrowth times as many, so that a caller who asks for one
	// stretch does not pay for the whole tail.
	mapWindow = 1024
	mapGrowth = 8
)

// Map implements target.Mapper from the tails and the map. Its cost follows the
// pages of the map that the described part has and the blocks in the tails;
// a hole costs nothing, however long.
func (v *Volume) Map(ctx context.Context, off, n int64, snapshot string, limit int, dst []target.Stretch) ([]target.Stretch, error) {
	if err := v.check("map", off, n); err != nil {
		return dst, err
	}
	return v.mapRange(ctx, mapping{snapshot: snapshot, limit: limit, off: off, end: off + n}, dst)
}

// Snapshots implements target.Mapper.
func (v *Volume) Snapshots() []string { return v.snapshotNames(0) }

// snapshotNames are the names of the snapshots older than one, or of all for 0,
// sorted.
func (v *Volume) snapshotNames(before uint64) []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var names []string
	for _, s := range v.snaps {
		if before == 0 || s.ID < before {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

// mapRange runs m and checks the right to answer at the end, as ReadAt does.
func (v *Volume) mapRange(ctx context.Context, m mapping, dst []target.Stretch) ([]target.Stretch, error) {
	if m.off == m.end {
		return dst, fault.Newf(fault.Invalid, "volume.map", v.cfg.Name, "an empty range has no stretches")
	}
	ctx, cancel := context.WithTimeout(ctx, v.cfg.IOTimeout)
	defer cancel()
	stop := context.AfterFunc(v.ctx, cancel)
	defer stop()
	for {
		m.dst, m.start = dst, len(dst)
		gen, err := m.take(v)
		if err != nil {
			return dst, err
		}
		err = m.run(waiting{v, ctx})
		v.mu.RLock()
		changed := v.mapGen != gen
		v.mu.RUnlock()
		if err != nil && changed && ctx.Err() == nil {
			continue // a page that was looked for was freed meanwhile
		}
		if err == nil && m.of == nil {
			// What is told rests on entries up to the newest one.
			if err = v.waitShowable(ctx, v.log.Next()-1); err == nil {
				err = v.waitLease(ctx)
			}
		}
		if gone := v.Err(); gone != nil {
			err = gone
		}
		if err != nil {
			return dst, err
		}
		return m.dst, nil
	}
}

// sortOf says what flags the two kinds of map runs and the kinds of a tail have.
type sortOf struct {
	same, differ target.StretchFlags
	tail         [4]target.StretchFlags // by tail.Kind
}

var (
	// allocated describes what is stored: the changes since the empty map.
	allocated = sortOf{same: target.Hole | target.Zero, tail: [4]target.StretchFlags{tail.Zero: target.Hole | target.Zero}}
	// dirtied describes what may have changed. A tail may say again what was there.
	dirtied = sortOf{differ: target.Dirty, tail: [4]target.StretchFlags{tail.Data: target.Dirty, tail.Zero: target.Dirty, tail.Extent: target.Dirty}}
)

// mapping is one description under way.
type mapping struct {
	of       *snapshot // what is described; nil for the live volume
	snapshot string    // what it is compared with; "" for what is allocated
	off, end int64     // bytes to be described
	limit    int

	v     *Volume // whose lock guards the tails
	sort  *sortOf
	since extentmap.Root // what root is compared with
	root  extentmap.Root
	tails []*tail.Tail // newest first; none for a snapshot
	dst   []target.Stretch
	start int // where the stretches of this description begin in dst
}

// take takes the present state and tells which it is. NotFound: no such
// snapshot, or none that is older than what is described.
func (m *mapping) take(v *Volume) (gen uint64, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	m.v, m.sort, m.since = v, &allocated, extentmap.Root{}
	if m.snapshot != "" {
		s := v.findSnapshot(m.snapshot)
		if s == nil {
			return 0, v.noSnapshot("volume.map", m.snapshot)
		}
		if m.of != nil && s.ID >= m.of.ID {
			return 0, fault.Newf(fault.NotFound, "volume.map", v.cfg.Name, "snapshot %q is not older than %q", m.snapshot, m.of.Name)
		}
		m.sort, m.since = &dirtied, s.Root
	}
	if m.of != nil {
		m.root = m.of.Root
		return v.mapGen, nil
	}
	m.root, m.tails = v.root, m.tails[:0]
	if m.snapshot != "" && mutant.On("dirty-without-tail") {
		return v.mapGen, nil
	}
	for _, t := range []*tail.Tail{v.active, v.frozen} {
		if t != nil && dirty(t) {
			m.tails = append(m.tails, t)
		}
	}
	return v.mapGen, nil
}

// errEnough ends a walk when there are as many stretches as were asked for.
var errEnough = errors.New("enough stretches")

func (m *mapping) run(l extentmap.Loader) error {
	from, to := uint64(m.off/BlockSize), uint64((m.end+BlockSize-1)/BlockSize)
	held := uint64(0)
	for _, t := range m.tails {
		m.v.mu.RLock()
		held += uint64(t.Entries() + t.Zeros())
		m.v.mu.RUnlock()
	}
	for window := uint64(mapWindow); from < to; window *= mapGrowth {
		end := to
		if window < held && window < to-from {
			end = from + window
		}
		parts := m.parts(from, end)
		err := extentmap.Changes(m.since, m.root, from, end, l, func(from, to uint64, same bool) error {
			flags := m.sort.differ
			if same {
				flags = m.sort.same
			}
			for from < to {
				for len(parts) > 0 && parts[0].To <= from {
					parts = parts[1:]
				}
				next, f := to, flags
				switch {
				case len(parts) > 0 && parts[0].From <= from:
					next, f = min(to, parts[0].To), m.sort.tail[parts[0].Kind]
				case len(parts) > 0:
					next = min(to, parts[0].From)
				}
				if !m.add(from, next, f) {
					return errEnough
				}
				from = next
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
		from = end
	}
	return nil
}

// parts is what the tails say of [from, to).
func (m *mapping) parts(from, to uint64) []tail.Part {
	var out []tail.Part
	for i := len(m.tails) - 1; i >= 0; i-- {
		out = tail.Cover(out, m.partsOf(m.tails[i], from, to))
	}
	return out
}

// partsOf holds the lock for one shard, or for one small window, at a time.
func (m *mapping) partsOf(t *tail.Tail, from, to uint64) []tail.Part {
	mu := &m.v.mu
	var blocks []tail.Part
	if to-from <= mapWindow {
		mu.RLock()
		defer mu.RUnlock()
		for b := from; b < to; b++ {
			if h := t.Get(b); h.Kind != tail.Miss {
				blocks = append(blocks, tail.Part{From: b, To: b + 1, Kind: h.Kind})
			}
		}
		return blocks
	}
	mu.RLock()
	zeros := t.ZerosIn(from, to, nil)
	mu.RUnlock()
	for s := range tail.Shards {
		mu.RLock()
		blocks = t.BlocksIn(s, from, to, blocks)
		mu.RUnlock()
	}
	return tail.Join(zeros, blocks)
}

// add appends what is known of a run of blocks, and reports false when a
// stretch more would be one too many.
func (m *mapping) add(from, to uint64, flags target.StretchFlags) bool {
	first, end := max(m.off, int64(from)*BlockSize), min(m.end, int64(to)*BlockSize)
	if n := len(m.dst); n > m.start {
		if m.dst[n-1].Flags == flags {
			m.dst[n-1].Length += end - first
			return true
		}
		if n-m.start >= m.limit {
			return false
		}
	}
	m.dst = append(m.dst, target.Stretch{Length: end - first, Flags: flags})
	return true
}

var _ target.Mapper = (*Volume)(nil)
