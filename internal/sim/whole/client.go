package whole

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// client works on one volume through whatever machine lets it.
type client struct {
	w     *World
	v     *volume
	name  string
	rng   *rand.Rand
	reads int // of a hundred operations

	p     *process
	s     target.Session
	gone  <-chan struct{}
	where string
	epoch uint64
}

func newClient(w *World, v *volume, name string, rng *rand.Rand) *client {
	return &client{w: w, v: v, name: name, rng: rng, reads: []int{8, 42, 42, 85}[rng.IntN(4)]}
}

func (c *client) run(stop chan struct{}) {
	for {
		select {
		case <-stop:
			c.leave()
			return
		case <-c.w.stopped:
			c.leave()
			return
		default:
		}
		if c.v.deleted {
			c.leave()
			return
		}
		if c.s == nil {
			if !c.enter() {
				c.w.sleep(time.Duration(100+c.rng.IntN(400)) * time.Millisecond)
			}
			continue
		}
		if !c.burst() || c.rng.IntN(400) == 0 {
			c.leave()
		}
		c.w.sleep(time.Duration(c.rng.ExpFloat64() * float64(c.w.mood.think)))
	}
}

func (c *client) leave() {
	if c.s != nil {
		c.s.Close()
		c.s = nil
	}
}

// enter opens a session: mostly where the others are, at times elsewhere, and
// at times by force.
func (c *client) enter() bool {
	w, v := c.w, c.v
	i := v.home
	if c.rng.IntN(8) == 0 {
		i = c.rng.IntN(len(w.machines))
	}
	m := w.machines[i]
	p := m.running()
	if p == nil {
		if c.rng.IntN(4) == 0 {
			v.home = c.rng.IntN(len(w.machines))
		}
		return false
	}
	return c.enterAt(i, p, func() bool { return c.rng.IntN(6) == 0 })
}

// enterAt opens a session at machine i; if it is busy elsewhere, by a takeover if that
// is wanted.
func (c *client) enterAt(i int, p *process, takeover func() bool) bool {
	w, v, m := c.w, c.v, p.m
	m.thaw(p)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	s, gone, err := p.core.Manager.Open(ctx, v.name, c.name)
	if fault.Is(err, fault.Busy) && takeover() {
		w.count("takeover", "%s takes %s over at %s", c.name, v.name, m.name)
		if _, err = p.core.Manager.Attach(ctx, v.name, true); err == nil {
			s, gone, err = p.core.Manager.Open(ctx, v.name, c.name)
		}
	}
	m.thaw(p)
	if err != nil {
		return false
	}
	if p.isDead() {
		s.Close()
		return false
	}
	v.home = i
	w.came(atOpen, v, m)
	w.mu.Lock()
	w.attaches++
	w.mu.Unlock()
	c.p, c.s, c.gone = p, s, gone
	c.epoch = s.(interface{ Epoch() uint64 }).Epoch()
	c.where = fmt.Sprintf("%s %s/%d epoch %d", c.name, m.name, m.boot, c.epoch)
	return true
}

// action is an operation that is under way.
type action struct {
	kind  opKind
	first int    // sector
	n     int    // sectors
	row   row    // to be noted for each block
	floor uint64 // newest epoch that had answered when it began
	empty bool   // a flush that was answered at once: all that its session had written was durable
	data  []byte
	done  chan error
}

// burst does up to four operations at once; false if the session is over.
func (c *client) burst() bool {
	n := 1
	if c.rng.IntN(3) == 0 {
		n += c.rng.IntN(4)
	}
	as := make([]*action, n)
	for i := range as {
		as[i] = c.begin(c.draw())
	}
	c.s.Kick()
	ok := true
	for _, a := range as {
		ok = c.end(a) && ok
	}
	return ok
}

// draw chooses an operation.
func (c *client) draw() *action {
	a := &action{done: make(chan error, 1)}
	k := c.rng.IntN(100)
	switch {
	case k < c.reads:
		a.kind = opRead
	case k < 92:
		a.kind = opWrite
		a.row.fua = c.rng.IntN(6) == 0 || c.v.cache == "none"
	default:
		a.kind = opFlush
		return a
	}
	hot := c.w.mood.hot
	switch k := c.rng.IntN(100); {
	case k < c.w.mood.long:
		n := 1 + c.rng.IntN(40)
		a.first, a.n = sectors*(hotBlocks+c.rng.IntN(wideBlocks-n+1)), sectors*n
	case k > 75 && c.v.blockSize == sectorSize: // odd
		a.n = 1 + c.rng.IntN(12)
		a.first = c.rng.IntN(hot*sectors - a.n + 1)
	default:
		n := 1 + c.rng.IntN(1+c.rng.IntN(3))
		a.first, a.n = sectors*c.rng.IntN(hot-n+1), sectors*n
	}
	return a
}

