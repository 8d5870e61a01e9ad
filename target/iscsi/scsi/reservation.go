package scsi

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// Types of persistent reservations (SPC-4, 6.15.3.3). 0 is none.
const (
	writeExclusive                 = 0x1
	exclusiveAccess                = 0x3
	writeExclusiveRegistrantsOnly  = 0x5
	exclusiveAccessRegistrantsOnly = 0x6
	writeExclusiveAllRegistrants   = 0x7
	exclusiveAccessAllRegistrants  = 0x8
)

// registrationsMax is how many I_T nexuses can be registered, if their names are
// not so long that ReservationStateMax is reached before: 64 nexuses of 16
// initiators with names of 45 bytes fit.
const registrationsMax = 100

// nexusKey is an I_T nexus as reservations know it: both ports by name, so that it
// means the same on every node and after any restart.
type nexusKey struct {
	id   NexusID
	port uint16 // relative target port identifier
}

// registration is a registered I_T nexus.
type registration struct {
	nexusKey
	key      uint64
	allPorts bool // came with ALL_TG_PT
}

// reservations is the state of persistent reservations (SPC-4, 5.13), a value:
// each command makes a new one.
type reservations struct {
	generation uint32 // PRGENERATION
	aptpl      bool
	kind       uint8          // type of the reservation
	holder     int            // index of the holder in registrations; -1 with all registrants
	registered []registration // in order of registration, distinct nexuses
	// What the last change meant for others, so that every node that applies it
	// does the same: each nexus with its unit attention, and whether the commands of
	// those whose registrations were preempted are aborted.
	notices []notice
	abort   bool
}

// notice is a unit attention for a nexus; which is one of attentionPreempted,
// attentionReleased, attentionRegistrations.
type notice struct {
	nexusKey
	which sense
}

func (s *reservations) find(k nexusKey) int {
	return slices.IndexFunc(s.registered, func(r registration) bool { return r.nexusKey == k })
}

func allRegistrants(kind uint8) bool {
	return kind == writeExclusiveAllRegistrants || kind == exclusiveAccessAllRegistrants
}

func registrantsOnly(kind uint8) bool {
	return kind == writeExclusiveRegistrantsOnly || kind == exclusiveAccessRegistrantsOnly
}

func validKind(kind uint8) bool {
	switch kind {
	case writeExclusive, exclusiveAccess:
		return true
	}
	return allRegistrants(kind) || registrantsOnly(kind)
}

// holds tells whether registration i holds the reservation.
func (s *reservations) holds(i int) bool {
	return i >= 0 && s.kind != 0 && (allRegistrants(s.kind) || s.holder == i)
}

// denies is what the reservation forbids to nexus k (SPC-4, table 66).
func (s *reservations) denies(k nexusKey) class {
	if s.kind == 0 {
		return 0
	}
	i := s.find(k)
	if s.holds(i) || i >= 0 && registrantsOnly(s.kind) {
		return 0
	}
	switch s.kind {
	case writeExclusive, writeExclusiveRegistrantsOnly, writeExclusiveAllRegistrants:
		return deniedChanges
	}
	if mutant.On("exclusive-access-reads") {
		return deniedChanges
	}
	return deniedChanges | deniedReads
}

// next is a copy to change, without the notices of the change before.
func (s *reservations) next() reservations {
	n := *s
	n.registered = slices.Clone(s.registered)
	n.notices, n.abort = nil, false
	return n
}

// tell adds a notice for every registered nexus but by.
func (s *reservations) tell(by nexusKey, which sense) {
	for _, r := range s.registered {
		if r.nexusKey != by {
			s.notices = append(s.notices, notice{r.nexusKey, which})
		}
	}
}

// release ends the reservation and tells the registrants, but not by, if its
// type let them in (SPC-4, 5.13.11.2.2).
func (s *reservations) release(by nexusKey) {
	if registrantsOnly(s.kind) || allRegistrants(s.kind) {
		s.tell(by, attentionReleased)
	}
	s.kind, s.holder = 0, 0
}

