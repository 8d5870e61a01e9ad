package scsi

import (
	"sync/atomic"

	"github.com/gabion-storage/gabion/target"
)

// Limits of a command, in bytes.
const (
	// TransferMax is the longest data of one command. READ and WRITE of more are
	// refused; the block limits page says so.
	TransferMax = 8 << 20
	// ParameterMax is the longest list of parameters, in either direction.
	ParameterMax = 64 << 10
	// CDBMax is the longest CDB that has a meaning here.
	CDBMax = 16
	// SenseMax is the longest sense data.
	SenseMax = 32
)

// Attribute is a task attribute (SAM-5, 8.6). The numbers are those of the SCSI
// Command PDU (RFC 7143, 11.3.1).
type Attribute uint8

const (
	Untagged    Attribute = 0 // as Simple
	Simple      Attribute = 1
	Ordered     Attribute = 2
	HeadOfQueue Attribute = 3
	ACA         Attribute = 4 // refused: NormACA is not supported
)

// Status is a SCSI status code (SAM-5, 5.3.1).
type Status uint8

const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
)

// Command is one SCSI command. A transport pools Commands: all that a command
// needs is in it, so that a second use allocates nothing. The zero value is
// ready.
type Command struct {
	// Set before Execute and left alone until Done.

	LUN  uint64 // the eight bytes of the LUN, big-endian
	Tag  uint64 // unique among the commands of its nexus that are under way
	CDB  []byte // padding behind the length that the opcode gives is ignored
	Attr Attribute
	// Out is the data-out that arrived, at most as long as Transfer says. The
	// device server does not change it.
	Out []byte
	// Expected is how much data-out the initiator announced, in bytes, which may be
	// more than Transfer says; 0 if that is not known.
	Expected int
	// In is room for data-in, as long as Transfer says.
	In []byte
	// Done is called exactly once, before Execute returns or later on another
	// goroutine. It must not block, and may reuse the Command.
	Done func(*Command)

	// Set before Done is called.

	Status Status
	// N is how many bytes of In the command returns, or would if the initiator
	// expects fewer. 0 unless Status is Good.
	N int
	// Sense is the sense data of a CheckCondition, without the length that iSCSI
	// puts before it; it lies in the Command.
	Sense []byte
	// Aborted: task management ended the command; no response is sent.
	Aborted bool

	t task
}

// task is what the device server keeps for a Command while it runs.
type task struct {
	n     *Nexus
	op    *opcode
	dev   target.Device // of a medium command that runs
	sense [SenseMax]byte

	// Guarded by lu.mu while the task is in the task set.
	listed     bool
	waiting    bool // not begun: something older must end first
	aborted    bool
	prev, next *Command
	lo, hi     int64 // bytes of the medium that it changes
	groups     []*group

	// Of the operations of the device that are under way for this command.
	left atomic.Int32
	err  atomic.Pointer[error]
	then func(*Command, error) // when left is 0
	work func(*Command)        // for a goroutine

	part func(error) // (*Command).ended, bound once
	run  func()      // (*Command).worked, bound once
}

// begin prepares c for a new use.
func (c *Command) begin(n *Nexus) {
	c.Status, c.N, c.Sense, c.Aborted = Good, 0, nil, false
	t := &c.t
	t.n, t.op, t.dev, t.lo, t.hi = n, nil, nil, 0, 0
	t.waiting, t.aborted = false, false
	if t.part == nil {
		t.part, t.run = c.ended, c.worked
	}
}

func (c *Command) lu() *LU { return c.t.n.lu }

// good ends c with n bytes of data-in.
func (c *Command) good(n int) {
	c.N = n
	c.finish()
}

// data ends c with the parameters p, cut to the allocation length.
func (c *Command) data(p []byte) { c.good(copy(c.In, p)) }

// fail ends c with sense and no data.
func (c *Command) fail(s sense) { c.failWith(s, detail{}) }

// failField ends c because of a field of the CDB; bit -1 is the whole byte.
func (c *Command) failField(at, bit int) {
	c.failWith(illegalField, detail{hasField: true, field: at, bit: bit})
}

// failParameter ends c because of a byte of the parameter list.
func (c *Command) failParameter(at int) {
	c.failWith(illegalParameter, detail{hasField: true, inData: true, field: at, bit: -1})
}

// failRange ends c because lba is not on the medium.
func (c *Command) failRange(lba uint64) {
	c.failWith(illegalRange, detail{information: lba, hasInformation: true})
}

// failError ends c with what the table of faults has for err.
func (c *Command) failError(err error) {
	s := senseOf(err)
	if log := c.lu().cfg.Log; log != nil {
		log.Debug("command failed", "cmd", Name(c.CDB), "error", err)
	}
	c.fail(s)
}

func (c *Command) failWith(s sense, d detail) {
	c.setSense(s, d)
	c.finish()
}

func (c *Command) setSense(s sense, d detail) {
	c.Status, c.N = CheckCondition, 0
	c.Sense = c.t.sense[:encodeSense(c.t.sense[:], s, d, c.lu().descriptors.Load())]
}

// conflict ends c with RESERVATION CONFLICT.
func (c *Command) conflict() {
	c.Status = ReservationConflict
	c.finish()
}

// finish takes c out of the task set, if it is in it, and calls Done.
func (c *Command) finish() {
	if c.t.listed {
		c.lu().retire(c)
		return
	}
	c.Done(c)
}

// expect begins to count operations of the device: then runs when as many have
// ended as part was passed, and hold was released.
func (c *Command) expect(then func(*Command, error)) {
	c.t.then = then
	c.t.err.Store(nil)
	c.t.left.Store(1)
}

// ended is the completion of one operation of the device, or of expect itself.
func (c *Command) ended(err error) {
	if err != nil {
		first := err // only an error costs an allocation
		c.t.err.CompareAndSwap(nil, &first)
	}
	switch left := c.t.left.Add(-1); {
	case left > 0:
		return
	case left < 0:
		panic("scsi: a device completed one operation twice")
	}
	if p := c.t.err.Load(); p != nil {
		err = *p
	}
	c.t.then(c, err)
}

// finished ends c with Good or with err; N is set already.
func (c *Command) finished(err error) {
	if err != nil {
		c.failError(err)
		return
	}
	c.finish()
}

// spawn runs work on a goroutine of its own; it may wait.
func (c *Command) spawn(work func(*Command)) {
	c.t.work = work
	go c.t.run()
}

func (c *Command) worked() { c.t.work(c) }

// wait begins one operation of the device and waits for its end. For commands
// that have a goroutine.
func (c *Command) wait(begin func(done func(error))) error {
	ended := make(chan error, 1)
	begin(func(err error) { ended <- err })
	c.t.dev.Kick()
	return <-ended
}
