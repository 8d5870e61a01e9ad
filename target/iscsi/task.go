package iscsi

import (
	"encoding/binary"
	"time"

	"github.com/gabion-storage/gabion/internal/mutant"
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

// burst is what one R2T asked for.
type burst struct {
	ttt    uint32
	at, n  int // offset and length, bytes
	got    int
	dataSN uint32
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

// room is the part of the gathered data that [at, at+n) falls into.
func (t *task) room(at, n int) []byte {
	if at >= t.want {
		return nil
	}
	return t.out.B[at:min(at+n, t.want)]
}

// received goes on with a task of which the reader has read data: it asks for
// more, waits for more, or hands it over. It is called under mu, and unlocks.
func (c *conn) received(t *task) error {
	t.busy = false
	if t.dropped {
		c.rest(t)
		c.Unlock()
		return nil
	}
	if !t.unsolicited {
		t.next = max(t.next, t.got)
		c.solicit(t)
	}
	if t.unsolicited || len(t.bursts) > 0 {
		c.Unlock()
		return nil
	}
	t.gathering = false
	c.executing++
	c.Unlock()
	t.cmd.In, t.cmd.Out = nil, nil
	if t.in != nil {
		t.cmd.In = t.in.B
	}
	if t.out != nil {
		t.cmd.Out = t.out.B
	}
	c.dirty = true
	c.nexus.Execute(&t.cmd)
	return nil
}

// solicit asks for data that nobody asked for yet, under mu.
func (c *conn) solicit(t *task) {
	for t.next < t.want && len(t.bursts) < int(c.params.MaxOutstandingR2T) {
		b := burst{ttt: c.newTTT(), at: t.next, n: min(t.want-t.next, int(c.params.MaxBurst))}
		p := pdu.R2T{LUN: t.cmd.LUN, ITT: t.itt, TTT: b.ttt, SN: c.unstamped(), R2TSN: t.r2tSN, Offset: uint32(b.at), Length: uint32(b.n)}
		var h pdu.Header
		p.Put(&h)
		c.appendPDU(&h, nil)
		t.bursts = append(t.bursts, b)
		t.next += b.n
		t.r2tSN++
	}
}

// newTTT is a target transfer tag that is not in use, under mu.
func (c *conn) newTTT() uint32 {
	c.ttt++
	if c.ttt == pdu.NoTag {
		c.ttt = 1
	}
	return c.ttt
}

// dataOut takes up a Data-Out.
func (c *conn) dataOut(h *pdu.Header) error {
	p := pdu.DecodeDataOut(h)
	n := h.DataLength()
	c.Lock()
	t := c.tasks[p.ITT]
	if t == nil || !t.gathering {
		// Data of a task that was aborted or refused: they were under way.
		c.Unlock()
		return c.skip(pdu.Size(h, c.digests))
	}
	why := t.expects(&p, n)
	if why == outOfSequence {
		// Something before it got lost, which is as good as damaged (section 7.9).
		c.spoil(t)
		c.Unlock()
		return c.skip(pdu.Size(h, c.digests))
	}
	if why != "" {
		c.Unlock()
		return c.protocol(h, pdu.RejectProtocol, "Data-Out at %d of %d bytes: %s", p.Offset, n, why)
	}
	t.busy = true
	c.Unlock()
	c.Next(pdu.DataOffset(h, c.digests))
	ok, err := c.into(h, t.room(int(p.Offset), n))
	c.Lock()
	if err != nil || !ok {
		t.busy = false
		if t.dropped {
			c.rest(t)
		} else if !ok && err == nil {
			c.appendReject(h, pdu.RejectDataDigest)
			c.spoil(t)
		}
		c.Unlock()
		return err
	}
	t.got = int(p.Offset) + n
	if p.TTT == pdu.NoTag {
		t.dataSN++
		t.unsolicited = !p.Final
	} else {
		b := &t.bursts[0]
		b.got += n
		b.dataSN++
		if p.Final {
			t.bursts = append(t.bursts[:0], t.bursts[1:]...)
		}
	}
	return c.received(t)
}

const outOfSequence = "out of sequence"

// expects says what is wrong with a Data-Out of n bytes; "" if nothing. Under mu.
func (t *task) expects(p *pdu.DataOut, n int) string {
	if p.TTT == pdu.NoTag {
		limit := min(t.edtl, int(t.c.params.FirstBurst))
		switch {
		case !t.unsolicited:
			return "nobody asked for it"
		case p.DataSN != t.dataSN && !mutant.On("any-sequence"):
			return outOfSequence
		case int64(p.Offset) != int64(t.got):
			return "not where the last one ended"
		case n > limit-t.got:
			return "beyond the first burst"
		case !p.Final && n == limit-t.got:
			return "the end of the first burst is not final"
		}
		return ""
	}
	if len(t.bursts) == 0 {
		return "nobody asked for it"
	}
	b := &t.bursts[0]
	switch {
	case p.TTT != b.ttt:
		return "not what the oldest R2T asked for"
	case p.DataSN != b.dataSN && !mutant.On("any-sequence"):
		return outOfSequence
	case int64(p.Offset) != int64(b.at+b.got):
		return "not where the last one ended"
	case n > b.n-b.got:
		return "beyond what the R2T asked for"
	case p.Final != (n == b.n-b.got):
		return "the end of the burst is not where it is final"
	}
	return ""
}

// crcSense is ABORTED COMMAND, PROTOCOL SERVICE CRC ERROR (section 11.4.7.2).
var crcSense = []byte{0x70, 0, 0x0b, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x47, 0x05, 0, 0, 0, 0}

// spoil ends a task whose data arrived damaged, under mu.
func (c *conn) spoil(t *task) {
	t.cmd.Status, t.cmd.Sense, t.cmd.N = scsi.CheckCondition, crcSense, 0
	t.gathering = false
	c.leave(t)
	c.respond(t)
	c.rest(t)
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

// residual compares what a command moved, or would have, with what the
// initiator expected (section 11.4.5).
func (t *task) residual() (r pdu.Residual) {
	actual, expected := 0, t.edtl
	switch {
	case t.outMax > 0:
		actual = t.outMax
		if !t.write {
			expected = 0
		}
	case t.cmd.N > 0:
		actual = t.cmd.N
		if !t.read {
			expected = 0
		}
	}
	switch {
	case actual > expected:
		return pdu.Residual{Overflow: true, Count: uint32(actual - expected)}
	case actual < expected:
		return pdu.Residual{Underflow: true, Count: uint32(expected - actual)}
	}
	return r
}

// respond appends the data-in and the status of a task, under mu.
func (c *conn) respond(t *task) {
	n := 0
	if t.read {
		n = min(t.cmd.N, t.edtl, t.inMax)
	}
	good := t.cmd.Status == scsi.Good
	pdus := uint32(0)
	if n > 0 {
		pdus = c.respondData(t, n, good)
		if good {
			return // the last Data-In carries the status
		}
	}
	p := pdu.SCSIResponse{
		Response: pdu.ResponseCompleted, Status: byte(t.cmd.Status), ITT: t.itt, SN: c.stamp(),
		ExpDataSN: pdus + t.r2tSN, Residual: t.residual(),
	}
	var h pdu.Header
	p.Put(&h)
	if k := len(t.cmd.Sense); t.cmd.Status == scsi.CheckCondition && k > 0 {
		c.appendPDU(&h, append(binary.BigEndian.AppendUint16(nil, uint16(k)), t.cmd.Sense...))
		return
	}
	c.appendPDU(&h, nil)
}

// copyMax is the longest data segment that is copied to the gathered output
// instead of being sent from where it lies, in bytes.
const copyMax = 16 << 10

// respondData appends the first n bytes of data-in as Data-In PDUs, of which the last
// carries the status if good, and returns how many there are. Under mu.
func (c *conn) respondData(t *task, n int, good bool) (pdus uint32) {
	ref := n > copyMax
	segment, burstMax := int(c.params.SendMax), int(c.params.MaxBurst)
	for at, inBurst := 0, 0; at < n; pdus++ {
		k := min(segment, n-at, burstMax-inBurst)
		last := at+k == n
		inBurst += k
		p := pdu.DataIn{ITT: t.itt, TTT: pdu.NoTag, DataSN: pdus, Offset: uint32(at), Final: last || inBurst == burstMax}
		if inBurst == burstMax {
			inBurst = 0
		}
		if last && good {
			p.HasStatus, p.Status, p.Residual, p.SN = true, byte(t.cmd.Status), t.residual(), c.stamp()
		} else {
			p.SN = c.unstamped()
			p.SN.StatSN = 0 // reserved without status
		}
		var h pdu.Header
		p.Put(&h)
		data := t.in.B[at : at+k]
		if ref {
			c.appendLong(&h, data, t, last)
		} else {
			c.appendPDU(&h, data)
		}
		at += k
	}
	return pdus
}

// appendLong appends a PDU whose data are sent from where they lie; with the
// last one the buffer goes to the output. Under mu.
func (c *conn) appendLong(h *pdu.Header, data []byte, t *task, last bool) {
	if c.Dead() {
		return
	}
	h.SetDataLength(len(data))
	head := pdu.DataOffset(h, c.digests)
	b := c.Room(head)
	copy(b, h[:])
	if c.digests.Header {
		pdu.PutHeaderDigest(b, 0)
	}
	if last {
		c.Refer(data, t.in, t.inMax)
		t.in = nil
		t.reserved -= t.inMax
	} else {
		c.Refer(data, nil, 0)
	}
	if pad := pdu.Size(h, c.digests) - head - len(data); pad > 0 {
		end := c.Room(pad)
		clear(end)
		if c.digests.Data {
			d := pdu.DataDigest(data)
			copy(end[pad-pdu.DigestSize:], d[:])
		}
	}
	c.End()
}
