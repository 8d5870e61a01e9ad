package scsi

import "encoding/binary"

// modePage is a mode page: its bytes from the page code on, and which bits MODE
// SELECT may change.
type modePage struct{ current, changeable []byte }

// Mode pages (SPC-4, 7.5; SBC-3, 6.5). Nothing is saved: a reset or another
// holder brings the defaults back.
const (
	pageRecovery   = 0x01
	pageCaching    = 0x08
	pageControl    = 0x0a
	pageExceptions = 0x1c
	pageAll        = 0x3f
)

const (
	descriptorSense = 0x04 // D_SENSE, byte 2 of the control page
	softwareProtect = 0x08 // SWP, byte 4 of the control page
)

// modePages lists all pages, ascending. defaults leaves out what was changed.
func (lu *LU) modePages(defaults bool) []modePage {
	recovery := modePage{make([]byte, 12), make([]byte, 12)}
	caching := modePage{make([]byte, 20), make([]byte, 20)}
	control := modePage{make([]byte, 12), make([]byte, 12)}
	exceptions := modePage{make([]byte, 12), make([]byte, 12)}
	caching.current[2] = setIf(lu.cfg.Backend.Geometry().WriteCache, 0x04) // WCE
	control.current[2] = setIf(!defaults && lu.descriptors.Load(), descriptorSense)
	control.current[3] = 0x10 // unrestricted reordering; QERR 0
	control.current[4] = setIf(!defaults && lu.writeProtect.Load(), softwareProtect)
	control.changeable[2], control.changeable[4] = descriptorSense, softwareProtect
	exceptions.current[2] = 0x08 // DEXCPT: reports none
	pages := []modePage{recovery, caching, control, exceptions}
	for i, code := range []byte{pageRecovery, pageCaching, pageControl, pageExceptions} {
		for _, p := range [][]byte{pages[i].current, pages[i].changeable} {
			p[0], p[1] = code, byte(len(p)-2)
		}
	}
	return pages
}

// modeSense is MODE SENSE(6) and (10) (SPC-4, 6.13 and 6.14).
func modeSense(c *Command) {
	long := c.CDB[0] == 0x5a
	lu := c.lu()
	control, page, sub := c.CDB[2]>>6, c.CDB[2]&0x3f, c.CDB[3]
	if control == 3 {
		c.fail(illegalSaving)
		return
	}
	if sub != 0 && sub != 0xff {
		c.failField(3, -1)
		return
	}
	b := lu.modeHeader(long, c.CDB[1]&0x08 != 0, long && c.CDB[1]&0x10 != 0)
	found := false
	for _, p := range lu.modePages(control == 2) {
		if page != pageAll && page != p.current[0] {
			continue
		}
		found = true
		if control == 1 {
			b = append(b, p.changeable...)
		} else {
			b = append(b, p.current...)
		}
	}
	if !found {
		c.failField(2, 5)
		return
	}
	if long {
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	} else {
		b[0] = byte(len(b) - 1)
	}
	c.data(b)
}

// modeHeader is the mode parameter header with block descriptor (SPC-4, 7.5.5;
// SBC-3, 6.5.2). The mode data length is left open.
func (lu *LU) modeHeader(long, bare, longLBA bool) []byte {
	specific := byte(0x10) // DPOFUA
	if lu.cfg.Backend.Geometry().ReadOnly || lu.writeProtect.Load() {
		specific |= 0x80
	}
	descriptor := lu.blockDescriptor(longLBA)
	if bare {
		descriptor = nil
	}
	var b []byte
	if long {
		b = []byte{0, 0, 0, specific, setIf(longLBA && !bare, 1), 0, 0, byte(len(descriptor))}
	} else {
		b = []byte{0, 0, specific, byte(len(descriptor))}
	}
	return append(b, descriptor...)
}

func (lu *LU) blockDescriptor(long bool) []byte {
	blocks, block := lu.capacity()
	if long {
		b := binary.BigEndian.AppendUint64(nil, blocks)
		return binary.BigEndian.AppendUint64(b, uint64(block))
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(min(blocks, 0xffffffff)))
	return binary.BigEndian.AppendUint32(b, uint32(block))
}

// modeSelect is MODE SELECT(6) and (10) (SPC-4, 6.11 and 6.12). All is checked
// before anything changes.
func modeSelect(c *Command) {
	long := c.CDB[0] == 0x55
	n := int(c.CDB[4])
	if long {
		n = int(number(c.CDB, 7, 2))
	}
	switch {
	case c.CDB[1]&0x01 != 0: // SP
		c.failField(1, 0)
	case n > 0 && c.CDB[1]&0x10 == 0: // PF
		c.failField(1, 4)
	case len(c.Out) < n:
		c.fail(illegalInformationUnit)
	case n == 0:
		c.good(0)
	default:
		c.selectModes(c.Out[:n], long)
	}
}

func (c *Command) selectModes(p []byte, long bool) {
	lu := c.lu()
	header := 4
	if long {
		header = 8
	}
	if len(p) < header {
		c.fail(illegalParameterLength)
		return
	}
	descriptor, longLBA := int(p[3]), false
	if long {
		descriptor, longLBA = int(binary.BigEndian.Uint16(p[6:])), p[4]&1 != 0
	}
	if len(p) < header+descriptor {
		c.fail(illegalParameterLength)
		return
	}
	if descriptor > 0 && !lu.sameDescriptor(p[header:header+descriptor], longLBA) {
		c.failParameter(header)
		return
	}
	pages := lu.modePages(false)
	for at := header + descriptor; at < len(p); {
		if at+2 > len(p) || at+2+int(p[at+1]) > len(p) {
			c.fail(illegalParameterLength)
			return
		}
		n := 2 + int(p[at+1])
		if bad := changePage(pages, p[at:at+n]); bad >= 0 {
			c.failParameter(at + bad)
			return
		}
		at += n
	}
	lu.setModes(c.t.n, pages)
	c.good(0)
}

// sameDescriptor: a block descriptor may repeat what is, and say "as before".
func (lu *LU) sameDescriptor(p []byte, long bool) bool {
	want := lu.blockDescriptor(long)
	if len(p) != len(want) {
		return false
	}
	half := len(p) / 2
	same := string(p[:half]) == string(want[:half])
	zero := string(p[:half]) == string(make([]byte, half))
	// A short one has the block length in its last three bytes.
	return (same || zero) && string(p[len(p)-3:]) == string(want[len(p)-3:])
}

// changePage puts p into the pages; it returns the first byte that cannot be, or
// -1.
func changePage(pages []modePage, p []byte) int {
	for _, m := range pages {
		if p[0]&0x7f != m.current[0] {
			continue
		}
		if len(p) != len(m.current) {
			return 1
		}
		for i := 2; i < len(p); i++ {
			if (p[i]^m.current[i])&^m.changeable[i] != 0 {
				return i
			}
		}
		copy(m.current[2:], p[2:])
		return -1
	}
	return 0
}

// setModes makes the changeable parameters what pages say.
func (lu *LU) setModes(by *Nexus, pages []modePage) {
	for _, m := range pages {
		if m.current[0] != pageControl {
			continue
		}
		d, w := m.current[2]&descriptorSense != 0, m.current[4]&softwareProtect != 0
		changedD, changedW := lu.descriptors.Swap(d) != d, lu.writeProtect.Swap(w) != w
		if changedD || changedW {
			lu.notifyOthers(by, attentionMode)
		}
	}
}