// remove takes out registration i; by did it. A reservation that it held ends.
func (s *reservations) remove(i int, by nexusKey) {
	held := s.kind != 0 && !allRegistrants(s.kind) && s.holder == i
	if s.kind != 0 && !held && s.holder > i {
		s.holder--
	}
	s.registered = slices.Delete(s.registered, i, i+1)
	switch {
	case held:
		s.release(by)
	case len(s.registered) == 0:
		s.kind, s.holder = 0, 0
	}
}

// hold makes registration i the holder of a reservation of type kind.
func (s *reservations) hold(i int, kind uint8) {
	s.kind, s.holder = kind, i
	if allRegistrants(kind) {
		s.holder = -1
	}
}

// outcome is how a PERSISTENT RESERVE OUT ends. Without a refusal it is Good.
type outcome struct {
	conflict bool
	sense    sense
	field    int  // with illegalField and illegalParameter
	changed  bool // there is a new state to save
}

// order is a decoded PERSISTENT RESERVE OUT.
type order struct {
	action     byte
	by         nexusKey
	scope      byte
	kind       uint8
	key, next  uint64 // reservation key, service action reservation key
	aptpl      bool
	allPorts   bool
	unregister bool      // UNREG of REGISTER AND MOVE
	others     []NexusID // of SPEC_I_PT: initiator ports to register too
	to         nexusKey  // of REGISTER AND MOVE
	ports      []uint16  // all target ports of the volume
}

// apply carries out an order on a copy of s. What it returns besides is how the
// command ends.
func (s *reservations) apply(o order) (reservations, outcome) {
	n := s.next()
	i := n.find(o.by)
	if o.action == registerAndIgnore {
		return n, n.register(o, i)
	}
	if o.action == register && i < 0 {
		if o.key != 0 {
			return n, outcome{conflict: true}
		}
		return n, n.register(o, i)
	}
	if i < 0 || n.registered[i].key != o.key {
		return n, outcome{conflict: true}
	}
	switch o.action {
	case register:
		return n, n.register(o, i)
	case reserveAction:
		return n, n.reserve(o, i)
	case releaseAction:
		return n, n.releaseBy(o, i)
	case clearAction:
		n.tell(o.by, attentionPreempted)
		n.registered, n.kind, n.holder = nil, 0, 0
		n.generation++
		return n, outcome{changed: true}
	case preempt, preemptAndAbort:
		return n, n.preempt(o, i)
	}
	return n, n.move(o, i)
}

// Service actions of PERSISTENT RESERVE OUT (SPC-4, 6.16.2).
const (
	register          = 0x0
	reserveAction     = 0x1
	releaseAction     = 0x2
	clearAction       = 0x3
	preempt           = 0x4
	preemptAndAbort   = 0x5
	registerAndIgnore = 0x6
	registerAndMove   = 0x7
)

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4, 5.13.7):
// registers, changes a key, or unregisters with a key of zero.
func (s *reservations) register(o order, i int) outcome {
	if i < 0 && o.next == 0 {
		return outcome{} // nothing to unregister
	}
	if i >= 0 && len(o.others) > 0 {
		return outcome{sense: illegalParameter, field: 20}
	}
	ports := []uint16{o.by.port}
	if o.allPorts {
		ports = o.ports
	}
	for _, id := range append([]NexusID{o.by.id}, o.others...) {
		for _, port := range ports {
			if r := s.registerOne(o, nexusKey{id, port}); r.conflict || r.sense != 0 {
				return r
			}
		}
	}
	s.aptpl = o.aptpl
	s.generation++
	return outcome{changed: true}
}

