package scsi

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/targettest"
)

// persist is a PERSISTENT RESERVE OUT.
func (r *rig) persist(n *Nexus, action byte, kind byte, key, next uint64) *Command {
	r.t.Helper()
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], next)
	return r.wait(r.start(n, []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0}, p))
}

// mustPersist is persist that must be good.
func (r *rig) mustPersist(n *Nexus, action byte, kind byte, key, next uint64) {
	r.t.Helper()
	if c := r.persist(n, action, kind, key, next); c.Status != Good {
		r.t.Fatalf("action %d type %d key %d next %d: %s", action, kind, key, next, result(c))
	}
}

// expectAttention demands a unit attention, and that it is the only one.
func (r *rig) expectAttention(n *Nexus, want ...sense) {
	r.t.Helper()
	for _, w := range append(want, noSense) {
		c := r.on(n, "00 00 00 00 00 00", nil)
		if got := senseCode(c); got != w {
			r.t.Errorf("attention %06x, want %06x", got, w)
		}
	}
}

// TestReservationTypesForbidWhatTheTableSays is SPC-4 table 66 and SBC-3 table 13 for
// one command of each class, from the holder, a registrant and a stranger.
func TestReservationTypesForbidWhatTheTableSays(t *testing.T) {
	const ok, no = "ok", "conflict"
	for _, x := range []struct {
		kind                                                     byte
		readBy, writeBy                                          [2]string // registrant, stranger
		capacity, modeSenseStranger, testUnit, inquiry, stopUnit string    // stranger
	}{
		{writeExclusive, [2]string{ok, ok}, [2]string{no, no}, ok, ok, ok, ok, no},
		{exclusiveAccess, [2]string{no, no}, [2]string{no, no}, ok, no, ok, ok, no},
		{writeExclusiveRegistrantsOnly, [2]string{ok, ok}, [2]string{ok, no}, ok, ok, ok, ok, no},
		{exclusiveAccessRegistrantsOnly, [2]string{ok, no}, [2]string{ok, no}, ok, no, ok, ok, no},
		{writeExclusiveAllRegistrants, [2]string{ok, ok}, [2]string{ok, no}, ok, ok, ok, ok, no},
		{exclusiveAccessAllRegistrants, [2]string{ok, no}, [2]string{ok, no}, ok, no, ok, ok, no},
	} {
		r := newRig(t, 1<<20, 512)
		holder, registrant, stranger := r.n, r.nexus(1), r.nexus(2)
		r.mustPersist(holder, register, 0, 0, 1)
		r.mustPersist(registrant, register, 0, 0, 2)
		r.mustPersist(holder, reserveAction, x.kind, 1, 0)
		block := make([]byte, 512)
		check := func(who string, n *Nexus, want, cdb string, out []byte) {
			t.Helper()
			got := ok
			if c := r.on(n, cdb, out); c.Status == ReservationConflict {
				got = no
			} else if c.Status != Good && want == ok {
				t.Errorf("type %d, %s, %s: %s", x.kind, who, cdb, result(c))
			}
			if got != want {
				t.Errorf("type %d, %s, %s: %s, want %s", x.kind, who, cdb, got, want)
			}
		}
		const read, write = "28 00 00000000 00 0001 00", "2a 00 00000000 00 0001 00"
		check("holder", holder, ok, read, nil)
		check("holder", holder, ok, write, block)
		for i, n := range []*Nexus{registrant, stranger} {
			who := []string{"registrant", "stranger"}[i]
			check(who, n, x.readBy[i], read, nil)
			check(who, n, x.readBy[i], "2f 00 00000000 00 0001 00", nil)
			check(who, n, x.writeBy[i], write, block)
			check(who, n, x.writeBy[i], "42 00 00 00 00 00 00 00 00 00", nil)
			check(who, n, x.writeBy[i], "35 00 00 00 00 00 00 00 00 00", nil)
			check(who, n, x.writeBy[i], "89 00 0000000000000000 000000 00 00 00", nil)
		}
		check("stranger", stranger, x.capacity, "25 00 00 00 00 00 00 00 00 00", nil)
		check("stranger", stranger, x.modeSenseStranger, "1a 00 3f 00 ff 00", nil)
		check("stranger", stranger, x.testUnit, "00 00 00 00 00 00", nil)
		check("stranger", stranger, x.inquiry, "12 00 00 00 60 00", nil)
		check("stranger", stranger, x.stopUnit, "1b 00 00 00 00 00", nil)
		check("stranger", stranger, ok, "1b 00 00 00 01 00", nil)
		check("stranger", stranger, ok, "5e 00 00 00 00 00 00 01 00 00", nil)
		check("stranger", stranger, no, "16 00 00 00 00 00", nil)
		// Only the holder's release counts, and only of the right type.
		r.mustPersist(holder, releaseAction, x.kind, 1, 0)
		check("stranger", stranger, ok, write, block)
	}
}

