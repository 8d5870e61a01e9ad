package scsi

import (
	"context"
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// key is n with the node's target port.
func (n *Nexus) key() nexusKey { return nexusKey{n.id, n.lu.cfg.Identity.Port} }

// enforce tells every nexus what reservations of others deny to it, under mu.
func (lu *LU) enforce() {
	for n := range lu.nexuses {
		d := lu.reservations.denies(n.key())
		if lu.reserved != nil && lu.reserved != n {
			d |= deniedLegacy
		}
		n.denial.Store(uint32(d))
	}
}

// load brings the reservations up to what the Store has.
func (lu *LU) load(ctx context.Context) error {
	state, version, err := lu.cfg.Reservations.Load(ctx)
	if err != nil {
		return err
	}
	s, err := decodeReservations(state)
	if err != nil {
		return err
	}
	lu.adopt(s, version)
	return nil
}

// adopt makes s, which is version in the Store, what is enforced, unless a newer
// one is already. It tells whether s was news.
func (lu *LU) adopt(s reservations, version uint64) bool {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	if version <= lu.version {
		return false
	}
	follows := version == lu.version+1
	old := lu.reservations
	lu.reservations, lu.version = s, version
	lu.enforce()
	for n := range lu.nexuses {
		k := n.key()
		if follows {
			for _, t := range s.notices {
				if t.nexusKey == k {
					n.notify(t.which)
				}
			}
		} else if old.find(k) >= 0 && s.find(k) < 0 {
			n.notify(attentionRegistrations) // changes were missed
		}
	}
	return true
}

// touches tells whether c reads or changes the medium. Only such commands are
// waited for: they wait for a device, never for another command.
func (c *Command) touches() bool {
	return c.t.op.medium && c.t.op.class&(deniedReads|deniedChanges) != 0
}

// settle waits until what adopt forbade is over: commands that began before and
// would now be in conflict, and those that PREEMPT AND ABORT, or anything else,
// has aborted. by is the command that brought the change, or nil.
func (lu *LU) settle(s *reservations, by *Command, done func()) {
	if s.abort {
		victims := map[nexusKey]bool{}
		for _, t := range s.notices {
			if t.which == attentionRegistrations {
				victims[t.nexusKey] = true
			}
		}
		lu.abort(func(c *Command) bool { return c != by && victims[c.t.n.key()] }, func(int) {})
	}
	if mutant.On("preempt-without-drain") {
		done()
		return
	}
	lu.drain(func(c *Command) bool { return c.touches() && (c.t.aborted || c.t.n.denied(c)) }, done)
}

// ReservationsChanged tells that another node saved state with version in the
// Store. Commands that begin after its return are held to it; done runs when
// those that began before, and would not be allowed any more, are over. done is
// told Corrupt if the state cannot be read: then nothing has changed, and the
// volume must not be served here. It may be told again, and waits again.
func (lu *LU) ReservationsChanged(state []byte, version uint64, done func(error)) {
	s, err := decodeReservations(state)
	if err != nil {
		done(err)
		return
	}
	if !lu.adopt(s, version) {
		s.abort = false // that was done when it was news; what it ended may still be under way
	}
	lu.settle(&s, nil, func() { done(nil) })
}

// savesMax is how often a PERSISTENT RESERVE OUT is tried when others save at
// the same time.
const savesMax = 16

func reserveOutRun(c *Command) { c.spawn(reserveOutNow) }

// reserveOutNow carries out PERSISTENT RESERVE OUT: read the state, change it,
// save it in place of what was read, enforce it.
func reserveOutNow(c *Command) {
	o, why, at := decodeOrder(c)
	switch {
	case why == illegalParameter:
		c.failParameter(at)
		return
	case why != 0:
		c.fail(why)
		return
	}
	lu := c.lu()
	lu.reservationMu.Lock()
	s, out, err := lu.change(o)
	lu.reservationMu.Unlock()
	switch {
	case err != nil && fault.Is(err, fault.Conflict):
		c.Status = Busy
		c.finish()
	case err != nil && fault.Is(err, fault.NoSpace):
		c.fail(illegalRegistrations)
	case err != nil:
		c.failError(err)
	case out.conflict:
		c.conflict()
	case out.sense == illegalField:
		c.failField(out.field, -1)
	case out.sense == illegalParameter:
		c.failParameter(out.field)
	case out.sense != 0:
		c.fail(out.sense)
	default:
		lu.settle(&s, c, func() { c.good(0) })
	}
}

// change applies o to the newest state and saves the result.
func (lu *LU) change(o order) (s reservations, out outcome, err error) {
	for range savesMax {
		if err = lu.load(lu.ctx); err != nil {
			return s, out, err
		}
		lu.mu.Lock()
		old, version := lu.reservations, lu.version
		legacy := lu.reserved != nil
		lu.mu.Unlock()
		if legacy { // RESERVE(6) of anybody (SPC-2, 5.5.1)
			return s, outcome{conflict: true}, nil
		}
		s, out = old.apply(o)
		if !out.changed {
			return s.next(), out, nil
		}
		err = lu.cfg.Reservations.Save(lu.ctx, version, encodeReservations(&s))
		if err == nil {
			lu.adopt(s, version+1)
			return s, out, nil
		}
		if !fault.Is(err, fault.Conflict) {
			return s, out, err
		}
	}
	return s, out, err
}

// decodeOrder reads CDB and parameters of a PERSISTENT RESERVE OUT.
func decodeOrder(c *Command) (o order, why sense, at int) {
	o = order{action: c.CDB[1] & 0x1f, by: c.t.n.key(), scope: c.CDB[2] >> 4, kind: c.CDB[2] & 0xf}
	n := int(number(c.CDB, 5, 4))
	p := c.Out
	switch {
	case len(o.by.id.Initiator) == 0 || len(o.by.id.Initiator) > InitiatorNameMax:
		return o, illegalRegistrations, 0
	case n < 24 || n > ParameterMax:
		return o, illegalParameterLength, 0
	case len(p) < n:
		return o, illegalInformationUnit, 0
	}
	p = p[:n]
	o.key, o.next = binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
	if o.action == registerAndMove {
		return decodeMove(o, p)
	}
	o.aptpl = p[20]&1 != 0
	specified := p[20]&8 != 0
	if o.action == register || o.action == registerAndIgnore {
		o.allPorts = p[20]&4 != 0
		o.ports = c.lu().ports()
	}
	switch {
	case specified && o.action != register:
		return o, illegalParameter, 20
	case specified:
		return decodeOthers(o, p)
	case n != 24:
		return o, illegalParameterLength, 0
	}
	return o, 0, 0
}

// decodeOthers reads the TransportIDs that SPEC_I_PT adds.
func decodeOthers(o order, p []byte) (order, sense, int) {
	if len(p) < 28 || int(binary.BigEndian.Uint32(p[24:])) != len(p)-28 {
		return o, illegalParameterLength, 0
	}
	for at := 28; at < len(p); {
		id, n, ok := decodeTransportID(p[at:])
		if !ok || len(o.others) >= registrationsMax {
			return o, illegalParameter, at
		}
		if id != o.by.id {
			o.others = append(o.others, id)
		}
		at += n
	}
	return o, 0, 0
}

// decodeMove reads the parameters of REGISTER AND MOVE.
func decodeMove(o order, p []byte) (order, sense, int) {
	o.unregister, o.aptpl = p[17]&2 != 0, p[17]&1 != 0
	o.to.port = binary.BigEndian.Uint16(p[18:])
	if int(binary.BigEndian.Uint32(p[20:])) != len(p)-24 {
		return o, illegalParameterLength, 0
	}
	id, n, ok := decodeTransportID(p[24:])
	switch {
	case !ok || n != len(p)-24:
		return o, illegalParameter, 24
	case o.to.port == 0:
		return o, illegalParameter, 18
	}
	o.to.id = id
	return o, 0, 0
}

// ports lists the relative identifiers of all target ports of the volume.
func (lu *LU) ports() []uint16 {
	ports := []uint16{lu.cfg.Identity.Port}
	for _, g := range lu.cfg.Backend.Groups() {
		for _, p := range g.Ports {
			if p != lu.cfg.Identity.Port {
				ports = append(ports, p)
			}
		}
	}
	return ports
}
