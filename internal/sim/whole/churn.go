package whole

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
)

// churn makes volumes, lets a client work on each, and deletes them, one after
// the other.
func (w *World) churn(rng *rand.Rand, stop chan struct{}) {
	over := func() bool {
		select {
		case <-stop:
			return true
		case <-w.stopped:
			return true
		default:
			return false
		}
	}
	for i := 0; !over(); i++ {
		w.sleep(time.Duration(rng.IntN(40)) * time.Second)
		if over() {
			return
		}
		v := &volume{name: fmt.Sprintf("passing-%d", i), replicas: w.leastCopies() + rng.IntN(2), blockSize: 4096, cache: "quorum", home: rng.IntN(len(w.machines))}
		err := w.create(v)
		w.passing = append(w.passing, v) // it may be there even after an error
		if err != nil {
			w.event("create %s: %v", v.name, err)
			continue
		}
		done := make(chan struct{})
		c := newClient(w, v, "client-"+v.name, rand.New(rand.NewPCG(rng.Uint64(), 1)))
		go func() {
			defer close(done)
			c.run(stop)
		}()
		w.sleep(time.Duration(5+rng.IntN(30)) * time.Second)
		v.deleted = true
		<-done
		w.count("delete", "%s", v.name)
		if err := w.remove(v); err != nil {
			w.event("delete %s: %v", v.name, err)
		}
	}
}

// leastCopies is how few copies a volume may have: the loss of a machine leaves
// two of three, that of two leaves one, and damage on one disk leaves one of two.
func (w *World) leastCopies() int {
	switch {
	case w.wipes, w.forces:
		return 3
	case w.lies:
		return 2
	}
	return 1
}

// remove deletes a volume, if it is not deleted yet.
func (w *World) remove(v *volume) error {
	for _, m := range w.machines {
		p := m.running()
		if p == nil || m.gone || m.leaving { // the last may know nothing new any more
			continue
		}
		st := p.core.Pool.State()
		if st.IsDeleted(v.id) {
			return nil
		}
		for _, d := range st.Volumes {
			if d.ID == v.id {
				return w.removeAt(p, d)
			}
		}
	}
	return fault.Newf(fault.NotFound, "sim", v.name, "no node that runs knows it")
}

func (w *World) removeAt(p *process, d pool.Volume) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := p.core.Remove(ctx, d)
	if fault.Is(err, fault.Busy) { // its client's session ended with another holder
		if _, err = p.core.Manager.Attach(ctx, d.Name, true); err == nil {
			err = p.core.Remove(ctx, d)
		}
	}
	return err
}

// deleted is the operator who asks again for a deletion that failed, until some
// node knows that the volume is deleted, or none that stays knows the volume.
func (w *World) deleted(v *volume) {
	var err error
	for w.sound() {
		known, gone := false, false
		for _, m := range w.machines {
			if p := m.running(); p != nil && !m.gone && !m.leaving {
				st := p.core.Pool.State()
				_, has := st.Volume(v.id)
				known, gone = known || has, gone || st.IsDeleted(v.id)
			}
		}
		if gone || !known {
			return
		}
		err = w.remove(v)
		w.sleep(time.Second)
	}
	w.event("%s: not deleted: %v", v.name, err)
}

// vanished waits until no node knows anything of a deleted volume.
func (w *World) vanished(v *volume) {
	var err error
	for w.sound() {
		if w.traces(v) == "" {
			return
		}
		err = w.remove(v)
		w.sleep(time.Second)
	}
	w.event("%s: %s; its deletion: %v", v.name, w.traces(v), err)
}

// traces says what there still is of a volume.
func (w *World) traces(v *volume) string {
	for _, m := range w.machines {
		p := m.running()
		if m.gone || m.leaving {
			continue
		}
		if p == nil {
			return m.name + " does not run"
		}
		for _, d := range p.core.Pool.State().Volumes {
			if d.ID == v.id {
				return m.name + " has it in the catalog"
			}
		}
		if n := len(p.brick.ListVolume(v.id)); n > 0 {
			return fmt.Sprintf("%s has %d extents of it", m.name, n)
		}
		// The groups of a birth whose record failed are named by nothing and stay.
		if _, ok := p.core.Acceptors.Group(ident.MapBlock(v.id)); ok && p.core.Pool.State().IsDeleted(v.id) {
			return m.name + " has its map block"
		}
	}
	return ""
}
