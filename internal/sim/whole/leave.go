package whole

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// stayers are the machines that are neither gone, nor about to be, nor leave.
func (w *World) stayers() (out []*machine) {
	for _, m := range w.machines {
		if !m.gone && !m.doomed && !m.leaving {
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

// wipe loses a machine.
func wipe(w *World, rng *rand.Rand) { w.wipe(w.pick(rng)) }

// wipe takes a machine away for good, with its disk; the operator says so.
func (w *World) wipe(m *machine) {
	in := w.stayers()
	if w.forcing { // the pool has to decide without those who are given up
		return
	}
	if len(in) <= w.copiesMax() || len(in) < len(w.machines) || m.leaving || !w.spare(m) || !m.take() { // for ever
		return
	}
	w.count("wipe", "%s", m.name)
	w.lose("loss of " + m.name)
	m.gone = true
	m.stop(true)
	w.background.Go(func() { w.stand(m, pool.Lost) })
}

// spare tells whether the pool can lose a machine: it is recorded, so that an
// operator can declare it lost, and each group that has a vote on it, the pool
// block too, can still decide by the votes of others. A volume that was made while
// nodes were down may have fewer voters than copies for a while.
func (w *World) spare(m *machine) bool {
	recorded := false
	for _, o := range w.machines {
		if p := o.running(); p != nil {
			_, ok := p.core.Pool.State().Node(m.id)
			recorded = recorded || ok
		}
	}
	for _, c := range w.configs() {
		if slices.ContainsFunc(c.Members, func(x quorum.Member) bool { return x.Node == m.id }) && c.Voters() < 3 {
			return false
		}
	}
	return recorded
}

// configs are the configurations in force: the newest that a majority of its voters
// know, or went beyond. One that only its proposer knows may never be chosen. Where too
// many are down to tell, the newest that anybody knows.
func (w *World) configs() map[ident.GroupID]quorum.Config {
	known := map[ident.GroupID]map[ident.NodeID]quorum.Config{}
	for _, o := range w.machines {
		if p := o.running(); p != nil {
			for _, g := range p.core.Acceptors.Groups() {
				if known[g.Group] == nil {
					known[g.Group] = map[ident.NodeID]quorum.Config{}
				}
				if g.Config.Version >= known[g.Group][o.id].Version {
					known[g.Group][o.id] = g.Config
				}
			}
		}
	}
	out := map[ident.GroupID]quorum.Config{}
	for g, by := range known {
		out[g] = inForce(by)
	}
	return out
}

// inForce is the configuration in force of one group, by what each node knows of it.
func inForce(known map[ident.NodeID]quorum.Config) quorum.Config {
	var newest, agreed quorum.Config
	for _, c := range known {
		n := 0
		for _, m := range c.Members {
			if m.Role != quorum.Learner && known[m.Node].Version >= c.Version {
				n++
			}
		}
		if c.Version > newest.Version {
			newest = c
		}
		if n > c.Voters()/2 && c.Version > agreed.Version {
			agreed = c
		}
	}
	if agreed.Version == 0 {
		return newest
	}
	return agreed
}

// stand decides about a node until the pool has it, or the operator decided otherwise.
func (w *World) stand(m *machine, to pool.Standing) {
	var err error
	word := m.word.Add(1)
	defer func() {
		if err != nil && !w.sound() {
			w.event("%s: not %v: %v", m.name, to, err)
		}
	}()
	for w.sound() {
		for _, o := range w.machines {
			p := o.running()
			if m.word.Load() != word {
				return
			}
			if p == nil {
				continue
			}
			r, ok := p.core.Pool.State().Node(m.id)
			if ok && r.Standing == to {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err = p.core.Pool.Submit(ctx, pool.Command{SetStanding: &pool.SetStanding{Node: m.id, From: r.Standing, Standing: to, When: time.Now().Unix()}})
			cancel()
		}
		w.sleep(time.Second)
	}
}

// keep ends a drain of which the operator thought better, if a request that seemed lost
// brought it about after all.
func (w *World) keep(m *machine) {
	for w.sound() {
		for _, o := range w.machines {
			p := o.running()
			if p == nil {
				continue
			}
			if r, ok := p.core.Pool.State().Node(m.id); !ok || r.Standing != pool.Draining {
				return
			}
			w.stand(m, pool.Member)
		}
		w.sleep(time.Second)
	}
}

// depart waits until nothing is left on a machine that leaves, and removes it.
func (w *World) depart(m *machine) {
	why := ""
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
			if why = w.left(m, st); !r.Leaving() || why != "" {
				break
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = p.core.Pool.Submit(ctx, pool.Command{RemoveNode: &pool.RemoveNode{Node: m.id}})
			cancel()
		}
		w.sleep(time.Second)
	}
	w.event("%s: %s", m.name, why)
}

// left tells what a machine still holds of the pool; nothing if it is empty.
func (w *World) left(m *machine, st *pool.State) string {
	for _, lane := range st.Lanes.Lanes {
		if slices.ContainsFunc(lane, func(b overlay.BrickRef) bool { return b.Node == m.id }) {
			return "a lane"
		}
	}
	newest := w.configs()
	p := m.running()
	for _, d := range st.Volumes { // those too that nobody uses now
		if slices.Contains(d.Seeds, m.id) || len(d.Seeds) == 0 && slices.ContainsFunc(d.Voters, func(x quorum.Member) bool { return x.Node == m.id }) {
			return "by the catalog a vote on " + d.Name // and an operator would be told so
		}
		for _, x := range newest[ident.MapBlock(d.ID)].Members {
			if x.Node == m.id {
				return "a vote on " + d.Name
			}
		}
		if p != nil && len(p.brick.ListVolume(d.ID)) > 0 {
			return "extents of " + d.Name
		}
	}
	return ""
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
