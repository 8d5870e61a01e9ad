package client

import (
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// advance puts on the way what may go, under Engine.mu, and reports whether
// there is something for a sender.
//
// Operations leave the queue in their order. One that may not go yet holds up
// those behind it, which keeps the order of overlapping changes without a
// search among those that wait.
func (e *Engine) advance() bool {
	s := e.sess
	if s == nil || s.why != nil {
		return false
	}
	for e.again.len() > 0 && e.fits(e.again.first()) {
		e.admit(s, e.again.pop())
	}
	if e.state.Node == (Node{}) && e.again.len() == 0 && e.inflight == 0 {
		e.serving(s)
	}
	if e.state.Node != (Node{}) || mutant.On("impatient") { // everything is repeated
		e.tidy(s)
		for e.waiting.len() > 0 && e.fits(e.waiting.first()) && e.room(e.waiting.first()) {
			o := e.waiting.pop()
			if o.changes() {
				e.kept = append(e.kept, o)
				e.keptBytes += o.size()
			}
			e.admit(s, o)
		}
	}
	return len(s.queue) > 0
}

// fits tells whether a request may be under way beside those that are.
func (e *Engine) fits(o *op) bool {
	if len(e.free) == 0 {
		return false
	}
	if o.changes() && !mutant.On("overlap") {
		for _, x := range e.changing {
			if o.overlaps(x) {
				return false
			}
		}
	}
	return true
}

// room tells whether a change can be kept. One alone always can.
func (e *Engine) room(o *op) bool {
	return !o.changes() || len(e.kept) == 0 || e.keptBytes+o.size() <= e.cfg.KeepMax
}

// tidy flushes when much is kept, so that those who never flush have room.
func (e *Engine) tidy(s *session) {
	if e.flushing || e.plain == 0 || e.keptBytes <= e.cfg.KeepMax/2 || len(e.free) == 0 {
		return
	}
	e.flushing = true
	e.admit(s, newOp(proto.CmdFlush, 0, 0, 0, nil))
}

// admit gives a request its cookie and queues it for a sender.
func (e *Engine) admit(s *session, o *op) {
	slot := e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	e.serial++
	o.cookie = e.serial<<8 | uint64(slot)
	e.slots[slot] = o
	o.sent = time.Now()
	if e.inflight++; e.inflight == 1 {
		s.heard = o.sent
	}
	if o.changes() {
		e.changing = append(e.changing, o)
	}
	if o.cmd == proto.CmdFlush {
		o.mark = e.answers
	}
	o.refs.Add(1) // the sender's
	s.queue = append(s.queue, o)
	s.watch()
}

// oldest is for how long a request is under way at most, under Engine.mu.
func (e *Engine) oldest(now time.Time) (age time.Duration) {
	for _, o := range e.slots {
		if o != nil {
			age = max(age, now.Sub(o.sent))
		}
	}
	return age
}

// find is the request that an answer belongs to, or nil.
func (e *Engine) find(cookie uint64) *op {
	e.mu.Lock()
	defer e.mu.Unlock()
	slot := cookie & 0xff
	if slot >= requestsMax || e.slots[slot] == nil || e.slots[slot].cookie != cookie {
		return nil
	}
	return e.slots[slot]
}

// vacate takes a request out of its slot, under Engine.mu.
func (e *Engine) vacate(o *op) {
	slot := int(o.cookie & 0xff)
	e.slots[slot] = nil
	e.free = append(e.free, slot)
	e.inflight--
	if o.changes() {
		i := slices.Index(e.changing, o)
		last := len(e.changing) - 1
		e.changing[i], e.changing[last] = e.changing[last], nil
		e.changing = e.changing[:last]
	}
}

// finish is the answer to a request of the present session.
func (e *Engine) finish(s *session, o *op, err error) {
	e.mu.Lock()
	e.vacate(o)
	s.heard = time.Now()
	needed := false // by the engine
	switch {
	case o.cmd == proto.CmdFlush:
		err = e.flushed(o, err)
	case o.changes():
		needed = e.changed(o, err)
	}
	first := !o.over && o.done != nil
	o.over = true
	done := o.done
	e.mu.Unlock()
	if first {
		done(err)
	}
	if !needed {
		o.release()
	}
}

// flushed lets go of what a flush covered, under Engine.mu.
func (e *Engine) flushed(o *op, err error) error {
	if o.done == nil {
		e.flushing = false
	}
	if err != nil {
		return err
	}
	if err = e.lostErr; err != nil && o.done != nil {
		e.lostErr = nil // told once, as a disk does
	}
	e.plain = 0
	kept := e.kept[:0]
	for _, k := range e.kept {
		switch {
		case k.answered > 0 && k.answered <= o.mark:
			e.keptBytes -= k.size()
			k.release()
			continue
		case k.answered > 0 && k.flags&proto.FlagFUA == 0:
			e.plain++
		}
		kept = append(kept, k)
	}
	clear(e.kept[len(kept):])
	e.kept = kept
	return err
}

// changed notes the answer to a change, under Engine.mu, and reports whether it
// stays kept.
func (e *Engine) changed(o *op, err error) bool {
	if err != nil {
		if o.over { // it had been answered well: the next flush must not be
			e.lostErr = err
			e.cfg.Log.Error("a change cannot be repeated; the next flush fails", "offset_bytes", o.off, "length_bytes", o.n, "error", err)
		}
		e.forget(o)
		return false
	}
	e.answers++
	o.answered = e.answers
	if o.flags&proto.FlagFUA == 0 {
		e.plain++
		return true
	}
	if e.plain == 0 { // nothing older would be repeated over it
		e.forget(o)
		return false
	}
	return true
}

// forget no longer keeps a change, under Engine.mu. The reference stays with
// the caller.
func (e *Engine) forget(o *op) {
	if i := slices.Index(e.kept, o); i >= 0 {
		e.kept = slices.Delete(e.kept, i, i+1)
		e.keptBytes -= o.size()
	}
}

// lose takes the session away and sorts out what is to be done again, under
// Engine.mu. Nobody sends or receives any more.
func (e *Engine) lose(s *session) {
	e.sess = nil
	for _, o := range s.queue {
		o.release() // the sender's
	}
	s.queue = nil
	var rest []*op // reads and flushes
	for _, o := range e.slots {
		switch {
		case o == nil:
			continue
		case o.cmd == proto.CmdFlush && o.done == nil:
			e.flushing = false
			o.release()
		case !o.changes():
			rest = append(rest, o)
		}
	}
	slices.SortFunc(rest, func(a, b *op) int { return int(int64(a.cookie>>8) - int64(b.cookie>>8)) })
	e.waiting.set(append(rest, e.waiting.all()...))
	e.slots = [requestsMax]*op{}
	e.free = e.free[:0]
	for i := range e.slots {
		e.free = append(e.free, i)
	}
	clear(e.changing)
	e.changing, e.inflight = e.changing[:0], 0
	e.plain = 0
	again := make([]*op, 0, len(e.kept))
	for _, o := range e.kept {
		if o.over && mutant.On("forget-answered") {
			continue
		}
		o.answered = 0
		again = append(again, o)
	}
	e.again.set(again)
}

// expire takes out what waits since before limit, under Engine.mu. Changes that
// were answered stay.
func (e *Engine) expire(limit time.Time) (out []*op) {
	old := func(o *op) bool {
		if o.over || !o.since.Before(limit) {
			return false
		}
		out = append(out, o)
		return true
	}
	for _, o := range e.kept {
		if old(o) {
			e.keptBytes -= o.size()
		}
	}
	gone := func(o *op) bool { return slices.Contains(out, o) }
	if len(out) > 0 {
		e.kept = slices.DeleteFunc(e.kept, gone)
		e.again.set(slices.DeleteFunc(slices.Clone(e.again.all()), gone))
	}
	e.waiting.set(slices.DeleteFunc(slices.Clone(e.waiting.all()), old))
	for _, o := range out {
		o.over = true
	}
	return out
}

// takeAll empties the engine, under Engine.mu, and returns what had no answer.
func (e *Engine) takeAll() []*op {
	out := e.expire(time.Now().Add(time.Hour))
	for _, o := range e.kept {
		o.release()
	}
	e.kept, e.keptBytes = nil, 0
	e.again.set(nil)
	return out
}

// end fails operations that were taken out.
func end(all []*op, err error) {
	for _, o := range all {
		if o.done != nil {
			o.done(err)
		}
		o.release()
	}
}
