package whole

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/anishathalye/porcupine"
)

// The model of one block. A state is the versions of the block since the last
// one that is sure to be durable, oldest first, 32 bytes each: a write adds one,
// a flush leaves the newest, a loss goes back to any of them.

const versionSize = sectors * 4

func version(ids [sectors]uint32) string {
	b := make([]byte, 0, versionSize)
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return string(b)
}

func newest(state string) (ids [sectors]uint32) {
	b := state[len(state)-versionSize:]
	for i := range ids {
		ids[i] = binary.LittleEndian.Uint32([]byte(b[4*i : 4*i+4]))
	}
	return ids
}

// step is what an operation makes of a state; nothing if it cannot be.
func step(state string, r *row, keep bool) []string {
	if r.maybe {
		sure := *r
		sure.maybe = false
		return append(step(state, &sure, keep), state)
	}
	switch r.kind {
	case opRead:
		now := newest(state)
		for i := range now {
			if r.mask>>i&1 == 1 && r.got[i] != now[i] {
				return nil
			}
		}
		return []string{state}
	case opWrite:
		now := newest(state)
		for i := range now {
			if r.mask>>i&1 == 1 {
				now[i] = r.id
			}
		}
		if r.fua || !keep {
			return []string{version(now)}
		}
		return []string{state + version(now)}
	case opFlush:
		return []string{state[len(state)-versionSize:]}
	}
	var out []string
	for n := versionSize; n <= len(state); n += versionSize {
		if s := state[:n]; !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// stepsMax bounds the work on one block. Of a history that needs more a beginning is
// judged, and it is counted.
var stepsMax = 20_000_000 // tests have less

// judge tells whether the rows of one block could have come from one disk.
func judge(rows []row) (ok, decided bool) {
	keep := slices.ContainsFunc(rows, func(r row) bool { return r.kind == opLoss })
	branch := keep || slices.ContainsFunc(rows, func(r row) bool { return r.maybe })
	steps := 0
	count := func() bool { steps++; return steps <= stepsMax }
	start := version([sectors]uint32{})
	model := porcupine.Model{
		Init: func() any { return start },
		Step: func(s, in, _ any) (bool, any) {
			next := step(s.(string), in.(*row), false)
			if next == nil || !count() {
				return false, s
			}
			return true, next[0]
		},
	}
	if branch {
		m := porcupine.NondeterministicModel{
			Init: func() []any { return []any{start} },
			Step: func(s, in, _ any) []any {
				if !count() {
					return nil
				}
				var out []any
				for _, n := range step(s.(string), in.(*row), keep) {
					out = append(out, n)
				}
				return out
			},
			Equal: func(a, b any) bool { return a.(string) == b.(string) },
		}
		model = m.ToModel()
	}
	ops := make([]porcupine.Operation, len(rows))
	for i := range rows {
		ops[i] = porcupine.Operation{ClientId: i, Input: &rows[i], Call: rows[i].call, Return: rows[i].ret}
	}
	ok = porcupine.CheckOperations(model, ops)
	return ok, steps <= stepsMax
}

// rows is the history of one block in one world, ready to be judged. Writes of unknown
// outcome that nobody saw are left out: they are as good as never done. One that
// was seen took effect before it was seen, and before a later epoch answered
// anything: a takeover settles what was under way. late is a write that began only
// then and was seen nevertheless.
func (h *history) rows(block int, in world) (out []row, late *row) {
	all := in.of(h.blocks[block])
	for _, r := range all {
		if r.kind == opWrite && r.ret == never {
			seen := int64(never)
			found := false
			for _, o := range all {
				if o.kind != opRead || o.ret < r.call {
					continue
				}
				for i, id := range o.got {
					if o.mask>>i&1 == 1 && r.mask>>i&1 == 1 && id == r.id {
						found, seen = true, min(seen, o.ret)
					}
				}
			}
			if !found {
				continue
			}
			r.fua = false // only an answer promises that it is durable
			settled := h.settled(r.epoch, in)
			switch {
			case r.id == 0 && settled < r.call: // zeros are from anybody
				continue
			case r.id == 0:
				r.maybe, r.ret = true, settled
			case settled < r.call:
				late = &r
				fallthrough
			default:
				r.ret = max(r.call, min(seen, settled))
			}
		}
		out = append(out, r)
	}
	if losses := in.losses(h.losses); len(losses) > 0 && len(out) > 0 {
		out = append(append(out, in.of(h.flushes)...), losses...)
	}
	return out, late
}

// check judges the whole history of a volume, block by block, in each of its worlds.
func (w *World) check(v *volume) {
	for _, in := range v.hist.worlds() {
		for b := range v.hist.blocks {
			if w.sound() {
				w.checkBlock(v, b, in)
			}
		}
	}
}

func (w *World) checkBlock(v *volume, b int, in world) {
	h := &v.hist
	rows, late := h.rows(b, in)
	if late != nil {
		w.violated("%s: block %d shows a write that began when a later epoch had answered: %v", v.name, b, late)
		return
	}
	ok, decided := judge(rows)
	for part := 2; !decided && part <= 16; part *= 2 {
		if part == 2 {
			h.undecided++
		}
		// A disk's history begins like one.
		ends := endsOf(rows)
		rows = before(rows, ends[len(ends)/part])
		ok, decided = judge(rows)
	}
	if !decided {
		return
	}
	h.checked += len(rows)
	if !ok {
		w.violated("%s: the history of block %d%s is not that of a disk\n%s", v.name, b, in, explain(rows))
	}
}

// endsOf are the moments at which an operation ended, ascending.
func endsOf(rows []row) []int64 {
	var ends []int64
	for _, r := range rows {
		if r.ret != never {
			ends = append(ends, r.ret)
		}
	}
	slices.Sort(ends)
	return ends
}

// before is what had happened by moment t.
func before(rows []row, t int64) []row {
	var out []row
	for _, r := range rows {
		if r.call > t {
			continue
		}
		if r.ret > t {
			if r.kind == opRead || r.kind == opFlush {
				continue
			}
			r.ret = never
		}
		out = append(out, r)
	}
	return out
}

// explain finds the shortest beginning of a history that is wrong and shows its
// end.
func explain(rows []row) string {
	ends := endsOf(rows)
	until := func(t int64) []row { return before(rows, t) }
	i := sort.Search(len(ends), func(i int) bool {
		ok, decided := judge(until(ends[i]))
		return !ok || !decided
	})
	if i < len(ends) {
		rows = until(ends[i])
	}
	slices.SortFunc(rows, func(a, b row) int { return int(a.call - b.call) })
	var b strings.Builder
	for i, r := range rows {
		if i >= len(rows)-30 || r.kind == opLoss || r.ret == never {
			b.WriteString("  " + r.String() + "\n")
		}
	}
	return b.String()
}

func (r row) String() string {
	end := "?"
	if r.ret != never {
		end = fmt.Sprint("#", r.ret)
	}
	s := fmt.Sprintf("#%d..%s %.3fs %s ", r.call, end, r.at.Seconds(), r.where)
	switch r.kind {
	case opRead:
		return s + fmt.Sprintf("read mask %08b = %v", r.mask, r.got)
	case opWrite:
		fua := ""
		if r.fua {
			fua = " fua"
		}
		if r.maybe {
			fua += ", or nothing"
		}
		return s + fmt.Sprintf("write mask %08b := %d%s", r.mask, r.id, fua)
	case opFlush:
		return s + "flush"
	}
	return s + "may lose what was not flushed"
}