func (s *reservations) registerOne(o order, k nexusKey) outcome {
	i := s.find(k)
	switch {
	case i >= 0 && k.id != o.by.id:
		return outcome{conflict: true} // SPEC_I_PT of one that is registered
	case i >= 0 && o.next == 0:
		if o.action == register && s.registered[i].key != o.key {
			return outcome{} // ALL_TG_PT: another registration of this initiator
		}
		s.remove(i, o.by)
	case i >= 0:
		if o.action == register && s.registered[i].key != o.key {
			return outcome{}
		}
		s.registered[i].key, s.registered[i].allPorts = o.next, o.allPorts
	case o.next != 0:
		s.registered = append(s.registered, registration{k, o.next, o.allPorts})
		if !s.fits() {
			return outcome{sense: illegalRegistrations}
		}
	}
	return outcome{}
}

// reserve is RESERVE (SPC-4, 5.13.9).
func (s *reservations) reserve(o order, i int) outcome {
	if !validKind(o.kind) || o.scope != 0 {
		return outcome{sense: illegalField, field: 2}
	}
	if s.kind == 0 {
		s.hold(i, o.kind)
		return outcome{changed: true}
	}
	return outcome{conflict: !s.holds(i) || s.kind != o.kind}
}

// releaseBy is RELEASE (SPC-4, 5.13.11.2.2).
func (s *reservations) releaseBy(o order, i int) outcome {
	if !s.holds(i) {
		return outcome{}
	}
	if s.kind != o.kind || o.scope != 0 {
		return outcome{sense: illegalRelease}
	}
	s.release(o.by)
	return outcome{changed: true}
}

// preempt is PREEMPT and PREEMPT AND ABORT (SPC-4, 5.13.11.2.4 and 5.13.11.2.6).
func (s *reservations) preempt(o order, i int) outcome {
	s.abort = o.action == preemptAndAbort
	takes := s.kind != 0 && !allRegistrants(s.kind) && s.registered[s.holder].key == o.next
	everybody := allRegistrants(s.kind) && o.next == 0
	if o.next == 0 && !everybody {
		return outcome{sense: illegalParameter, field: 8}
	}
	takes = takes || everybody
	if takes && (!validKind(o.kind) || o.scope != 0) { // otherwise both are ignored
		return outcome{sense: illegalField, field: 2}
	}
	old, removed := s.kind, 0
	kept := s.registered[:0:0]
	for _, r := range s.registered {
		mine := r.nexusKey == o.by
		if (everybody || r.key == o.next) && !(takes && mine) {
			removed++
			if !mine {
				s.notices = append(s.notices, notice{r.nexusKey, attentionRegistrations})
			}
			continue
		}
		kept = append(kept, r)
	}
	if removed == 0 && !takes {
		return outcome{conflict: true}
	}
	var holder nexusKey
	if s.kind != 0 && !allRegistrants(s.kind) {
		holder = s.registered[s.holder].nexusKey
	}
	s.registered = kept
	switch {
	case takes:
		if old != o.kind {
			s.tell(o.by, attentionReleased)
		}
		s.hold(s.find(o.by), o.kind)
	case len(kept) == 0:
		s.kind, s.holder = 0, 0
	case s.kind != 0 && !allRegistrants(s.kind):
		s.holder = s.find(holder)
	}
	s.generation++
	return outcome{changed: true}
}

// move is REGISTER AND MOVE (SPC-4, 5.13.8).
func (s *reservations) move(o order, i int) outcome {
	switch {
	case !s.holds(i) || allRegistrants(s.kind):
		return outcome{conflict: true}
	case o.next == 0:
		return outcome{sense: illegalParameter, field: 8}
	case o.to == o.by:
		return outcome{sense: illegalParameter, field: 24}
	}
	j := s.find(o.to)
	if j < 0 {
		j = len(s.registered)
		s.registered = append(s.registered, registration{nexusKey: o.to})
	}
	s.registered[j].key = o.next
	s.holder = j
	if o.unregister {
		s.remove(i, o.by)
	}
	if !s.fits() {
		return outcome{sense: illegalRegistrations}
	}
	s.aptpl = o.aptpl
	s.generation++
	return outcome{changed: true}
}
