package scsi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// seeds gives a fuzz target every command of the scripts.
func seeds(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.txt")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if _, rest, ok := strings.Cut(line, "> "); ok {
				cdb, data, _ := strings.Cut(strings.SplitN(rest, "#", 2)[0], "|")
				data, _, _ = strings.Cut(data, "#")
				f.Add(bytesOf(f, cdb), dataOf(f, data), uint64(0), false)
			}
		}
	}
}

// FuzzExecute passes any bytes for a CDB, with any data-out, cut as a transport
// would cut it: every command ends, once, within its room, with a status that
// agrees with its sense.
func FuzzExecute(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, cdb, out []byte, lun uint64, standby bool) {
		r := newRig(t, 1<<20, 512)
		if standby {
			r.b.away()
			r.lu.Changed()
		}
		in, want := r.lu.Transfer(cdb)
		if in < 0 || want < 0 || in > TransferMax || want > TransferMax || in > 0 && want > 0 {
			t.Fatalf("Transfer says %d and %d", in, want)
		}
		keep := bytes.Clone(out)
		room := make([]byte, in+16)
		ended := make(chan *Command, 2)
		c := &Command{LUN: lun, CDB: cdb, Out: out[:min(len(out), want)], Expected: len(out), In: room[:in:in], Done: func(c *Command) { ended <- c }}
		r.n.Execute(c)
		r.lu.Kick()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("it does not end")
		}
		switch {
		case c.N < 0 || c.N > in:
			t.Errorf("%d bytes of data-in in a room of %d", c.N, in)
		case c.Status == CheckCondition != (len(c.Sense) > 0) || c.Status != Good && c.N != 0:
			t.Errorf("status %02x with %d bytes of sense and %d of data", c.Status, len(c.Sense), c.N)
		case len(c.Sense) > 0 && int(c.Sense[7])+8 != len(c.Sense):
			t.Errorf("sense %x does not know its length", c.Sense)
		case !bytes.Equal(room[in:], make([]byte, 16)):
			t.Error("it wrote behind its room")
		case !bytes.Equal(out, keep):
			t.Error("it changed data-out")
		}
		if len(r.lu.unattached)+r.lu.tasks.count != 0 {
			t.Error("it is still under way")
		}
	})
}

// FuzzTransfer: the lengths that a transport takes memory for are bounded for any
// CDB.
func FuzzTransfer(f *testing.F) {
	f.Add([]byte{0x28, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, cdb []byte) {
		r := newRig(t, 1<<20, 4096)
		in, out := r.lu.Transfer(cdb)
		if in < 0 || out < 0 || in > TransferMax || out > TransferMax {
			t.Errorf("%d and %d", in, out)
		}
		Name(cdb)
	})
}

// FuzzReservations: what decodes, encodes to the same bytes, and can be worked on.
func FuzzReservations(f *testing.F) {
	var s reservations
	for _, o := range []order{
		{action: register, by: nexusKey{nexusID(1), 7}, next: 5, aptpl: true},
		{action: register, by: nexusKey{nexusID(2), 7}, next: 6},
		{action: reserveAction, by: nexusKey{nexusID(1), 7}, key: 5, kind: exclusiveAccess},
		{action: preemptAndAbort, by: nexusKey{nexusID(2), 7}, key: 6, next: 5, kind: writeExclusiveAllRegistrants},
	} {
		s, _ = s.apply(o)
		f.Add(encodeReservations(&s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeReservations(b)
		if err != nil {
			return
		}
		if got := encodeReservations(&s); len(b) > 0 && !bytes.Equal(got, b) {
			t.Errorf("%x becomes %x", b, got)
		}
		for action := range byte(8) {
			for _, r := range s.registered {
				n, out := s.apply(order{action: action, by: r.nexusKey, key: r.key, next: 1, kind: 1, to: nexusKey{nexusID(1), 1}, ports: []uint16{1}})
				if out.changed {
					if _, err := decodeReservations(encodeReservations(&n)); err != nil {
						t.Errorf("action %d makes a state that cannot be read: %v", action, err)
					}
				}
			}
		}
	})
}

// FuzzTransportID: what decodes, encodes to something that decodes to the same.
func FuzzTransportID(f *testing.F) {
	f.Add(appendTransportID(nil, nexusID(1)))
	f.Add([]byte("\x45\x00\x00\x14iqn.a,i,0x0102030405"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, n, ok := decodeTransportID(b)
		if !ok {
			return
		}
		if n > len(b) || len(id.Initiator) > InitiatorNameMax {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		again, _, ok := decodeTransportID(appendTransportID(nil, id))
		if !ok || again != id {
			t.Errorf("%+v becomes %+v", id, again)
		}
	})
}

// TestSenseOfBothFormatsAgrees reads back what both encoders wrote.
func TestSenseOfBothFormatsAgrees(t *testing.T) {
	for _, d := range []detail{
		{}, {information: 7, hasInformation: true}, {information: 1 << 40, hasInformation: true},
		{hasField: true, field: 0x1234, bit: 3}, {hasField: true, inData: true, field: 9, bit: -1},
		{information: 5, hasInformation: true, hasField: true, field: 2, bit: 7},
	} {
		p, q := make([]byte, SenseMax), make([]byte, SenseMax)
		p, q = p[:encodeSense(p, illegalField, d, false)], q[:encodeSense(q, illegalField, d, true)]
		fixed := fmt.Sprintf("%x %x %x", p[2], p[12:14], p[15:18])
		field := make([]byte, 3)
		for at := 8; at < len(q); at += 2 + int(q[at+1]) {
			switch q[at] {
			case 0:
				if got := binary.BigEndian.Uint64(q[at+4:]); got != d.information {
					t.Errorf("information %d, want %d", got, d.information)
				}
			case 2:
				field = q[at+4 : at+7]
			}
		}
		if got := fmt.Sprintf("%x %x %x", q[1], q[2:4], field); got != fixed {
			t.Errorf("%+v: %s and %s", d, fixed, got)
		}
		if valid := p[0]&0x80 != 0; valid != (d.hasInformation && d.information>>32 == 0) {
			t.Errorf("%+v: %x", d, p)
		}
	}
}