func TestUnregisteredMayOnlyRegister(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	for _, action := range []byte{reserveAction, releaseAction, clearAction, preempt, preemptAndAbort} {
		if c := r.persist(r.n, action, writeExclusive, 0, 0); c.Status != ReservationConflict {
			t.Errorf("action %d of a stranger: %s", action, result(c))
		}
	}
	if c := r.persist(r.n, register, 0, 5, 6); c.Status != ReservationConflict {
		t.Errorf("register with a key that is not there: %s", result(c))
	}
	r.mustPersist(r.n, register, 0, 0, 0) // nothing to unregister
	r.mustPersist(r.n, register, 0, 0, 6)
	if c := r.persist(r.n, register, 0, 5, 7); c.Status != ReservationConflict {
		t.Errorf("register with a wrong key: %s", result(c))
	}
	r.mustPersist(r.n, registerAndIgnore, 0, 99, 7)
	r.mustPersist(r.n, register, 0, 7, 8)
	if c := r.persist(r.n, reserveAction, writeExclusive, 7, 0); c.Status != ReservationConflict {
		t.Errorf("reserve with the old key: %s", result(c))
	}
}

func TestRegistrantsAreToldOfWhatEnds(t *testing.T) {
	setUp := func(kind byte) (*rig, *Nexus, *Nexus) {
		r := newRig(t, 1<<20, 512)
		b, c := r.nexus(1), r.nexus(2)
		for i, n := range []*Nexus{r.n, b, c} {
			r.mustPersist(n, register, 0, 0, uint64(i+1))
		}
		r.mustPersist(r.n, reserveAction, kind, 1, 0)
		return r, b, c
	}
	for _, x := range []struct {
		what    string
		kind    byte
		do      func(r *rig, b *Nexus)
		a, b, c []sense
	}{
		{"release of write exclusive", writeExclusive, func(r *rig, _ *Nexus) { r.mustPersist(r.n, releaseAction, writeExclusive, 1, 0) }, nil, nil, nil},
		{"release for registrants", writeExclusiveRegistrantsOnly,
			func(r *rig, _ *Nexus) { r.mustPersist(r.n, releaseAction, writeExclusiveRegistrantsOnly, 1, 0) },
			nil, []sense{attentionReleased}, []sense{attentionReleased}},
		{"release by another of all registrants", exclusiveAccessAllRegistrants,
			func(r *rig, b *Nexus) { r.mustPersist(b, releaseAction, exclusiveAccessAllRegistrants, 2, 0) },
			[]sense{attentionReleased}, nil, []sense{attentionReleased}},
		{"release by one that does not hold it", writeExclusiveRegistrantsOnly,
			func(r *rig, b *Nexus) { r.mustPersist(b, releaseAction, writeExclusiveRegistrantsOnly, 2, 0) }, nil, nil, nil},
		{"unregistering of the holder", exclusiveAccessRegistrantsOnly, func(r *rig, _ *Nexus) { r.mustPersist(r.n, register, 0, 1, 0) },
			nil, []sense{attentionReleased}, []sense{attentionReleased}},
		{"clear", exclusiveAccess, func(r *rig, b *Nexus) { r.mustPersist(b, clearAction, 0, 2, 0) },
			[]sense{attentionPreempted}, nil, []sense{attentionPreempted}},
		{"preempt of the holder, same type", exclusiveAccess, func(r *rig, b *Nexus) { r.mustPersist(b, preempt, exclusiveAccess, 2, 1) },
			[]sense{attentionRegistrations}, nil, nil},
		{"preempt of the holder, another type", exclusiveAccess, func(r *rig, b *Nexus) { r.mustPersist(b, preempt, writeExclusive, 2, 1) },
			[]sense{attentionRegistrations}, nil, []sense{attentionReleased}},
		{"preempt of a registrant", exclusiveAccess, func(r *rig, b *Nexus) { r.mustPersist(r.n, preempt, exclusiveAccess, 1, 3) },
			nil, nil, []sense{attentionRegistrations}},
		{"preempt of all registrants", writeExclusiveAllRegistrants, func(r *rig, b *Nexus) { r.mustPersist(b, preempt, writeExclusive, 2, 0) },
			[]sense{attentionRegistrations}, nil, []sense{attentionRegistrations}},
	} {
		t.Run(x.what, func(t *testing.T) {
			r, b, c := setUp(x.kind)
			r.t = t
			x.do(r, b)
			r.expectAttention(r.n, x.a...)
			r.expectAttention(b, x.b...)
			r.expectAttention(c, x.c...)
		})
	}
}

