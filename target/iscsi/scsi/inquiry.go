package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/gabion-storage/gabion/internal/ident"
)

// vendor is the T10 vendor identification.
const vendor = "GABION"

// Limits of the block limits page, in bytes unless it says otherwise.
const (
	physicalBlock   = 4096 // a volume's own block
	optimalTransfer = 1 << 20
	compareMax      = 64 << 10 // COMPARE AND WRITE; and at most 255 blocks
	unmapMax        = 4 << 30  // all descriptors of one UNMAP; and at most unmapBlocksMax
	unmapBlocksMax  = 1 << 20
	unmapRangesMax  = 256 // descriptors of one UNMAP
	// writeSameBlocksMax is the longest WRITE SAME in blocks.
	writeSameBlocksMax = 32 << 10
)

// compareBlocksMax is the longest COMPARE AND WRITE in blocks.
func compareBlocksMax(block int) int { return min(255, compareMax/block) }

// unmapCountMax is how many blocks one UNMAP may name.
func unmapCountMax(block int) uint32 { return uint32(min(unmapMax/block, unmapBlocksMax)) }

// NAA is the name of a volume's logical unit as the initiators show it (WWID): a
// locally assigned NAA designator (SPC-4, 7.8.6.6.4), the digit 3 and the first 60
// bits of the volume's identity behind its first four.
func NAA(v ident.VolumeID) [8]byte {
	var n [8]byte
	copy(n[:], v[:])
	n[0] = 0x30 | n[0]&0xf
	return n
}

// inquiry is INQUIRY (SPC-4, 6.6).
func inquiry(c *Command) {
	vpd, page := c.CDB[1]&1 != 0, c.CDB[2]
	switch {
	case c.CDB[1]&2 != 0: // CMDDT, obsolete
		c.failField(1, 1)
	case vpd:
		c.vital(page)
	case page != 0:
		c.failField(2, -1)
	default:
		c.data(c.lu().standardInquiry(0))
	}
}

