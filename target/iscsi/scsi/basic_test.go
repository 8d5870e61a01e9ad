package scsi

import (
	"bytes"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestEveryKindOfFaultHasSense(t *testing.T) {
	for _, k := range fault.Kinds() {
		if faultSense[k] == 0 {
			t.Errorf("%s has no row", k)
		}
	}
	if len(faultSense) != len(fault.Kinds()) {
		t.Error("there are rows for kinds that do not exist")
	}
}

func TestReadsWhatWasWritten(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	p := bytes.Repeat([]byte("gabion! "), 128) // two blocks
	for _, cdb := range []struct{ write, read string }{
		{"0a 00 00 05 02 00", "08 00 00 05 02 00"},
		{"2a 00 00000009 00 0002 00", "28 00 00000009 00 0002 00"},
		{"aa 08 0000000d 00000002 00 00", "a8 08 0000000d 00000002 00 00"},
		{"8a 18 0000000000000011 00000002 00 00", "88 18 0000000000000011 00000002 00 00"},
	} {
		r.do(cdb.write, p)
		if got := r.do(cdb.read, nil); !bytes.Equal(got, p) {
			t.Errorf("%s gives %x", cdb.read, got)
		}
	}
}

func TestRefusesWhatIsOutside(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	r.fails(r.n, illegalRange, "28 00 00000800 00 0001 00", nil)
	r.fails(r.n, illegalRange, "28 00 00000800 00 0000 00", nil)
	r.fails(r.n, illegalRange, "28 00 000007ff 00 0002 00", nil)
	r.fails(r.n, illegalField, "28 20 00000000 00 0001 00", nil)
	r.fails(r.n, illegalInformationUnit, "2a 00 00000000 00 0002 00", make([]byte, 513))
	r.fails(r.n, illegalInformationUnit, "8b 00 0000000000000000 00000002 00 00", make([]byte, 512))
	r.fails(r.n, illegalOpcode, "83 11 00000000 00000000 00000000 00 00", nil)
}
