package whole

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// strangers is the end of a run whose pool has three machines then: one is away while two
// others join and become voters, and when it comes back all whom it knows are down. It has
// no address of those two, who with it are a majority and so must be able to decide.
func (w *World) strangers(rng *rand.Rand) {
	const n = 3
	if len(w.machines) != n || len(w.stayers()) < n {
		return
	}
	away := w.machines[rng.IntN(n)]
	w.count("strangers", "%s is away", away.name)
	away.stop(false)
	if !w.join(n) || !w.join(n+1) {
		return
	}
	fresh := w.machines[n:]
	if !w.within(patience, "who joined votes", func() {
		for w.sound() && !w.vote(fresh) {
			w.sleep(100 * time.Millisecond)
		}
	}) {
		return
	}
	for _, m := range w.machines[:n] {
		if m != away {
			m.stop(false)
		}
	}
	away.revive()
	if !w.within(patience, "a pool decides whose majority did not know each other", func() {
		w.stand(fresh[0], pool.Draining)
		w.stand(fresh[0], pool.Member)
	}) {
		return
	}
	for _, m := range w.machines[:n] {
		m.revive()
	}
	for _, v := range w.volumes {
		w.within(patience, v.name+" has all its copies again, with those who joined", func() { w.whole(v) })
	}
}

// vote tells whether machines are voters of the pool.
func (w *World) vote(all []*machine) bool {
	members := w.configs()[ident.PoolBlock(w.pool)].Members
	for _, m := range all {
		if !slices.ContainsFunc(members, func(x quorum.Member) bool { return x.Node == m.id && x.Role == quorum.Voter }) {
			return false
		}
	}
	return true
}
