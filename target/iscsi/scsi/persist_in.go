package scsi

import "encoding/binary"

// withReservations runs answer with the newest state, on a goroutine: another
// node may have changed it.
func withReservations(c *Command, answer func(s *reservations) []byte) {
	c.spawn(func(c *Command) {
		lu := c.lu()
		if err := lu.load(lu.ctx); err != nil {
			c.failError(err)
			return
		}
		lu.mu.Lock()
		s := lu.reservations
		lu.mu.Unlock()
		c.data(answer(&s))
	})
}

// reservationHeader is PRGENERATION and room for the additional length.
func reservationHeader(s *reservations) []byte {
	b := binary.BigEndian.AppendUint32(nil, s.generation)
	return append(b, 0, 0, 0, 0)
}

func withLength(b []byte) []byte {
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	return b
}

// readKeys is READ KEYS (SPC-4, 6.15.2).
func readKeys(c *Command) {
	withReservations(c, func(s *reservations) []byte {
		b := reservationHeader(s)
		for _, r := range s.registered {
			b = binary.BigEndian.AppendUint64(b, r.key)
		}
		return withLength(b)
	})
}

// readReservation is READ RESERVATION (SPC-4, 6.15.3).
func readReservation(c *Command) {
	withReservations(c, func(s *reservations) []byte {
		b := reservationHeader(s)
		if s.kind == 0 {
			return b
		}
		var key uint64 // zero with all registrants
		if s.holder >= 0 {
			key = s.registered[s.holder].key
		}
		b = binary.BigEndian.AppendUint64(b, key)
		return withLength(append(b, 0, 0, 0, 0, 0, s.kind, 0, 0))
	})
}

// reportCapabilities is REPORT CAPABILITIES (SPC-4, 6.15.4): SIP_C, ATP_C and
// PTPL_C, and a type mask of all types.
func reportCapabilities(c *Command) {
	withReservations(c, func(s *reservations) []byte {
		return []byte{0, 8, 0x0d, 0x80 | setIf(s.aptpl, 1), 0xea, 0x01, 0, 0}
	})
}

// readFullStatus is READ FULL STATUS (SPC-4, 6.15.5).
func readFullStatus(c *Command) {
	withReservations(c, func(s *reservations) []byte {
		b := reservationHeader(s)
		for i, r := range s.registered {
			b = binary.BigEndian.AppendUint64(b, r.key)
			flags, kind := setIf(r.allPorts, 2), byte(0)
			if s.holds(i) {
				flags, kind = flags|1, s.kind
			}
			b = append(b, 0, 0, 0, 0, flags, kind, 0, 0, 0, 0)
			b = binary.BigEndian.AppendUint16(b, r.port)
			id := appendTransportID(nil, r.id)
			b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
			b = append(b, id...)
		}
		return withLength(b)
	})
}

// reserve is RESERVE(6) and RESERVE(10) (SPC-2, 7.21). With registrations it is in
// conflict (SPC-4, 5.13.3, CRH of zero).
func reserve(c *Command) {
	if c.CDB[1]&0x13 != 0 { // third party, extents, long identifiers
		c.failField(1, -1)
		return
	}
	lu := c.lu()
	lu.mu.Lock()
	free := (lu.reserved == nil || lu.reserved == c.t.n) && len(lu.reservations.registered) == 0
	if free {
		lu.reserved = c.t.n
		lu.enforce()
	}
	lu.mu.Unlock()
	if !free {
		c.conflict()
		return
	}
	lu.drain(func(o *Command) bool { return o.touches() && o.t.n.denied(o) }, func() { c.good(0) })
}

// release is RELEASE(6) and RELEASE(10): of a reservation of another it does
// nothing (SPC-2, 7.16).
func release(c *Command) {
	if c.CDB[1]&0x13 != 0 {
		c.failField(1, -1)
		return
	}
	lu := c.lu()
	lu.mu.Lock()
	conflict := len(lu.reservations.registered) > 0
	if lu.reserved == c.t.n {
		lu.reserved = nil
		lu.enforce()
	}
	lu.mu.Unlock()
	if conflict {
		c.conflict()
		return
	}
	c.good(0)
}
