package whole

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/node"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// rescue is a forced recovery: most voters of a volume go down, an operator goes on
// with the best of the others, and those that were given up come back, or never do.
type rescue struct {
	w     *World
	rng   *rand.Rand
	v     *volume
	group ident.GroupID
	lost  []*machine // those that are given up
	rest  []*machine // the other voters

	lag    time.Duration // for how long one of the rest has missed everything
	stored uint64        // the newest checkpoint that a voter had
	fresh  bool          // perhaps there is a newer one: what an older state names may be freed
	wiped  bool          // they never come back

	from   quorum.Survivor // that is gone on from
	seen   map[ident.NodeID]quorum.Survivor
	forced uint64 // version of the new configuration
}

// force plans a rescue. One volume is rescued at a time, and once in a run. The pool
// must be able to decide meanwhile.
func force(w *World, rng *rand.Rand) {
	r := &rescue{w: w, seen: map[ident.NodeID]quorum.Survivor{}, rng: rand.New(rand.NewPCG(rng.Uint64(), 1)), v: w.volume(rng)}
	r.group = ident.MapBlock(r.v.id)
	if w.forcing || r.v.hist.forced != nil || len(w.stayers()) < len(w.machines) || !r.take() {
		return
	}
	w.forcing = true
	w.background.Go(func() {
		defer func() { w.forcing = false }()
		if r.down() && r.decide() {
			r.published()
		}
		r.end()
	})
}

// take draws the machines and reserves those that are given up.
func (r *rescue) take() bool {
	w := r.w
	voters := w.configs()[r.group].Members
	voters = slices.DeleteFunc(slices.Clone(voters), func(m quorum.Member) bool { return m.Role != quorum.Voter })
	r.rng.Shuffle(len(voters), func(i, k int) { voters[i], voters[k] = voters[k], voters[i] })
	lose := len(voters) - len(voters)/2 // so many that the others are no majority
	if lose >= len(voters) {
		return false
	}
	for i, m := range voters {
		if x := w.machines[m.Node[0]-1]; i < lose {
			r.lost = append(r.lost, x)
		} else {
			r.rest = append(r.rest, x)
		}
	}
	for _, m := range r.rest {
		if m.running() == nil {
			return false
		}
	}
	if !r.spares(ident.PoolBlock(w.pool)) {
		return false
	}
	for i, m := range r.lost {
		if m.running() == nil || !m.take() {
			for _, o := range r.lost[:i] {
				o.release()
			}
			return false
		}
	}
	return true
}

// spares tells whether a group can decide without those who are given up.
func (r *rescue) spares(g ident.GroupID) bool { return r.sparesIn(r.w.configs()[g]) }

func (r *rescue) sparesIn(c quorum.Config) bool {
	n := 0
	for _, m := range c.Members {
		if m.Role == quorum.Voter && !slices.Contains(r.lost, r.w.machines[m.Node[0]-1]) {
			n++
		}
	}
	return n > c.Voters()/2
}

// pool tells whether the pool can decide without those who are given up by whatever its nodes
// take for its configuration: a drain may just be changing it.
func (r *rescue) pool() bool {
	for _, m := range r.w.machines {
		if p := m.running(); p != nil {
			if g, ok := p.core.Acceptors.Group(ident.PoolBlock(r.w.pool)); ok && !r.sparesIn(g.Config) {
				return false
			}
		}
	}
	return r.spares(ident.PoolBlock(r.w.pool))
}

// down lets one of the rest miss what comes, in half of the cases, and then stops
// those that are given up. False: the pool needs them by now, and they go on.
func (r *rescue) down() bool {
	w := r.w
	power := r.rng.IntN(2) == 0
	if r.rng.IntN(3) > 0 {
		r.lag = time.Duration(r.rng.IntN(1500)) * time.Millisecond
		if r.rng.IntN(2) == 0 {
			r.lag *= 10
		}
		m := r.rest[0]
		w.net.Isolate(m.id)
		defer w.net.Rejoin(m.id)
		w.until(r.lag)
	}
	if !r.pool() {
		return false
	}
	for _, m := range r.lost {
		if p := m.running(); p != nil {
			g, _ := p.core.Acceptors.Group(r.group)
			r.stored = max(r.stored, g.UpTo)
		}
	}
	for _, m := range w.machines {
		if p := m.running(); p != nil {
			for vol := range p.core.Manager.Attached() {
				made := vol.Stats().Checkpoints.Load() > 0 && vol.Status().CheckpointAge < r.lag+time.Second
				r.fresh = r.fresh || vol.ID() == r.v.id && r.lag > 0 && made
			}
		}
	}
	r.wiped = r.rng.IntN(2) == 0 && r.canWipe()
	for _, m := range r.lost {
		m.doomed = r.wiped // a drain would leave too few for all copies
		if power || r.wiped {
			w.lose("power of " + m.name)
		}
		m.stop(power || r.wiped)
	}
	return true
}

