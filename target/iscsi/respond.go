package iscsi

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

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