// standardInquiry is the standard data, 96 bytes. peripheral is the qualifier and
// type: 0 for a block device.
func (lu *LU) standardInquiry(peripheral byte) []byte {
	b := make([]byte, 96)
	b[0] = peripheral
	b[2] = 0x06             // SPC-4
	b[3] = 0x12             // HISUP, response data format 2
	b[4] = byte(len(b) - 5) // additional length
	b[5] = 0x30             // TPGS: implicit and explicit
	b[6] = 0x10             // MULTIP
	b[7] = 0x02             // CMDQUE
	text(b[8:16], vendor)
	text(b[16:32], lu.product())
	text(b[32:36], lu.cfg.Identity.Revision)
	for i, v := range []uint16{0x00a0, 0x0960, 0x0460, 0x04c0} { // SAM-5, iSCSI, SPC-4, SBC-3
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
	return b
}

func (lu *LU) product() string {
	if lu.cfg.Identity.Product == "" {
		return "volume"
	}
	return lu.cfg.Identity.Product
}

// text fills p with s and blanks; only printable ASCII passes.
func text(p []byte, s string) {
	for i := range p {
		p[i] = ' '
		if i < len(s) && s[i] >= 0x20 && s[i] < 0x7f {
			p[i] = s[i]
		}
	}
}

// absent answers for a LUN that does not exist (SPC-4, 6.6 and SAM-5, 5.13): LUN 0
// is the only one.
func (c *Command) absent() {
	lu := c.lu()
	switch op := c.t.op; {
	case op == nil || !op.quiet:
		c.fail(illegalLUN)
	case op.code == 0x12 && c.CDB[1]&3 == 0 && c.CDB[2] == 0:
		c.data(lu.standardInquiry(0x7f))
	case op.code == 0x03:
		p := make([]byte, SenseMax)
		c.data(p[:encodeSense(p, illegalLUN, detail{}, c.CDB[1]&1 != 0)])
	case op.code == 0xa0:
		op.run(c)
	default:
		c.fail(illegalLUN)
	}
}

// vitalPages are the supported vital product data pages, ascending.
var vitalPages = []byte{0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2}

// vital answers with a page of vital product data (SPC-4, 7.8; SBC-3, 6.6).
func (c *Command) vital(page byte) {
	lu := c.lu()
	b := []byte{0, page, 0, 0}
	switch page {
	case 0x00:
		b = append(b, vitalPages...)
	case 0x80:
		b = append(b, lu.cfg.Identity.Volume.String()...)
	case 0x83:
		b = lu.appendDesignators(b)
	case 0x86:
		b = append(b, make([]byte, 60)...)
		b[5] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
		b[6] = setIf(lu.cfg.Backend.Geometry().WriteCache, 0x01)
		b[7] = 0x01 // LUICLR
	case 0xb0:
		b = append(b, make([]byte, 60)...)
		lu.blockLimits(b)
	case 0xb1:
		b = append(b, make([]byte, 60)...)
		b[5] = 1 // does not rotate
	case 0xb2:
		// LBPU, LBPWS, LBPWS10, LBPRZ; thin.
		b = append(b, 0, 0xe4, 0x02, 0)
	default:
		c.failField(2, -1)
		return
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
	c.data(b)
}

// blockLimits fills the block limits page.
func (lu *LU) blockLimits(b []byte) {
	_, block := lu.capacity()
	b[4] = 1 // WSNZ
	b[5] = byte(compareBlocksMax(block))
	binary.BigEndian.PutUint16(b[6:], uint16(physicalBlock/block))
	binary.BigEndian.PutUint32(b[8:], uint32(TransferMax/block))
	binary.BigEndian.PutUint32(b[12:], uint32(optimalTransfer/block))
	binary.BigEndian.PutUint32(b[20:], unmapCountMax(block))
	binary.BigEndian.PutUint32(b[24:], unmapRangesMax)
	binary.BigEndian.PutUint32(b[28:], uint32(physicalBlock/block))
	binary.BigEndian.PutUint32(b[32:], 1<<31) // UGAVALID, alignment 0
	binary.BigEndian.PutUint64(b[36:], writeSameBlocksMax)
}

// appendDesignators appends the names of logical unit, target port and target
// device (SPC-4, 7.8.6).
func (lu *LU) appendDesignators(b []byte) []byte {
	id := &lu.cfg.Identity
	naa := NAA(id.Volume)
	b = appendDesignator(b, 0x01, 0x03, naa[:])
	b = appendDesignator(b, 0x02, 0x01, []byte(fmt.Sprintf("%-8s%s", vendor, hex.EncodeToString(id.Volume[:]))))
	b = appendDesignator(b, 0x51, 0x94, []byte{0, 0, byte(id.Port >> 8), byte(id.Port)})
	for _, g := range lu.cfg.Backend.Groups() {
		for _, p := range g.Ports {
			if p == id.Port {
				b = appendDesignator(b, 0x51, 0x95, []byte{0, 0, byte(g.ID >> 8), byte(g.ID)})
			}
		}
	}
	b = appendDesignator(b, 0x53, 0x98, nameString(fmt.Sprintf("%s,t,0x%04x", id.Target, id.Port)))
	return appendDesignator(b, 0x53, 0xa8, nameString(id.Target))
}

func appendDesignator(b []byte, protocolAndCode, kind byte, p []byte) []byte {
	b = append(b, protocolAndCode, kind, 0, byte(len(p)))
	return append(b, p...)
}

// nameString is a SCSI name string designator: ended by a zero, a multiple of
// four bytes, at most 252 here.
func nameString(s string) []byte {
	p := append([]byte(s[:min(len(s), 248)]), 0)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	return p
}

// reportLUNs is REPORT LUNS (SPC-4, 6.33): LUN 0, and no well known logical units.
func reportLUNs(c *Command) {
	switch c.CDB[2] {
	case 0, 2:
		c.data(append([]byte{0, 0, 0, 8, 0, 0, 0, 0}, make([]byte, 8)...))
	case 1, 0x10, 0x11, 0x12:
		c.data(make([]byte, 8))
	default:
		c.failField(2, -1)
	}
}

// testUnitReady is TEST UNIT READY (SPC-4, 6.47). It does not attach the volume: a
// path checker that asks all nodes must not make them quarrel.
func testUnitReady(c *Command) {
	if s := c.lu().readiness(); s != noSense {
		c.fail(s)
		return
	}
	c.good(0)
}

// readiness is what keeps this port from access to the medium.
func (lu *LU) readiness() sense {
	if lu.device() != nil {
		return noSense
	}
	switch lu.access() {
	case Standby:
		return notReadyStandby
	case Unavailable:
		return notReadyUnavailable
	case Transitioning:
		return notReadyTransition
	}
	return noSense
}

// requestSense is REQUEST SENSE (SPC-4, 6.39): a pending unit attention, or what
// TEST UNIT READY would say.
func requestSense(c *Command) {
	s, ok := c.t.n.takeAttention(^uint32(0))
	if !ok {
		s = c.lu().readiness()
	}
	p := make([]byte, SenseMax)
	c.data(p[:encodeSense(p, s, detail{}, c.CDB[1]&1 != 0)])
}