// canWipe tells whether the pool can do without the disks too: nothing is on them
// alone, and no other group stands still.
func (r *rescue) canWipe() bool {
	w := r.w
	if len(w.stayers())-len(r.lost) < w.copiesMax() {
		return false
	}
	for g := range w.configs() {
		if g != r.group && !r.spares(g) {
			return false
		}
	}
	left := map[ident.Addr]bool{}
	var gone []ident.Addr
	for _, m := range w.machines {
		p := m.running()
		if p == nil {
			return false // what does it hold, and vote on?
		}
		if _, ok := p.core.Pool.State().Node(m.id); !ok {
			return false // nobody could declare it lost
		}
		for _, v := range append(slices.Clone(w.volumes), w.passing...) {
			for _, x := range p.brick.ListVolume(v.id) {
				if slices.Contains(r.lost, m) {
					gone = append(gone, x.Addr)
				} else {
					left[x.Addr] = true
				}
			}
		}
	}
	return !slices.ContainsFunc(gone, func(a ident.Addr) bool { return !left[a] })
}

// rescueMax bounds a step of the operator.
const rescueMax = 20 * time.Second

// leaseMax is longer than a holder reads without its voters.
const leaseMax = 4 * time.Second

// decide is the operator: some seconds after the voters went down it recovers the
// volume, again and again until that is done. False: there was nothing to recover.
func (r *rescue) decide() bool {
	w := r.w
	w.sleep(leaseMax) // nobody is that fast; what the old holder was promised ends meanwhile
	w.until(spell(r.rng))
	for w.sound() {
		if p := r.operator(); p != nil {
			ctx, cancel := context.WithTimeout(context.Background(), rescueMax)
			done, over := r.try(ctx, p)
			cancel()
			if done || over {
				return done
			}
		}
		w.sleep(time.Second)
	}
	return false
}

// operator is a process to turn to.
func (r *rescue) operator() *process {
	ms := slices.DeleteFunc(slices.Clone(r.w.machines), func(m *machine) bool {
		return slices.Contains(r.lost, m) || m.leaving || m.running() == nil
	})
	if len(ms) == 0 {
		return nil
	}
	return ms[r.rng.IntN(len(ms))].running()
}

// try recovers the volume at a process, as gabion volume recover does.
func (r *rescue) try(ctx context.Context, p *process) (done, over bool) {
	w := r.w
	d, ok := p.core.Pool.State().Volume(r.v.id)
	if !ok {
		return false, false
	}
	found, err := p.core.VolumeSurvivors(ctx, d)
	if err != nil {
		return false, false
	}
	for _, s := range found {
		r.seen[s.Member.Node] = s
	}
	begun := r.from.Member.Node != ident.NodeID{}
	if begun { // an answer was lost; it may have been done
		_, _ = p.core.FinishForced(ctx, d, found)
		if s, ok := same(found, r.from); ok && quorum.ForcedVersion(s.Config.Version) > 0 {
			return r.done(s), false
		}
	}
	if quorum.Quorate(found) {
		w.event("%s: nothing to recover", r.v.name)
		return false, !begun
	}
	best, voters := node.ChooseSurvivor(found, func(s quorum.Survivor) bool { return !begun || s.Member.Same(r.from.Member) }, d.Replicas)
	if best < 0 {
		return false, false
	}
	if s := found[best]; !begun && (s.UpTo < r.stored || r.fresh) {
		w.event("%s: not recovered, a checkpoint may have freed what its survivor names", r.v.name)
		return false, true
	}
	r.from = found[best]
	_, err = p.core.ForceVolume(ctx, d, r.from.Member, voters, pool.Audit{When: time.Now().Unix(), Node: p.m.id, What: "volume recover", Subject: d.Name})
	if err != nil {
		w.event("%s: recovered from %s: %v", r.v.name, r.from.Member.Node.Short(), err)
		return false, false
	}
	found, err = quorum.Survivors(ctx, p.link, []ident.NodeID{r.from.Member.Node}, r.group)
	if s, ok := same(found, r.from); err == nil && ok {
		return r.done(s), false
	}
	return false, false
}

