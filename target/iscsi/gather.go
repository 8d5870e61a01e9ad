package iscsi

import (
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// burst is what one R2T asked for.
type burst struct {
	ttt    uint32
	at, n  int // offset and length, bytes
	got    int
	dataSN uint32
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
