package iscsi

import (
	"time"

	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// task is one SCSI command between its arrival and its response. Tasks belong to
// their connection and are used again, with their callback already bound, so
// that a command allocates nothing.
//
// It is gathering while it awaits data; then only the reader moves it on, and
// others may drop it under conn.mu. Then the device server has it, until complete.
type task struct {
	c     *conn
	cmd   scsi.Command
	cdb   [scsi.CDBMax]byte
	itt   uint32
	edtl  int // expected data transfer length, bytes
	read  bool
	write bool
	imm   bool
	start time.Time

	in, out         *edge.Buffer // data-in room, gathered data-out; may be nil
	inMax, outMax   int          // what the command asks for, bytes
	want            int          // data-out that is gathered: the lesser of outMax and edtl
	reserved        int          // bytes
	gathering, busy bool         // busy: the reader is filling out
	dropped         bool         // while busy: the reader gives it up

	got         int // bytes of data-out that arrived, counted from offset 0
	unsolicited bool
	dataSN      uint32 // of the next unsolicited Data-Out
	next        int    // offset of the next R2T
	r2tSN       uint32
	bursts      []burst // R2Ts that are not fulfilled, in order
}

// Classes are the classes of commands as Config.Observe names them.
var Classes = [...]string{"read", "write", "flush", "unmap", "write_same", "compare_and_write", "reserve", "other"}

// classOf is the class of a command.
func classOf(cdb []byte) string {
	switch cdb[0] {
	case 0x08, 0x28, 0xa8, 0x88:
		return "read"
	case 0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e:
		return "write"
	case 0x35, 0x91:
		return "flush"
	case 0x42:
		return "unmap"
	case 0x41, 0x93:
		return "write_same"
	case 0x89:
		return "compare_and_write"
	case 0x5e, 0x5f, 0x16, 0x17:
		return "reserve"
	}
	return "other"
}

// command takes up a SCSI Command, with its immediate data.
func (c *conn) command(h *pdu.Header) error {
	p := pdu.DecodeSCSICommand(h)
	n := h.DataLength()
	edtl := int(min(p.Length, 1<<31-1))
	switch {
	case p.ITT == pdu.NoTag:
		return c.protocol(h, pdu.RejectProtocol, "a command without a tag")
	case n > 0 && !p.Write:
		return c.protocol(h, pdu.RejectProtocol, "data with a command that writes nothing")
	case n > 0 && !c.params.ImmediateData:
		return c.protocol(h, pdu.RejectProtocol, "immediate data, which were not agreed on")
	case n > min(edtl, int(c.params.FirstBurst)):
		return c.protocol(h, pdu.RejectProtocol, "%d bytes of immediate data, the limit is %d", n, min(edtl, int(c.params.FirstBurst)))
	case !p.Final && p.Write && c.params.InitialR2T:
		return c.protocol(h, pdu.RejectProtocol, "unsolicited data are announced, which were not agreed on")
	}
	var extended []byte
	if h.AHSLength() > 0 {
		a, err := pdu.DecodeAHS(c.Input()[pdu.HeaderSize : pdu.HeaderSize+h.AHSLength()])
		if err != nil {
			return c.protocol(h, pdu.RejectInvalidField, "%w", err)
		}
		if len(a.CDB) > scsi.CDBMax-len(p.CDB) || a.HasRead {
			c.uncount(h)
			return c.refuse(h, pdu.RejectNotSupported)
		}
		extended = a.CDB
	}
	t, reason := c.begin(&p, edtl, extended)
	if t == nil {
		c.uncount(h)
		return c.refuse(h, reason)
	}
	c.Next(pdu.DataOffset(h, c.digests))
	if !c.provide(t) {
		c.full(t)
		return c.skip(pdu.Size(h, c.digests) - pdu.DataOffset(h, c.digests))
	}
	ok, err := c.into(h, t.room(0, n))
	if err != nil {
		return err
	}
	if !ok {
		return c.protocol(h, pdu.RejectDataDigest, "immediate data do not match their digest")
	}
	t.got = n
	t.unsolicited = p.Write && !p.Final && n < min(edtl, int(c.params.FirstBurst))
	c.Lock()
	return c.received(t)
}

// begin makes a task, or gives the reason of a Reject.
func (c *conn) begin(p *pdu.SCSICommand, edtl int, extended []byte) (*task, byte) {
	c.Lock()
	defer c.Unlock()
	if c.tasks[p.ITT] != nil {
		return nil, pdu.RejectTaskInUse
	}
	if p.Immediate && c.immediate >= ImmediateMax {
		return nil, pdu.RejectImmediate
	}
	var t *task
	if n := len(c.idle); n > 0 {
		t, c.idle = c.idle[n-1], c.idle[:n-1]
	} else {
		t = &task{c: c}
		t.cmd.Done = t.complete
	}
	t.itt, t.edtl, t.read, t.write, t.imm = p.ITT, edtl, p.Read, p.Write, p.Immediate
	n := copy(t.cdb[:], p.CDB[:])
	n += copy(t.cdb[n:], extended)
	t.cmd.CDB = t.cdb[:n]
	t.cmd.LUN, t.cmd.Attr, t.cmd.Tag = p.LUN, scsi.Attribute(p.Attribute), uint64(p.ITT)
	t.cmd.Expected = 0
	if t.write {
		t.cmd.Expected = edtl
	}
	t.gathering, t.busy, t.dropped = true, true, false
	t.inMax, t.outMax, t.want, t.reserved, t.got, t.unsolicited = 0, 0, 0, 0, 0, false
	t.dataSN, t.next, t.r2tSN, t.bursts = 0, 0, 0, t.bursts[:0]
	if c.srv.cfg.Observe != nil {
		t.start = time.Now()
	}
	c.tasks[t.itt] = t
	if t.imm {
		c.immediate++
	}
	return t, 0
}

// uncount takes a command that is refused out of the window.
func (c *conn) uncount(h *pdu.Header) {
	if !h.Immediate() {
		c.Lock()
		c.counted--
		c.Unlock()
	}
}

// provide takes memory for a task's data and reports whether there was any.
func (c *conn) provide(t *task) bool {
	t.inMax, t.outMax = c.unit.LU.Transfer(t.cmd.CDB)
	t.want = 0
	if t.write {
		t.want = min(t.outMax, t.edtl)
	}
	c.Lock()
	ok := c.reserve(t.inMax + t.want)
	c.Unlock()
	if !ok {
		return false
	}
	t.reserved = t.inMax + t.want
	if t.inMax > 0 {
		t.in = getBuffer(t.inMax)
	}
	if t.want > 0 {
		t.out = getBuffer(t.want)
	}
	return true
}

// full answers a command for whose data there is no memory.
func (c *conn) full(t *task) {
	c.Lock()
	defer c.Unlock()
	t.cmd.Status = scsi.TaskSetFull
	if len(c.tasks) == 1 {
		t.cmd.Status = scsi.Busy
	}
	t.cmd.N, t.cmd.Sense, t.gathering = 0, nil, false
	if t.dropped {
		c.rest(t)
		return
	}
	c.leave(t)
	c.respond(t)
	c.rest(t)
}

// getBuffer returns a buffer of n bytes, 0 <= n <= scsi.TransferMax.
func getBuffer(n int) *edge.Buffer {
	b := edge.GetBuffer(n)
	b.B = b.B[:n]
	return b
}

// complete is the Done of a task's command.
func (t *task) complete(cmd *scsi.Command) {
	c := t.c
	if f := c.srv.cfg.Observe; f != nil && !cmd.Aborted {
		f(classOf(t.cdb[:]), t.moved(), time.Since(t.start), byte(cmd.Status))
	}
	c.Lock()
	c.executing--
	c.leave(t)
	if !cmd.Aborted && !c.Dead() {
		c.respond(t)
	}
	c.rest(t)
	c.UnlockAndSend(c.executing == 0)
}

func (t *task) moved() int {
	if t.cmd.Status != scsi.Good {
		return 0
	}
	return t.want + min(t.cmd.N, t.inMax)
}

// leave takes a task out of the window, under mu.
func (c *conn) leave(t *task) {
	delete(c.tasks, t.itt)
	if t.imm {
		c.immediate--
	} else {
		c.counted--
	}
}

// rest gives back what a task has, under mu.
func (c *conn) rest(t *task) {
	for _, b := range []**edge.Buffer{&t.in, &t.out} {
		if *b != nil {
			(*b).Put()
			*b = nil
		}
	}
	c.release(t.reserved)
	t.reserved = 0
	t.cmd.In, t.cmd.Out, t.cmd.Sense = nil, nil, nil
	c.idle = append(c.idle, t)
}

// dropGathering forgets the tasks that await data and that which wants, under mu.
func (c *conn) dropGathering(which func(*task) bool) {
	for _, t := range c.tasks {
		if !t.gathering || !which(t) {
			continue
		}
		t.gathering = false
		c.leave(t)
		if t.busy {
			t.dropped = true // the reader is using its buffer
		} else {
			c.rest(t)
		}
	}
}