// begin starts an operation.
func (c *client) begin(a *action) *action {
	done := func(err error) { a.done <- err }
	off, n := int64(a.first)*sectorSize, int64(a.n)*sectorSize
	a.row.kind, a.row.where, a.row.epoch = a.kind, c.where, c.epoch
	zero := a.kind == opWrite && c.rng.IntN(6) == 0
	if a.kind == opWrite && !zero {
		a.row.id = c.v.hist.next()
		a.data = make([]byte, n)
		fill(a.data, a.row.id, int64(a.first))
	}
	a.row.call = c.w.tick(uint64(a.kind))
	a.row.lo = c.slot()
	a.floor = c.v.epoch
	switch {
	case a.kind == opRead:
		a.data = make([]byte, n)
		go func(s target.Session) {
			if s.TryReadAt(a.data, off) {
				done(nil)
			} else {
				done(s.ReadAt(context.Background(), a.data, off))
			}
		}(c.s)
	case a.kind == opFlush:
		c.s.Flush(done)
		a.empty = len(a.done) > 0
	case zero && c.rng.IntN(2) == 0:
		c.s.Zero(off, n, a.row.fua, done)
	case zero:
		c.s.Trim(off, n, a.row.fua, done)
	default:
		c.s.Write(a.data, off, a.row.fua, done)
	}
	return a
}

// end waits for the answer to an operation and notes it.
func (c *client) end(a *action) bool {
	var err error
	select {
	case err = <-a.done:
		c.p.m.thaw(c.p) // a stopped machine answers when it goes on
		if c.p.isDead() {
			err = errDead
		}
	case <-c.p.dead:
		err = errDead
	}
	a.row.hi = c.slot() - 1
	c.w.mu.Lock()
	c.w.ops++
	if err != nil {
		c.w.unknown++
	}
	c.w.mu.Unlock()
	a.row.at = time.Since(c.w.began)
	if err != nil {
		a.row.ret, a.row.hi = never, math.MaxUint64
		if fault.Is(err, fault.Corrupt) && !c.w.lies {
			c.w.violated("%s: %s finds damage on honest disks: %v", c.v.name, c.where, err)
		}
	} else if c.v.epoch = max(c.v.epoch, c.epoch); c.epoch < a.floor && !a.empty {
		// A machine that was stopped may answer an empty flush before it learns of its end. It
		// needs nobody for it, and says only what is so.
		c.w.violated("%s: epoch %d answered a %s of %s after epoch %d had answered", c.v.name, c.epoch, a.kind, c.where, a.floor)
	}
	switch a.kind {
	case opFlush:
		if err == nil {
			a.row.ret = c.w.tick(0)
			c.v.hist.flushed(a.row)
		}
	case opRead:
		if err == nil {
			c.read(a)
		}
	case opWrite:
		if err == nil {
			a.row.ret = c.w.tick(uint64(a.row.id))
		}
		c.blocks(a, func(int, *row) {})
	}
	if err == nil {
		c.v.hist.answered(a.row)
		switch {
		case a.kind == opFlush || a.row.fua:
			c.w.came(atFlush, c.v, c.p.m)
		case a.kind == opWrite:
			c.w.came(atWrite, c.v, c.p.m)
		}
	}
	return err == nil
}

// slot is the one that the next change in this session will have.
func (c *client) slot() uint64 { return c.s.(interface{ NextSlot() uint64 }).NextSlot() }

// blocks notes an operation for each block that it touches.
func (c *client) blocks(a *action, f func(first int, r *row)) {
	for b := a.first / sectors; b*sectors < a.first+a.n; b++ {
		r := a.row
		for i := range sectors {
			if s := b*sectors + i; s >= a.first && s < a.first+a.n {
				r.mask |= 1 << i
			}
		}
		f(b*sectors, &r)
		c.v.hist.add(b, r)
	}
}

// read notes what was read.
func (c *client) read(a *action) {
	saw := uint64(0)
	ids := make([]uint32, a.n)
	last := c.v.hist.newest()
	for i := range ids {
		at := int64(a.first + i)
		p := a.data[i*sectorSize:]
		id, ok := name(p, at, last)
		if !ok {
			c.w.violated("%s: %s read bytes in sector %d that nobody wrote there: % x ...", c.v.name, c.where, at, p[:24])
		}
		ids[i] = id
		saw = saw*31 + uint64(id)
	}
	a.row.ret = c.w.tick(saw)
	c.blocks(a, func(first int, r *row) {
		for i := range sectors {
			if r.mask>>i&1 == 1 {
				r.got[i] = ids[first+i-a.first]
			}
		}
	})
}
