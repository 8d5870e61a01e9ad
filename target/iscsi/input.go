package iscsi

import (
	"errors"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// loop is the reader of the full feature phase.
func (c *conn) loop() error {
	for {
		if err := c.fill(pdu.HeaderSize); err != nil {
			return err
		}
		h := (*pdu.Header)(c.Input())
		if n := h.DataLength(); n > c.recvMax {
			return c.protocol(h, pdu.RejectProtocol, "a data segment of %d bytes, the limit is %d", n, c.recvMax)
		}
		if h.AHSLength() > 0 && h.Opcode() != pdu.OpSCSICommand {
			return c.protocol(h, pdu.RejectProtocol, "additional headers in a %v", h.Opcode())
		}
		n := pdu.DataOffset(h, c.digests)
		if err := c.fill(n); err != nil {
			return err
		}
		copy(c.header[:], c.Input()) // the buffer moves when more is read
		if c.digests.Header && !pdu.HeaderDigestOK(c.Input(), c.header.AHSLength()) {
			return fault.Newf(fault.Invalid, "iscsi.pdu", c.peer, "a header does not match its digest")
		}
		if err := c.dispatch(&c.header); err != nil {
			return err
		}
		c.Count()
		if err := c.throttle(); err != nil {
			return err
		}
	}
}

// throttle waits while the client does not take what it is sent.
func (c *conn) throttle() error {
	c.Lock()
	full, why := c.outputFull(), c.Why()
	c.Unlock()
	if !full {
		return why
	}
	return c.Await(c.outputFull)
}

// outputFull tells, under the lock, that too much waits to be sent.
func (c *conn) outputFull() bool {
	bytes, pdus := c.Unsent()
	return bytes > OutputMax || pdus > ResponsesMax
}

// errSkip says that a PDU is to be ignored.
var errSkip = errors.New("ignored")

// dispatch carries out one PDU whose header is checked and whose additional
// headers, digest and data are still in the input. An error ends the connection.
func (c *conn) dispatch(h *pdu.Header) error {
	op := h.Opcode()
	if c.nexus == nil {
		switch op {
		case pdu.OpText, pdu.OpLogout, pdu.OpNopOut:
		default:
			return c.protocol(h, pdu.RejectProtocol, "a %v in a discovery session", op)
		}
	}
	switch op {
	case pdu.OpDataOut:
		return c.dataOut(h)
	case pdu.OpSNACK:
		return c.refuse(h, pdu.RejectSNACK)
	case pdu.OpSCSICommand, pdu.OpTaskMgmt, pdu.OpText, pdu.OpLogout:
		if err := c.sequence(h); err != nil {
			return c.skipIf(h, err)
		}
	case pdu.OpNopOut:
		if h.ITT() == pdu.NoTag && !h.Immediate() {
			return c.protocol(h, pdu.RejectProtocol, "a NOP-Out without a tag that is not immediate")
		}
		if err := c.sequence(h); err != nil {
			return c.skipIf(h, err)
		}
	default:
		return c.refuse(h, pdu.RejectNotSupported)
	}
	if op == pdu.OpSCSICommand {
		return c.command(h)
	}
	data, err := c.segment(h)
	if err != nil {
		return err
	}
	switch op {
	case pdu.OpTaskMgmt:
		return c.manage(pdu.DecodeTaskMgmt(h))
	case pdu.OpText:
		return c.textRequest(h, pdu.DecodeTextRequest(h), data)
	case pdu.OpLogout:
		return c.logout(pdu.DecodeLogoutRequest(h))
	}
	return c.nopOut(pdu.DecodeNopOut(h), data)
}

// sequence checks CmdSN: errSkip for what lies outside of the window (section
// 4.2.2.1), a fault for a gap, which one connection that loses nothing cannot have.
func (c *conn) sequence(h *pdu.Header) error {
	if h.Immediate() {
		return nil
	}
	c.Lock()
	defer c.Unlock()
	sn := h.CmdSN()
	switch {
	case mutant.On("window-open"):
		c.expCmdSN = sn
	case pdu.Before(sn, c.expCmdSN), pdu.Before(c.maxCmdSN(), sn):
		return errSkip
	case sn != c.expCmdSN:
		return fault.Newf(fault.Invalid, "iscsi.pdu", c.peer, "CmdSN %d where %d is due", sn, c.expCmdSN)
	}
	c.expCmdSN++
	if h.Opcode() == pdu.OpSCSICommand {
		c.counted++ // here, so that nobody sees the one without the other
	}
	return nil
}

// maxCmdSN is the end of the window, under mu. It never falls: a command raises
// ExpCmdSN when it raises counted, in sequence.
func (c *conn) maxCmdSN() uint32 {
	return c.expCmdSN + uint32(c.srv.cfg.CommandsMax-c.counted) - 1
}

func (c *conn) skipIf(h *pdu.Header, err error) error {
	if errors.Is(err, errSkip) {
		return c.skip(pdu.Size(h, c.digests))
	}
	return err
}

// skip passes over n bytes of input.
func (c *conn) skip(n int) error {
	if n > len(c.Input()) {
		defer c.hear()
	}
	if err := c.Skip(n); err != nil {
		return c.readError(err, false)
	}
	return nil
}

// segment takes the whole PDU off the input and returns its data segment, which
// lies there until the next read. A bad digest ends the session, as section
// 7.8 has it for what is neither a command's data nor repeatable.
func (c *conn) segment(h *pdu.Header) ([]byte, error) {
	if err := c.fill(pdu.Size(h, c.digests)); err != nil {
		return nil, err
	}
	data := c.Next(pdu.Size(h, c.digests))[pdu.DataOffset(h, c.digests):]
	n := h.DataLength()
	if n > 0 && c.digests.Data && !pdu.DataDigestOK(data) {
		return nil, c.protocol(h, pdu.RejectDataDigest, "the data of a %v do not match their digest", h.Opcode())
	}
	return data[:n], nil
}

// into reads the data segment of h, of which the headers are taken off the
// input, to dst as far as it reaches, and the rest nowhere. It reports whether the digest matches.
func (c *conn) into(h *pdu.Header, dst []byte) (ok bool, err error) {
	n := h.DataLength()
	if n == 0 {
		return true, nil
	}
	take := min(n, len(dst))
	if err := c.readFull(dst[:take]); err != nil {
		return false, err
	}
	if !c.digests.Data || mutant.On("digest-blind") {
		if c.digests.Data {
			n += pdu.DigestSize
		}
		return true, c.skip(pdu.Padded(n) - take)
	}
	sum := pdu.UpdateDataDigest(0, dst[:take])
	for left := pdu.Padded(n) - take; left > 0; {
		if err := c.fill(1); err != nil {
			return false, err
		}
		k := min(left, len(c.Input()))
		sum = pdu.UpdateDataDigest(sum, c.Next(k))
		left -= k
	}
	if err := c.fill(pdu.DigestSize); err != nil {
		return false, err
	}
	got := [pdu.DigestSize]byte(c.Next(pdu.DigestSize))
	return got == pdu.FinishDataDigest(sum, 0), nil
}

// refuse answers a PDU with a Reject and passes over it.
func (c *conn) refuse(h *pdu.Header, reason byte) error {
	c.Lock()
	c.appendReject(h, reason)
	c.Unlock()
	return c.skip(pdu.Size(h, c.digests))
}

// protocol answers a PDU with a Reject and ends the connection.
func (c *conn) protocol(h *pdu.Header, reason byte, format string, args ...any) error {
	c.Lock()
	c.appendReject(h, reason)
	c.Unlock()
	c.Turn()
	return fault.Newf(fault.Invalid, "iscsi.pdu", c.peer, format, args...)
}

// appendReject appends a Reject with the header that it is about, under mu.
func (c *conn) appendReject(h *pdu.Header, reason byte) {
	p := pdu.Reject{Reason: reason, SN: c.stamp()}
	var out pdu.Header
	p.Put(&out)
	c.appendPDU(&out, h[:])
}

// stamp gives the sequence numbers of a response that takes a StatSN, under mu.
func (c *conn) stamp() pdu.SN {
	sn := pdu.SN{StatSN: c.statSN, ExpCmdSN: c.expCmdSN, MaxCmdSN: c.maxCmdSN()}
	c.statSN++
	return sn
}

// unstamped is stamp for what takes no StatSN, under mu.
func (c *conn) unstamped() pdu.SN {
	return pdu.SN{StatSN: c.statSN, ExpCmdSN: c.expCmdSN, MaxCmdSN: c.maxCmdSN()}
}

// appendPDU appends a PDU with a short data segment, under mu.
func (c *conn) appendPDU(h *pdu.Header, data []byte) {
	if c.Dead() {
		return
	}
	h.SetDataLength(len(data))
	b := c.Room(pdu.Size(h, c.digests))
	copy(b, h[:])
	if c.digests.Header {
		pdu.PutHeaderDigest(b, 0)
	}
	if len(data) > 0 {
		p := b[pdu.DataOffset(h, c.digests):]
		clear(p[copy(p, data):])
		if c.digests.Data {
			d := pdu.DataDigest(data)
			copy(p[pdu.Padded(len(data)):], d[:])
		}
	}
	c.End()
}
