package scsi

import (
	"context"
	"math/bits"
	"strings"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// NexusID names an initiator port. With the target port of the node's Identity
// it is an I_T nexus.
type NexusID struct {
	Initiator string // iSCSI name, at most InitiatorNameMax bytes
	ISID      [6]byte
}

// InitiatorNameMax is the longest iSCSI name (RFC 7143, 4.2.7.1). What is longer
// cannot register a reservation.
const InitiatorNameMax = 223

// Nexus is one I_T nexus: the state that a logical unit keeps for a session.
// Methods may be called concurrently.
type Nexus struct {
	lu     *LU
	id     NexusID
	ctx    context.Context // ends with Close: reads stop to wait
	cancel context.CancelFunc

	attentions atomic.Uint32 // pending unit attentions, a bit each
	denial     atomic.Uint32 // class bits that reservations of others deny

	// Guarded by lu.mu.
	closed bool
}

// The unit attentions that a nexus can have pending, by bit. Those of resets come
// before a RESERVATION CONFLICT, the others after it (SAM-5, 5.3.3).
var attentions = [...]sense{
	attentionPowerOn, attentionReset, attentionNexusLoss, // resetAttentions
	attentionMode, attentionPreempted, attentionReleased, attentionRegistrations, attentionAccess, attentionCapacity, attentionCleared,
}

const resetAttentions = 1<<3 - 1

// notify makes a unit attention pending.
func (n *Nexus) notify(s sense) {
	for i, a := range attentions {
		switch {
		case a != s:
		case mutant.On("attention-lost"):
			n.attentions.Store(1 << i)
		default:
			n.attentions.Or(1 << i)
		}
	}
}

// forget takes back a unit attention.
func (n *Nexus) forget(s sense) {
	for i, a := range attentions {
		if a == s {
			n.attentions.And(^uint32(1 << i))
		}
	}
}

// takeAttention takes the first pending unit attention within mask.
func (n *Nexus) takeAttention(mask uint32) (sense, bool) {
	for {
		all := n.attentions.Load()
		m := all & mask
		if m == 0 {
			return 0, false
		}
		i := bits.TrailingZeros32(m)
		if n.attentions.CompareAndSwap(all, all&^(1<<i)) {
			return attentions[i], true
		}
	}
}

// denied tells whether a reservation of another nexus forbids c.
func (n *Nexus) denied(c *Command) bool {
	d := class(n.denial.Load())
	if d == 0 {
		return false
	}
	k := c.t.op.class
	if c.t.op.vary != nil {
		k = c.t.op.vary(c.CDB)
	}
	return k&d != 0
}

// Nexus begins a nexus. A session that is reinstated (the same initiator name
// and ISID) closes the old one first; the new one is told of the loss.
func (lu *LU) Nexus(id NexusID) *Nexus {
	id.Initiator = strings.ToLower(id.Initiator) // names differ by more than case (RFC 3722)
	n := &Nexus{lu: lu, id: id}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	lu.mu.Lock()
	defer lu.mu.Unlock()
	if lu.lost[id] {
		delete(lu.lost, id)
		n.notify(attentionNexusLoss)
	} else {
		n.notify(attentionPowerOn)
	}
	lu.nexuses[n] = struct{}{}
	lu.enforce()
	return n
}

// lostMax is how many closed nexuses a logical unit remembers.
const lostMax = 256

// Close ends the nexus: its commands are aborted, its SPC-2 reservation
// ends; registrations of persistent reservations stay. It returns at once; done,
// which may be nil, runs when nothing of its commands can take effect any more.
// A session that is reinstated must wait for it before its first command.
func (n *Nexus) Close(done func()) {
	lu := n.lu
	lu.mu.Lock()
	n.closed = true
	delete(lu.nexuses, n)
	if len(lu.lost) >= lostMax {
		clear(lu.lost)
	}
	lu.lost[n.id] = true
	if lu.reserved == n {
		lu.reserved = nil
		lu.enforce()
	}
	lu.mu.Unlock()
	lu.abort(func(c *Command) bool { return c.t.n == n }, func(int) {
		if done != nil {
			done()
		}
	})
	n.cancel() // what this ends is aborted by now, and tells no error of its own
}

// AbortTask is the task management function ABORT TASK. done runs once, with
// whether a command with that tag was under way, when nothing of it can take
// effect any more. The command's own Done was called before, with Aborted.
func (n *Nexus) AbortTask(tag uint64, done func(found bool)) {
	n.lu.abort(func(c *Command) bool { return c.t.n == n && c.Tag == tag }, func(found int) { done(found > 0) })
}

// AbortTaskSet aborts all commands of the nexus.
func (n *Nexus) AbortTaskSet(done func()) {
	n.lu.abort(func(c *Command) bool { return c.t.n == n }, func(int) { done() })
}

// ClearTaskSet aborts the commands of all nexuses; the others are told by a unit
// attention.
func (n *Nexus) ClearTaskSet(done func()) {
	n.lu.abort(func(c *Command) bool {
		if c.t.n != n {
			c.t.n.notify(attentionCleared)
		}
		return true
	}, func(int) { done() })
}

// Execute carries out a command. It never waits for a device, a store or
// another command: c.Done is called when the command is over. Writes may be
// held back until LU.Kick.
func (n *Nexus) Execute(c *Command) {
	c.begin(n)
	op, why, field := lookup(c.CDB)
	c.t.op = op
	if c.LUN != 0 {
		c.absent()
		return
	}
	quiet := op != nil && op.quiet
	if n.attentions.Load() != 0 && !quiet {
		if s, ok := n.takeAttention(resetAttentions); ok {
			c.fail(s)
			return
		}
	}
	if op != nil && n.denied(c) {
		c.conflict()
		return
	}
	if n.attentions.Load() != 0 && !quiet {
		if s, ok := n.takeAttention(^uint32(0)); ok {
			c.fail(s)
			return
		}
	}
	switch {
	case op == nil:
		c.failWith(why, field)
	case c.Attr >= ACA:
		c.fail(illegalMessage)
	case op.medium:
		n.lu.executeMedium(c)
	default:
		n.lu.admit(c)
	}
}

// executeMedium is Execute for a command that needs the volume.
func (lu *LU) executeMedium(c *Command) {
	dev, op := lu.device(), c.t.op.code
	if dev != nil {
		c.t.dev = dev
		if dev.Size() != lu.size.Load() {
			lu.Changed()
		}
		if (op == 0x88 || op == 0x28) && lu.readNow(c) {
			return
		}
		lu.extent(c, dev.BlockSize())
	} else {
		lu.extent(c, lu.block())
	}
	lu.admit(c)
}
