package scsi

import (
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// TasksMax is how many commands one logical unit has under way at most; more
// are answered with TASK SET FULL.
const TasksMax = 4096

// taskSet orders the commands of one logical unit: one task set for all nexuses
// (TST 000b), guarded by LU.mu.
//
// What is in it is a list by age. A task waits while an older one is there that
// it must not pass (mustWait); all others run at once, in any order, which is
// what the control mode page says (QUEUE ALGORITHM MODIFIER 1h). Commands that are
// answered on the spot and neither change the medium nor look at it are not in it.
type taskSet struct {
	first, last *Command
	count       int
	waiting     int
	barriers    atomic.Int32 // tasks that could make another wait
	starting    bool
}

// group is something that waits for the end of several tasks.
type group struct {
	left int
	done func()
}

// barrier: other tasks may have to wait for c.
func (c *Command) barrier() bool { return c.Attr == Ordered || c.t.op.excludes }

// mustWait tells whether b, which is younger, waits for the end of a (SAM-5, 8.6;
// for the atomicity of COMPARE AND WRITE and ORWRITE see SBC-3, 5.2).
func mustWait(a, b *Command) bool {
	if b.Attr == HeadOfQueue && !b.t.op.excludes && !a.t.op.excludes {
		return false
	}
	if (a.Attr == Ordered || b.Attr == Ordered) && b.Attr != HeadOfQueue {
		return true
	}
	if mutant.On("compare-not-atomic") {
		return false
	}
	return (a.t.op.excludes || b.t.op.excludes) && a.t.lo < b.t.hi && b.t.lo < a.t.hi
}

// admit puts c into the task set and begins it, or lets it wait. What the
// nexus may do is checked once more: a reservation may have come in between.
func (lu *LU) admit(c *Command) {
	lu.mu.Lock()
	s := &lu.tasks
	if c.t.n.closed {
		lu.mu.Unlock()
		c.Aborted = true
		c.Done(c)
		return
	}
	if s.count >= TasksMax {
		lu.mu.Unlock()
		c.Status = TaskSetFull
		c.Done(c)
		return
	}
	if c.t.n.denied(c) {
		lu.mu.Unlock()
		c.conflict()
		return
	}
	c.t.listed = true
	c.t.waiting = s.blocks(c)
	s.append(c)
	waits := c.t.waiting
	lu.mu.Unlock()
	if !waits {
		c.start()
	}
}

func (s *taskSet) append(c *Command) {
	c.t.prev, c.t.next = s.last, nil
	if s.last != nil {
		s.last.t.next = c
	} else {
		s.first = c
	}
	s.last = c
	s.count++
	if c.t.waiting {
		s.waiting++
	}
	if c.barrier() {
		s.barriers.Add(1)
	}
}

func (s *taskSet) remove(c *Command) {
	if c.t.prev != nil {
		c.t.prev.t.next = c.t.next
	} else {
		s.first = c.t.next
	}
	if c.t.next != nil {
		c.t.next.t.prev = c.t.prev
	} else {
		s.last = c.t.prev
	}
	c.t.prev, c.t.next, c.t.listed = nil, nil, false
	s.count--
	if c.t.waiting {
		c.t.waiting = false
		s.waiting--
	}
	if c.barrier() {
		s.barriers.Add(-1)
	}
}

// blocks tells whether something older than c, which need not be in the list
// yet, must end before c begins.
func (s *taskSet) blocks(c *Command) bool {
	if s.barriers.Load() == 0 && !c.barrier() {
		return false
	}
	for a := s.first; a != nil && a != c; a = a.t.next {
		if mustWait(a, c) {
			return true
		}
	}
	return false
}

// retire takes c out, calls Done, and begins what waited for c.
func (lu *LU) retire(c *Command) {
	lu.mu.Lock()
	groups := lu.takeOut(c)
	lu.mu.Unlock()
	c.Done(c)
	for _, g := range groups {
		g.done()
	}
	lu.startWaiting()
}

// takeOut removes c and returns the groups that waited for nothing else, under
// mu. They are done after Done of c.
func (lu *LU) takeOut(c *Command) (ready []*group) {
	lu.tasks.remove(c)
	c.Aborted = c.t.aborted
	for _, g := range c.t.groups {
		if g.left--; g.left == 0 {
			ready = append(ready, g)
		}
	}
	c.t.groups = nil
	return ready
}

// startWaiting begins every task that need not wait any longer. One caller does
// it for all: what ends meanwhile is seen by its loop.
func (lu *LU) startWaiting() {
	started := false
	lu.mu.Lock()
	s := &lu.tasks
	if s.waiting == 0 || s.starting {
		lu.mu.Unlock()
		return
	}
	s.starting = true
	for c := s.startable(); c != nil; c = s.startable() {
		c.t.waiting = false
		s.waiting--
		lu.mu.Unlock()
		c.start()
		started = true
		lu.mu.Lock()
	}
	s.starting = false
	lu.mu.Unlock()
	if started {
		lu.Kick()
	}
}

func (s *taskSet) startable() *Command {
	for c := s.first; c != nil && s.waiting > 0; c = c.t.next {
		if c.t.waiting && !s.blocks(c) {
			return c
		}
	}
	return nil
}

// abort ends the tasks that match. Those that have not begun end here; for the
// others it waits, for what a device or a store has begun cannot be called back. done
// runs when none of them can have an effect any more, and is told how many
// there were.
func (lu *LU) abort(match func(*Command) bool, done func(found int)) {
	lu.gather(match, true, done)
}

// drain is abort without aborting: it only waits.
func (lu *LU) drain(match func(*Command) bool, done func()) {
	lu.gather(match, false, func(int) { done() })
}

func (lu *LU) gather(match func(*Command) bool, abort bool, done func(found int)) {
	found := 0
	g := &group{left: 1, done: func() { done(found) }}
	var ended []*Command
	var ready []*group
	lu.mu.Lock()
	for c := lu.tasks.first; c != nil; {
		next := c.t.next
		if match(c) {
			found++
			switch {
			case abort && c.t.waiting:
				c.t.aborted = true
				ready = append(ready, lu.takeOut(c)...)
				ended = append(ended, c)
			case abort || !c.t.waiting:
				c.t.aborted = c.t.aborted || abort
				c.t.groups = append(c.t.groups, g)
				g.left++
			}
		}
		c = next
	}
	g.left--
	if g.left == 0 {
		ready = append(ready, g)
	}
	lu.mu.Unlock()
	for _, c := range ended {
		c.Done(c)
	}
	for _, g := range ready {
		g.done()
	}
	lu.startWaiting()
}
