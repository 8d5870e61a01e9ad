package link

import (
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Unsticker is an optional power of a Transport, which Mesh and Memory have.
type Unsticker interface {
	// Unstick ends the connections whose readers have been in one handler for
	// all of grace, and returns how many those were: their peers connect anew,
	// and are heard again. It is for when a disk hangs and handlers with it: a
	// handler cannot be made to return, but it must not keep a node from being heard.
	Unstick(grace time.Duration) int
}

// Unstick implements Unsticker.
func (b *base) Unstick(grace time.Duration) int {
	type dispatch struct {
		c     *channel
		burst uint32
	}
	var stuck []dispatch
	b.live.Range(func(_, o any) bool {
		if c := o.(*channel); c.corked.Load() {
			stuck = append(stuck, dispatch{c, c.bursts.Load()})
		}
		return true
	})
	if len(stuck) == 0 {
		return 0
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	<-t.C
	n := 0
	for _, d := range stuck {
		if c := d.c; c.corked.Load() && c.bursts.Load() == d.burst {
			c.out.end(fault.Newf(fault.Unavailable, "link", c.peer.Short(), "a handler hangs"))
			n++
		}
	}
	return n
}