func same(found []quorum.Survivor, s quorum.Survivor) (quorum.Survivor, bool) {
	i := slices.IndexFunc(found, func(o quorum.Survivor) bool { return o.Member.Same(s.Member) })
	if i < 0 {
		return s, false
	}
	return found[i], true
}

// done notes what was kept.
func (r *rescue) done(now quorum.Survivor) bool {
	w, h := r.w, &r.v.hist
	f := forcedAt(w.tick(0), r.from, now)
	for _, m := range now.Config.Members {
		if s, ok := r.seen[m.Node]; ok && !m.Same(r.from.Member) {
			f.beside(s)
		}
	}
	h.mu.Lock()
	h.forced = f
	h.mu.Unlock()
	r.v.epoch = max(r.v.epoch, f.epoch)
	r.forced = quorum.ForcedVersion(now.Config.Version)
	var lost string
	for _, m := range r.lost {
		lost += " " + m.name
	}
	w.count("force", "%s without%s from %s: epoch %d, slots %d to %d kept; %d answers given up, wiped: %v", r.v.name, lost,
		w.machines[now.Member.Node[0]-1].name, f.opened, f.kept, f.last, h.givenUp(), r.wiped)
	return true
}

// published waits until all that run know of it: a node that does not goes by what it
// knows if it hears nobody but those who were given up.
func (r *rescue) published() {
	for r.w.sound() {
		all := true
		for _, m := range r.w.machines {
			if p := m.running(); p != nil && !m.leaving && !slices.Contains(r.lost, m) {
				d, ok := p.core.Pool.State().Volume(r.v.id)
				all = all && ok && d.VotersVersion >= r.forced
			}
		}
		if all {
			return
		}
		r.w.sleep(200 * time.Millisecond)
	}
}

// end lets those who were given up come back, in half of the cases out of everybody
// else's reach for a while, or declares them lost.
func (r *rescue) end() {
	w := r.w
	if r.forced > 0 && r.wiped {
		for _, m := range r.lost {
			w.count("wipe", "%s", m.name)
			m.gone = true
			w.background.Go(func() { w.stand(m, pool.Lost) })
		}
		return
	}
	w.until(spell(r.rng))
	apart := time.Duration(0)
	if r.forced > 0 && r.rng.IntN(2) == 0 {
		apart = 6*time.Second + spell(r.rng) // longer than a lease and a search for the pool
		r.part(apart)
	}
	for _, m := range r.lost {
		m.doomed = false
		w.background.Go(func() { m.revive(); m.release() })
	}
	if r.forced > 0 {
		r.tempt(apart + spell(r.rng))
	}
}

// part keeps those who were given up from hearing anybody else for a while, news of
// the pool included.
func (r *rescue) part(d time.Duration) {
	each := func(f func(a, b ident.NodeID)) {
		for _, a := range r.lost {
			for _, b := range r.w.machines {
				if !slices.Contains(r.lost, b) {
					f(a.id, b.id)
					f(b.id, a.id)
				}
			}
		}
	}
	each(r.w.net.Cut)
	r.w.undo(d, func() { each(r.w.net.Heal) })
}

// tempt turns to those who were given up for a while.
func (r *rescue) tempt(d time.Duration) {
	c := newClient(r.w, r.v, fmt.Sprint("tempter-", r.v.name), r.rng)
	for end := time.Now().Add(d); time.Now().Before(end) && r.w.until(500*time.Millisecond); {
		m := r.lost[r.rng.IntN(len(r.lost))]
		p := m.running()
		if p == nil || !c.enterAt(int(m.id[0])-1, p, func() bool { return true }) {
			continue
		}
		for range 4 {
			if !c.burst() {
				break
			}
		}
		c.leave()
	}
}
