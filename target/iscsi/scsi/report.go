package scsi

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/fault"
)

// access is the state of this node's own port.
func (lu *LU) access() Access {
	for _, g := range lu.cfg.Backend.Groups() {
		for _, p := range g.Ports {
			if p == lu.cfg.Identity.Port {
				return g.State
			}
		}
	}
	return Unavailable
}

// reportTargetPortGroups is REPORT TARGET PORT GROUPS (SPC-4, 6.37).
func reportTargetPortGroups(c *Command) {
	b := make([]byte, 4, 64)
	switch c.CDB[1] >> 5 {
	case 0:
	case 1: // extended header; no implicit transition time
		b = append(b, 0x10, 0, 0, 0)
	default:
		c.failField(1, 7)
		return
	}
	for _, g := range c.lu().cfg.Backend.Groups() {
		// Supported: transitioning, unavailable, standby, active.
		b = append(b, byte(g.State), 0x8f)
		b = binary.BigEndian.AppendUint16(b, g.ID)
		b = append(b, 0, 0, 0, byte(len(g.Ports)))
		for _, p := range g.Ports {
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	c.data(b)
}

// setTargetPortGroups is SET TARGET PORT GROUPS (SPC-4, 6.45).
func setTargetPortGroups(c *Command) {
	n := int(number(c.CDB, 6, 4))
	switch {
	case n == 0:
		c.good(0)
	case n < 8 || n%4 != 0 || n > ParameterMax:
		c.fail(illegalParameterLength)
	case len(c.Out) < n:
		c.fail(illegalInformationUnit)
	default:
		c.spawn(setStates)
	}
}

// setStates checks all descriptors, then asks the backend for each.
func setStates(c *Command) {
	lu := c.lu()
	p := c.Out[:number(c.CDB, 6, 4)]
	groups := lu.cfg.Backend.Groups()
	for at := 4; at < len(p); at += 4 {
		known := false
		for _, g := range groups {
			known = known || g.ID == binary.BigEndian.Uint16(p[at+2:])
		}
		if s := Access(p[at] & 0xf); s > Unavailable {
			c.failParameter(at)
			return
		}
		if !known {
			c.failParameter(at + 2)
			return
		}
	}
	for at := 4; at < len(p); at += 4 {
		err := lu.cfg.Backend.SetState(lu.ctx, binary.BigEndian.Uint16(p[at+2:]), Access(p[at]&0xf))
		switch {
		case err == nil:
			continue
		case fault.Is(err, fault.Invalid):
			c.failParameter(at)
		default:
			c.fail(hardwareStateFailed)
		}
		return
	}
	// The sender knows what it asked for; the others are told.
	lu.Changed()
	c.t.n.forget(attentionAccess)
	c.good(0)
}

// table is opcodes, for the handlers among them.
var table []opcode

func init() { table = opcodes }

// reportOpcodes is REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35).
func reportOpcodes(c *Command) {
	timeouts := c.CDB[2]&0x80 != 0
	option, code, action := c.CDB[2]&7, c.CDB[3], int(number(c.CDB, 4, 2))
	if option == 0 {
		c.data(allOpcodes(timeouts))
		return
	}
	if option > 3 {
		c.failField(2, 2)
		return
	}
	var rows []*opcode
	for i := range table {
		if table[i].code == code {
			rows = append(rows, &table[i])
		}
	}
	actions := len(rows) > 0 && rows[0].action != noAction
	var found *opcode
	switch {
	case option == 1 && actions || option == 2 && len(rows) > 0 && !actions:
		c.failField(2, 2)
		return
	case !actions && len(rows) > 0 && (option == 1 || action == 0):
		found = rows[0]
	default:
		for _, r := range rows {
			if r.action == action {
				found = r
			}
		}
	}
	if found == nil {
		c.data([]byte{0, 1, 0, 0})
		return
	}
	b := []byte{0, 3 | setIf(timeouts, 0x80), 0, byte(len(found.usage))}
	b = append(b, found.usage...)
	if timeouts {
		b = append(b, noTimeouts...)
	}
	c.data(b)
}

// noTimeouts is a command timeouts descriptor that names none.
var noTimeouts = []byte{0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func allOpcodes(timeouts bool) []byte {
	b := make([]byte, 4, 2048)
	for i := range table {
		o := &table[i]
		flags, action := setIf(timeouts, 2), uint16(0)
		if o.action != noAction {
			flags, action = flags|1, uint16(o.action)
		}
		b = append(b, o.code, 0, byte(action>>8), byte(action), 0, flags, 0, byte(len(o.usage)))
		if timeouts {
			b = append(b, noTimeouts...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// reportFunctions is REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4, 6.36):
// ABORT TASK, ABORT TASK SET, CLEAR TASK SET and LOGICAL UNIT RESET. The target
// resets are the transport's.
func reportFunctions(c *Command) {
	const functions = 0x80 | 0x40 | 0x10 | 0x08
	if c.CDB[2]&0x80 != 0 { // REPD
		c.data([]byte{functions, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		return
	}
	c.data([]byte{functions, 0, 0, 0})
}

// startStopClass: to stop a unit that another has reserved is a conflict.
func startStopClass(cdb []byte) class {
	if cdb[4]&0xf1 == 0x01 {
		return alone
	}
	return changes
}

// startStop is START STOP UNIT (SBC-3, 5.25). A volume that several initiators
// share is not stopped by one of them, it has no power conditions and nothing to
// eject.
func startStop(c *Command) {
	switch {
	case c.CDB[4]&0xf0 != 0:
		c.failField(4, 7)
	case c.CDB[4]&0x02 != 0:
		c.failField(4, 1)
	case c.CDB[4]&0x01 == 0:
		c.failField(4, 0)
	default:
		c.good(0)
	}
}

func preventClass(cdb []byte) class {
	if cdb[4]&3 == 0 {
		return always
	}
	return changes
}

// preventAllow is PREVENT ALLOW MEDIUM REMOVAL (SBC-3, 5.15): the medium cannot be
// removed in any case.
func preventAllow(c *Command) {
	if c.CDB[4]&2 != 0 { // of medium changers
		c.failField(4, 1)
		return
	}
	c.good(0)
}

// sendDiagnostic is SEND DIAGNOSTIC (SPC-4, 6.42): the default self-test, which
// has nothing to test that is not tested all the time.
func sendDiagnostic(c *Command) {
	switch {
	case c.CDB[1]&0xe0 != 0:
		c.failField(1, 7)
	case number(c.CDB, 3, 2) != 0:
		c.failField(3, -1)
	default:
		c.good(0)
	}
}
