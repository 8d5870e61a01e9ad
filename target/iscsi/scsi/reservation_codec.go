package scsi

import (
	"encoding/binary"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// The state of reservations in a Store. All numbers are big-endian.
//
//	 0      version, 1
//	 1      flags: 1 APTPL, 2 the last change aborts commands
//	 2      type of the reservation, 0 none
//	 3      k, the number of names
//	 4..7   PRGENERATION
//	 8..9   index of the holder; 0xffff none, or all registrants
//	10..11  n, the number of registrations
//	12..13  m, the number of notices
//	        k names of initiators: length (1), name
//	        n registrations: nexus, key (8), flags (1: 1 ALL_TG_PT)
//	        m notices: nexus, which (1: 1 preempted, 2 released, 3 registrations)
//
// A nexus is the index of its name (1), the ISID (6) and the relative target
// port (2). Names are in the order of their first use. Nothing follows.
const (
	stateVersion = 1
	stateHeader  = 14
	holderNone   = 0xffff
)

var noticeCodes = [...]sense{1: attentionPreempted, 2: attentionReleased, 3: attentionRegistrations}

func encodeReservations(s *reservations) []byte {
	b := make([]byte, stateHeader, stateHeader+(len(s.registered)+len(s.notices))*64)
	b[0], b[2] = stateVersion, s.kind
	if s.aptpl {
		b[1] |= 1
	}
	if s.abort {
		b[1] |= 2
	}
	binary.BigEndian.PutUint32(b[4:], s.generation)
	holder := uint16(holderNone)
	if s.kind != 0 && !allRegistrants(s.kind) {
		holder = uint16(s.holder)
	}
	binary.BigEndian.PutUint16(b[8:], holder)
	binary.BigEndian.PutUint16(b[10:], uint16(len(s.registered)))
	binary.BigEndian.PutUint16(b[12:], uint16(len(s.notices)))
	names := s.names()
	b[3] = byte(len(names))
	for _, name := range names {
		b = append(append(b, byte(len(name))), name...)
	}
	for _, r := range s.registered {
		b = appendNexus(b, names, r.nexusKey)
		b = binary.BigEndian.AppendUint64(b, r.key)
		b = append(b, setIf(r.allPorts, 1))
	}
	for _, n := range s.notices {
		b = appendNexus(b, names, n.nexusKey)
		for code, which := range noticeCodes {
			if code > 0 && which == n.which {
				b = append(b, byte(code))
			}
		}
	}
	return b
}

// names lists the initiators of s in the order of their first use.
func (s *reservations) names() []string {
	var names []string
	add := func(k nexusKey) {
		if !slices.Contains(names, k.id.Initiator) {
			names = append(names, k.id.Initiator)
		}
	}
	for _, r := range s.registered {
		add(r.nexusKey)
	}
	for _, n := range s.notices {
		add(n.nexusKey)
	}
	return names
}

func appendNexus(b []byte, names []string, k nexusKey) []byte {
	b = append(b, byte(slices.Index(names, k.id.Initiator)))
	b = append(b, k.id.ISID[:]...)
	return binary.BigEndian.AppendUint16(b, k.port)
}

// fits tells whether s can be stored, and whatever later changes tell its
// registrants too.
func (s *reservations) fits() bool {
	worst := s.next()
	worst.tell(nexusKey{}, attentionPreempted)
	return len(worst.registered) <= registrationsMax && len(encodeReservations(&worst)) <= ReservationStateMax
}

func setIf(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}

// stateReader reads b and remembers the first thing that is wrong.
type stateReader struct {
	b     []byte
	bad   string
	names []string
	used  int // names that occurred
}

func (r *stateReader) take(n int) []byte {
	if len(r.b) < n {
		r.fail("it is cut short")
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *stateReader) fail(why string) {
	if r.bad == "" {
		r.bad = why
	}
}

func (r *stateReader) readNames(n int) {
	for range n {
		size := int(r.take(1)[0])
		if size == 0 || size > InitiatorNameMax {
			r.fail("the length of a name is impossible")
		}
		if r.bad != "" {
			return
		}
		name := string(r.take(size))
		if slices.Contains(r.names, name) {
			r.fail("a name is there twice")
		}
		r.names = append(r.names, name)
	}
}

func (r *stateReader) nexus() nexusKey {
	var k nexusKey
	i := int(r.take(1)[0])
	copy(k.id.ISID[:], r.take(6))
	k.port = binary.BigEndian.Uint16(r.take(2))
	if i > r.used || i >= len(r.names) {
		r.fail("a name is missing")
		return k
	}
	r.used = max(r.used, i+1)
	k.id.Initiator = r.names[i]
	return k
}

// decodeReservations reads what encodeReservations wrote; empty is no
// reservation. Corrupt: it is something else.
func decodeReservations(b []byte) (reservations, error) {
	var s reservations
	if len(b) == 0 {
		return s, nil
	}
	r := &stateReader{b: b}
	h := r.take(stateHeader)
	if h[0] != stateVersion || h[1]&^3 != 0 || len(b) > ReservationStateMax {
		r.fail("the header is unknown")
	}
	s.aptpl, s.abort, s.kind = h[1]&1 != 0, h[1]&2 != 0, h[2]
	s.generation = binary.BigEndian.Uint32(h[4:])
	holder := int(binary.BigEndian.Uint16(h[8:]))
	n, m := int(binary.BigEndian.Uint16(h[10:])), int(binary.BigEndian.Uint16(h[12:]))
	if n > registrationsMax || m > registrationsMax {
		r.fail("there are too many registrations")
	}
	r.readNames(int(h[3]))
	for range n {
		if r.bad != "" {
			break
		}
		g := registration{nexusKey: r.nexus()}
		g.key = binary.BigEndian.Uint64(r.take(8))
		flags := r.take(1)[0]
		g.allPorts = flags == 1
		if flags > 1 || g.key == 0 || s.find(g.nexusKey) >= 0 {
			r.fail("a registration is impossible")
		}
		s.registered = append(s.registered, g)
	}
	for range m {
		if r.bad != "" {
			break
		}
		k := r.nexus()
		code := int(r.take(1)[0])
		if code == 0 || code >= len(noticeCodes) {
			r.fail("a notice is unknown")
			break
		}
		s.notices = append(s.notices, notice{k, noticeCodes[code]})
	}
	switch {
	case s.kind == 0 || allRegistrants(s.kind):
		if holder != holderNone || s.kind != 0 && n == 0 {
			r.fail("the holder is impossible")
		}
		if s.kind != 0 {
			s.holder = -1
		}
	case !validKind(s.kind) || holder >= n:
		r.fail("the holder is impossible")
	default:
		s.holder = holder
	}
	if r.bad == "" && (len(r.b) > 0 || r.used != len(r.names)) {
		r.fail("something is left over")
	}
	if r.bad != "" {
		return reservations{}, fault.Newf(fault.Corrupt, "reservations decode", "", "%s", r.bad)
	}
	return s, nil
}
