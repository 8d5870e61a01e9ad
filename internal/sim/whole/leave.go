package whole

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
)

// stayers are the machines that are neither gone nor leave.
func (w *World) stayers() (out []*machine) {
	for _, m := range w.machines {
		if !m.gone && !m.leaving {
			out = append(out, m)
		}
	}
	return out
}

// copiesMax is how many copies any volume of the pool wants.
func (w *World) copiesMax() int {
	n := 3
	for _, v := range w.volumes {
		n = max(n, v.replicas)
	}
	return n
}

// drain empties a machine, of which there is one to spare. At times the operator
// thinks better of it.
func drain(w *World, rng *rand.Rand) {
	in := w.stayers()
	if len(in) <= w.copiesMax() || len(in) < len(w.machines) {
		return
	}
	m := in[rng.IntN(len(in))]
	if m == w.victim() {
		return
	}
	m.leaving = true
	w.count("drain", "%s", m.name)
	back := rng.IntN(2) == 0
	w.background.Go(func() { w.stand(m, pool.Draining) })
	if back {
		w.undo(spell(rng)+time.Second, func() {
			w.stand(m, pool.Draining)
			w.stand(m, pool.Member)
			w.event("%s: stays after all", m.name)
			m.leaving = false
		})
	}
}

// wipe takes a machine away for good, with its disk; the operator says so.
func wipe(w *World, rng *rand.Rand) {
	in := w.stayers()
	if len(in) <= w.copiesMax() || len(in) < len(w.machines) {
		return
	}
	m := in[rng.IntN(len(in))]
	if !m.take() { // for ever
		return
	}
	w.count("wipe", "%s", m.name)
	w.lose("loss of " + m.name)
	m.gone = true
	m.stop(true)
	w.background.Go(func() { w.stand(m, pool.Lost) })
}

// stand decides about a node until the pool has it.
func (w *World) stand(m *machine, to pool.Standing) {
	for w.sound() {
		for _, o := range w.machines {
			p := o.running()
			if p == nil {
				continue
			}
			r, ok := p.core.Pool.State().Node(m.id)
			if ok && r.Standing == to {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = p.core.Pool.Submit(ctx, pool.Command{SetStanding: &pool.SetStanding{Node: m.id, From: r.Standing, Standing: to, When: time.Now().Unix()}})
			cancel()
		}
		w.sleep(time.Second)
	}
}

// depart waits until nothing is left on a machine that leaves, and removes it.
func (w *World) depart(m *machine) {
	for w.sound() {
		for _, o := range w.machines {
			p := o.running()
			if p == nil || o == m {
				continue
			}
			st := p.core.Pool.State()
			r, ok := st.Node(m.id)
			if !ok {
				return // removed
			}
			if !r.Leaving() || !w.empty(m, st) {
				break
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = p.core.Pool.Submit(ctx, pool.Command{RemoveNode: &pool.RemoveNode{Node: m.id}})
			cancel()
		}
		w.sleep(time.Second)
	}
}

// empty tells whether a machine holds nothing of the pool any more.
func (w *World) empty(m *machine, st *pool.State) bool {
	for _, lane := range st.Lanes.Lanes {
		if slices.ContainsFunc(lane, func(b overlay.BrickRef) bool { return b.Node == m.id }) {
			return false
		}
	}
	for _, v := range w.volumes {
		p := w.somebody(v)
		if g, ok := p.core.Acceptors.Group(ident.MapBlock(v.id)); !ok {
			continue
		} else {
			for _, x := range g.Config.Members {
				if x.Node == m.id {
					return false
				}
			}
		}
	}
	if p := m.running(); p != nil {
		for _, v := range w.volumes {
			if len(p.brick.ListVolume(v.id)) > 0 {
				return false
			}
		}
	}
	return true
}

// somebody is a process that stays, the one that serves v if possible.
func (w *World) somebody(v *volume) *process {
	if m := w.machines[v.home]; !m.gone && !m.leaving && m.running() != nil {
		return m.running()
	}
	for i, m := range w.machines {
		if p := m.running(); p != nil && !m.leaving {
			v.home = i
			return p
		}
	}
	return nil
}
