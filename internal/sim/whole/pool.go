package whole

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
)

// peersOf is whom a new node is told to turn to.
func (w *World) peersOf(m *machine) map[ident.NodeID]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[ident.NodeID]string{}
	for _, o := range w.machines {
		if o != m {
			out[o.id] = o.addr()
		}
	}
	return out
}

// found makes the pool.
func (w *World) found(n int, rng *rand.Rand) bool {
	for i := range n {
		if !w.join(i) {
			return false
		}
		w.sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
	}
	return w.within(patience, "all nodes are recorded", func() {
		for w.sound() && len(w.machines[0].running().core.Pool.State().Nodes) < n {
			w.sleep(100 * time.Millisecond)
		}
	})
}

// join adds machine i.
func (w *World) join(i int) bool {
	m := w.newMachine(i)
	w.mu.Lock()
	w.machines = append(w.machines, m)
	w.mu.Unlock()
	if err := m.start(w.peersOf(m)); err != nil && m.take() { // else a fault has it, and starts it again
		w.violated("node %s does not start: %v", m.name, err)
		return false
	}
	return true
}

// furnish makes the volumes.
func (w *World) furnish(rng *rand.Rand) bool {
	n := len(w.machines)
	least := w.leastCopies()
	w.volumes = []*volume{
		{name: "main", replicas: 3, blockSize: 512, cache: "quorum", clients: 4},
		{name: "side", replicas: min(n, least+rng.IntN(max(1, min(n, 5)-least+1))), blockSize: 4096, cache: []string{"quorum", "none"}[rng.IntN(2)], clients: 2},
	}
	return w.within(patience, "volumes are made", func() {
		for _, v := range w.volumes {
			v.home = rng.IntN(n)
			for w.sound() {
				err := w.create(v)
				if err == nil {
					break
				}
				w.event("create %s: %v", v.name, err)
				w.sleep(time.Second)
			}
		}
	})
}

func (w *World) create(v *volume) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p := w.machines[v.home].running()
	if p == nil {
		return fmt.Errorf("node %d does not run", v.home+1)
	}
	v.id = ident.NewVolume()
	err := p.core.Birth(ctx, pool.Volume{ID: v.id, Name: v.name, Size: volumeSize, BlockSize: v.blockSize,
		Replicas: v.replicas, WriteCache: v.cache, Created: time.Now().Unix()})
	return err
}
