package whole

import (
	"context"
	"time"
)

// heal ends every fault and brings every machine back; false if that does not end.
func (w *World) heal() bool {
	w.mu.Lock()
	w.calm, w.aims = true, nil
	close(w.calmed)
	w.mu.Unlock()
	w.event("everything is healed")
	return w.within(patience, "dead processes and faults end", w.background.Wait) &&
		w.within(patience, "every machine runs", func() {
			for _, m := range w.machines {
				w.net.Rejoin(m.id)
				m.mu.Lock()
				m.disk.SetCapacity(0)
				m.mu.Unlock()
				if !m.gone {
					m.revive()
				}
			}
		})
}

// settle demands that the healed pool works and becomes whole.
func (w *World) settle() {
	for _, m := range w.machines {
		if !m.gone && !m.leaving {
			w.within(patience, m.name+" is kept", func() { w.keep(m) })
		}
	}
	for _, v := range w.volumes {
		w.within(patience, v.name+" serves again", func() { w.tour(v) })
	}
	if !w.sound() {
		return
	}
	for _, v := range w.volumes {
		w.within(patience, v.name+" has all its copies again", func() { w.whole(v) })
	}
	for _, v := range w.passing { // one of four copies would keep a node that leaves of four
		w.within(patience, v.name+" is deleted", func() { w.deleted(v) })
	}
	for _, m := range w.machines {
		if m.gone || m.leaving {
			w.within(patience, m.name+" is removed", func() { w.depart(m) })
		}
	}
	for _, v := range w.volumes {
		if w.sound() {
			w.census(v)
		}
	}
	for _, v := range w.passing {
		w.within(patience, v.name+" is gone without a trace", func() { w.vanished(v) })
	}
}

// tour reads every block of a volume, and writes and flushes.
func (w *World) tour(v *volume) {
	c := &client{w: w, v: v, name: "tourist", rng: w.stream(forVolumes)}
	defer c.leave()
	for w.sound() {
		c.leave()
		if !c.enter() {
			w.sleep(200 * time.Millisecond)
			continue
		}
		ok := true
		for b := 0; b < allBlocks && ok; b += 8 {
			a := &action{kind: opRead, first: b * sectors, n: 8 * sectors, done: make(chan error, 1)}
			ok = c.end(c.begin(a))
		}
		write := &action{kind: opWrite, first: 0, n: sectors, done: make(chan error, 1)}
		c.begin(write)
		c.s.Kick()
		ok = ok && c.end(write)
		flush := c.begin(&action{kind: opFlush, done: make(chan error, 1)})
		c.s.Kick()
		if ok && c.end(flush) {
			return
		}
		w.sleep(200 * time.Millisecond)
	}
}

// whole waits until the volume says that nothing is missing.
func (w *World) whole(v *volume) {
	want := min(v.replicas, len(w.stayers()))
	for w.sound() {
		p := w.somebody(v)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		vol, err := p.core.Manager.Attach(ctx, v.name, true)
		if err == nil {
			err = vol.WaitMaintained(ctx)
		}
		cancel()
		if err == nil && vol.Status().Present == want {
			return
		}
		w.sleep(500 * time.Millisecond)
	}
}