func TestPreemptNeedsAKeyThatIsThere(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	r.mustPersist(r.n, register, 0, 0, 1)
	if c := r.persist(r.n, preempt, writeExclusive, 1, 9); c.Status != ReservationConflict {
		t.Errorf("preempt of a key nobody has: %s", result(c))
	}
	// Its own key, without a reservation: it unregisters itself.
	r.mustPersist(r.n, preempt, writeExclusive, 1, 1)
	if len(r.lu.reservations.registered) != 0 {
		t.Error("it is still registered")
	}
}

// TestPreemptFencesOffWritesUnderWay: what PREEMPT forbids cannot take effect
// after its answer.
func TestPreemptFencesOffWritesUnderWay(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 512)
	mem.Delay = 50 * time.Millisecond
	r := newRigOn(t, mem, Config{})
	b := r.nexus(1)
	r.mustPersist(r.n, register, 0, 0, 1)
	r.mustPersist(b, register, 0, 0, 2)
	r.mustPersist(b, reserveAction, exclusiveAccess, 2, 0)
	r.on(b, "28 00 00000000 00 0001 00", nil) // attaches
	var order []string
	ended := make(chan string, 2)
	report := func(who string) func(*Command) {
		return func(c *Command) { c.Done = func(c *Command) { ended <- who + " " + result(c) } }
	}
	r.start(b, bytesOf(t, "2a 00 00000000 00 0001 00"), make([]byte, 512), report("write"))
	p := make([]byte, 24)
	p[7], p[15] = 1, 2
	r.start(r.n, []byte{0x5f, preempt, exclusiveAccess, 0, 0, 0, 0, 0, 24, 0}, p, report("preempt"))
	for range 2 {
		select {
		case s := <-ended:
			order = append(order, s)
		case <-time.After(20 * time.Second):
			t.Fatal("nothing ends")
		}
	}
	if fmt.Sprint(order) != "[write good  preempt good ]" {
		t.Errorf("the order of ends is %q", order)
	}
}

// TestPreemptAndAbortAborts: the commands of the preempted end without a response.
func TestPreemptAndAbortAborts(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 512)
	mem.Delay = 50 * time.Millisecond
	r := newRigOn(t, mem, Config{})
	b := r.nexus(1)
	r.mustPersist(r.n, register, 0, 0, 1)
	r.mustPersist(b, register, 0, 0, 2)
	r.do("28 00 00000000 00 0001 00", nil) // attaches
	w := r.start(b, bytesOf(t, "2a 00 00000000 00 0001 00"), make([]byte, 512))
	r.mustPersist(r.n, preemptAndAbort, 0, 1, 2)
	if c := r.wait(w); !c.Aborted {
		t.Errorf("the write of the preempted: %s", result(c))
	}
	r.expectAttention(b, attentionRegistrations)
}

// TestReservationsAreTheSameFromEveryNode: two nodes with one store; what one
// saves the other enforces, and tells its nexuses.
func TestReservationsAreTheSameFromEveryNode(t *testing.T) {
	mem, store := targettest.NewMemory(1<<20, 512), &sharedStore{}
	one := newRigOn(t, mem, Config{Reservations: store})
	two := newRigOn(t, one.mem, Config{Reservations: store})
	two.lu.cfg.Identity.Port = 2
	store.peers = []*LU{one.lu, two.lu}
	one.mustPersist(one.n, register, 0, 0, 1)
	two.mustPersist(two.n, register, 0, 0, 2)
	one.mustPersist(one.n, reserveAction, exclusiveAccess, 1, 0)
	if c := two.on(two.n, "28 00 00000000 00 0001 00", nil); c.Status != ReservationConflict {
		t.Errorf("a read through the other node: %s", result(c))
	}
	// The same initiator port by another target port is another nexus.
	if got := two.on(two.n, "5e 03 0000000000 1000 00", nil); binary.BigEndian.Uint32(got.In) != 2 || got.N < 100 {
		t.Errorf("full status from the other node: %s", result(got))
	}
	two.mustPersist(two.n, preempt, exclusiveAccess, 2, 1)
	one.expectAttention(one.n, attentionRegistrations)
	if c := one.on(one.n, "28 00 00000000 00 0001 00", nil); c.Status != ReservationConflict {
		t.Errorf("a read of the preempted: %s", result(c))
	}
	// A later holder reads them from the store.
	three := newRigOn(t, one.mem, Config{Reservations: store})
	if c := three.on(three.n, "28 00 00000000 00 0001 00", nil); c.Status != ReservationConflict {
		t.Errorf("a read after takeover: %s", result(c))
	}
}

// sharedStore tells all nodes, as the contract of Store demands.
type sharedStore struct {
	MemoryStore
	peers []*LU
}

