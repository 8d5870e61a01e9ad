package extentmap

import (
	"errors"
	"maps"
	"math/rand/v2"
	"testing"
)

func TestChangesAgreeWithFlatArrays(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 11))
		m := newModel(t)
		type version struct {
			root   Root
			blocks map[uint64]Ptr
		}
		versions := []version{{}}
		level := 0
		for range 6 {
			if rng.IntN(3) == 0 && level < LevelMax {
				level++
			}
			zeros, changes, _ := m.script(rng, span(level))
			m.update(level, zeros, changes, nil)
			versions = append(versions, version{m.root, maps.Clone(m.blocks)})
		}
		for _, a := range versions {
			for _, b := range versions {
				from := rng.Uint64N(span(level))
				to := from + 1 + rng.Uint64N(2*span(level)-from)
				if rng.IntN(3) == 0 {
					from, to = 0, span(level)+5
				}
				differ, next := uint64(0), from
				err := Changes(a.root, b.root, from, to, m.s, func(f, e uint64, same bool) error {
					if f != next || e <= f || e > to {
						t.Fatalf("seed %d: run [%d,%d) after %d", seed, f, e, next)
					}
					next = e
					if same {
						return nil
					}
					differ += e - f
					for k := f; k < e; k++ {
						if a.blocks[k] == b.blocks[k] {
							t.Fatalf("seed %d: block %d does not differ", seed, k)
						}
					}
					return nil
				})
				want := uint64(0)
				for k, p := range a.blocks {
					if _, both := b.blocks[k]; k >= from && k < to && (!both || p != b.blocks[k]) {
						want++
					}
				}
				for k := range b.blocks {
					if _, both := a.blocks[k]; k >= from && k < to && !both {
						want++
					}
				}
				if err != nil || next != to || differ != want {
					t.Fatalf("seed %d: [%d,%d) up to %d, %d differ instead of %d, %v", seed, from, to, next, differ, want, err)
				}
			}
		}
	}
}

// What is equal or outside the range is not loaded.
func TestChangesLoadOnlyWhatDiffers(t *testing.T) {
	m := newModel(t)
	var changes []Change
	for b := uint64(0); b < span(2); b += 1 << 16 {
		changes = append(changes, Change{b, m.ptr()})
	}
	m.update(2, nil, changes, nil)
	before := m.root
	m.update(2, nil, []Change{{5, m.ptr()}, {span(2) - 1, m.ptr()}}, nil)
	visit := func(_, _ uint64, _ bool) error { return nil }
	m.s.loads = 0
	if err := Changes(before, m.root, 0, span(2), m.s, visit); err != nil || m.s.loads > 2*5 {
		t.Errorf("two changes took %d loads, %v", m.s.loads, err)
	}
	m.s.loads = 0
	if err := Changes(Root{}, m.root, 256, 1<<16, m.s, visit); err != nil || m.s.loads != 2 {
		t.Errorf("a range of holes took %d loads, %v", m.s.loads, err)
	}
	m.s.loads = 0
	if err := Changes(before, before, 0, 1<<40, m.s, visit); err != nil || m.s.loads != 0 {
		t.Errorf("equal maps took %d loads, %v", m.s.loads, err)
	}
	if err := Changes(before, m.root, 0, 10, m.s, func(_, _ uint64, _ bool) error { return errStore }); !errors.Is(err, errStore) {
		t.Error(err)
	}
	m.s.fail = 2
	if err := Changes(before, m.root, 0, 10, m.s, visit); !errors.Is(err, errStore) {
		t.Error(err)
	}
}
