package whole

import "github.com/gabion-storage/gabion/quorum"

// A forced recovery ends the history of a volume and begins another one: what the
// survivor had is kept, what it had not never was. Each of the two worlds must be
// that of a disk.

// forcing is where a forced recovery cut the log of a volume.
type forcing struct {
	at    int64  // when it was done
	epoch uint64 // those from here on are of the new world
	// The survivor's last opening was that of epoch opened, or one after it up to
	// openedMax. Of opened and before it had all slots up to kept, and none beyond last.
	opened, openedMax uint64
	kept, last        uint64
	// What is chosen up to slot upTo came with a checkpoint, in whatever epoch.
	upTo uint64
}

// fate is what a forcing did to an operation.
type fate uint8

const (
	isKept fate = iota
	isLost
	isEither
)

// fate tells what became of an operation of the old world.
func (c *forcing) fate(r row) fate {
	switch {
	case r.hi <= c.upTo || r.epoch <= c.opened && r.hi <= c.kept:
		return isKept
	case r.lo > c.last || r.epoch > c.openedMax && r.lo > c.upTo:
		return isLost
	}
	return isEither
}

// world is one of the histories of a volume: the only one, that until it was
// recovered by force, or what was kept and all that came after it.
type world struct {
	at  *forcing // nil: the only one
	new bool     // after it
}

func (h *history) worlds() []world {
	if h.forced == nil {
		return []world{{}}
	}
	return []world{{at: h.forced}, {at: h.forced, new: true}}
}

func (in world) String() string {
	switch {
	case in.at == nil:
		return ""
	case in.new:
		return ", with what the forced recovery kept and what came then,"
	}
	return ", until the forced recovery,"
}

// knows tells whether what an epoch answered counts in this world.
func (in world) knows(epoch uint64) bool {
	switch {
	case in.at == nil:
		return true
	case in.new:
		return epoch >= in.at.epoch || epoch <= in.at.opened
	}
	return epoch < in.at.epoch
}

// of are the rows that belong to this world. What only perhaps is kept may have done
// nothing, and what it saw says nothing.
func (in world) of(rows []row) []row {
	if in.at == nil {
		return rows
	}
	var out []row
	for _, r := range rows {
		old := r.epoch < in.at.epoch
		if !old && !in.new {
			continue
		}
		if !old || !in.new {
			out = append(out, r)
			continue
		}
		switch in.at.fate(r) {
		case isKept:
			out = append(out, r)
		case isEither:
			if r.kind == opWrite {
				r.maybe = r.maybe || r.ret != never
				out = append(out, r)
			}
		}
	}
	return out
}

// givenUp counts what was answered and is lost by a forced recovery: changes, by the
// block, and flushes.
func (h *history) givenUp() (n int) {
	if h.forced == nil {
		return 0
	}
	for _, rows := range append(h.blocks[:], h.flushes) {
		for _, r := range rows {
			if r.kind != opRead && r.ret != never && r.epoch < h.forced.epoch && h.forced.fate(r) == isLost {
				n++
			}
		}
	}
	return n
}

// losses are those that may have been in this world.
func (in world) losses(rows []row) []row {
	if in.at == nil || in.new {
		return rows
	}
	var out []row
	for _, r := range rows {
		if r.call < in.at.at {
			out = append(out, r)
		}
	}
	return out
}

// forcedAt is what a forced recovery from a survivor did, which was like before when it
// was chosen, and is like after now.
func forcedAt(at int64, before, after quorum.Survivor) *forcing {
	c := &forcing{at: at, epoch: forcedEpoch(after.Promised.Epoch), opened: before.Opened.Epoch,
		openedMax: before.Promised.Epoch, kept: before.Durable, last: ^uint64(0), upTo: before.UpTo}
	if after.Opened.Epoch < c.epoch { // nobody has opened it since: this is exactly what was forced
		c.opened, c.openedMax, c.kept, c.last, c.upTo = after.Opened.Epoch, after.Opened.Epoch, after.Durable, after.Last, after.UpTo
	}
	return c
}

// beside counts what another voter of the new configuration had: who opens the volume next goes on with
// the newest log among them. That is another one than the survivor's if it was out of reach when the
// recovery began.
func (c *forcing) beside(s quorum.Survivor) {
	if s.Opened.Epoch > c.opened {
		c.kept = min(c.kept, c.upTo)
	}
	c.openedMax, c.last = max(c.openedMax, s.Opened.Epoch), max(c.last, s.Last)
}

// forcedEpoch is the least epoch of those that a forced recovery began: see
// quorum.Recover, which goes so far beyond all that others may have met.
func forcedEpoch(epoch uint64) uint64 { return epoch &^ (1<<32 - 1) }