func (s *sharedStore) Save(ctx context.Context, version uint64, state []byte) error {
	if err := s.MemoryStore.Save(ctx, version, state); err != nil {
		return err
	}
	for _, lu := range s.peers {
		ended := make(chan error, 1)
		lu.ReservationsChanged(state, version+1, func(err error) { ended <- err })
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// failingStore cannot save.
type failingStore struct{ MemoryStore }

func (*failingStore) Save(context.Context, uint64, []byte) error {
	return fault.Newf(fault.Unavailable, "save", "", "no majority")
}

func TestReservationStateSurvivesItsCodec(t *testing.T) {
	s := reservations{}
	by := nexusKey{nexusID(1), 7}
	for _, o := range []order{
		{action: register, by: by, next: 5, allPorts: true, ports: []uint16{7, 8}, aptpl: true},
		{action: register, by: nexusKey{nexusID(2), 7}, next: 6},
		{action: reserveAction, by: by, key: 5, kind: exclusiveAccess},
		{action: preempt, by: nexusKey{nexusID(2), 7}, key: 6, next: 5, kind: writeExclusiveAllRegistrants},
	} {
		next, out := s.apply(o)
		if !out.changed {
			t.Fatalf("%+v: %+v", o, out)
		}
		s = next
		got, err := decodeReservations(encodeReservations(&s))
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", s) {
			t.Errorf("got  %+v\nwant %+v", got, s)
		}
	}
	cluster := reservations{}
	for i := range 64 {
		name := fmt.Sprintf("iqn.1994-05.com.example:%021d", i/4)
		next, out := cluster.apply(order{action: register, by: nexusKey{NexusID{name, [6]byte{byte(i)}}, uint16(i % 2)}, next: 1})
		if !out.changed || len(name) != 45 {
			t.Fatalf("nexus %d of a cluster: %+v", i, out)
		}
		cluster = next
	}
	var full reservations
	long := make([]byte, InitiatorNameMax)
	for i := range long {
		long[i] = 'a'
	}
	for i := range registrationsMax + 1 {
		name := string(long[:InitiatorNameMax-i])
		next, out := full.apply(order{action: register, by: nexusKey{NexusID{name, [6]byte{byte(i)}}, 1}, next: 1})
		if !out.changed {
			if out.sense != illegalRegistrations || i < 10 {
				t.Errorf("registration %d: %+v", i, out)
			}
			break
		}
		full = next
	}
	full.tell(nexusKey{}, attentionPreempted)
	if n := len(encodeReservations(&full)); n > ReservationStateMax {
		t.Errorf("the largest state has %d bytes", n)
	}
}

func TestReservationThatIsNotStoredDoesNotHold(t *testing.T) {
	r := newRigOn(t, targettest.NewMemory(1<<20, 512), Config{Reservations: &failingStore{}})
	r.fails(r.n, abortedCommunication, "5f 00 00 00 00 00 00 00 18 00", append(make([]byte, 15), 1, 0, 0, 0, 0, 0, 0, 0, 0))
	if len(r.lu.reservations.registered) != 0 {
		t.Error("it is registered all the same")
	}
}

// TestChangesOfOtherNodesWaitForWritesUnderWay: also when they are told a second
// time, because the first answer was lost or late.
func TestChangesOfOtherNodesWaitForWritesUnderWay(t *testing.T) {
	r, g := gatedRig(t)
	other := nexusKey{nexusID(5), 2}
	var states [][]byte
	var s reservations
	for _, o := range []order{
		{action: register, by: r.n.key(), next: 1, others: []NexusID{nexusID(5)}},
		{action: register, by: other, next: 2},
		{action: preemptAndAbort, by: other, key: 2, next: 1},
	} {
		next, out := s.apply(o)
		if !out.changed {
			t.Fatalf("%+v: %+v", o, out)
		}
		s = next
		states = append(states, encodeReservations(&s))
	}
	ended := make(chan error, 2)
	tell := func(version int) {
		r.lu.ReservationsChanged(states[version-1], uint64(version), func(err error) { ended <- err })
	}
	w := r.start(r.n, writeCDB(1), make([]byte, 512))
	g.expect(t, "write 512")
	for version := range 2 { // nothing in them forbids the write
		tell(version + 1)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	tell(3)
	tell(3)
	select {
	case <-ended:
		t.Error("a fence was reported while a write was under way behind it")
	default:
	}
	g.release()
	if c := r.wait(w); !c.Aborted {
		t.Errorf("the write: %s", result(c))
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	r.expectAttention(r.n, attentionRegistrations)
	tell(2) // late
	if err := <-ended; err != nil || r.lu.version != 3 {
		t.Errorf("an old state: version %d, %v", r.lu.version, err)
	}
	r.lu.ReservationsChanged([]byte{9}, 9, func(err error) { ended <- err })
	if err := <-ended; !fault.Is(err, fault.Corrupt) {
		t.Errorf("a state that cannot be read: %v", err)
	}
}
