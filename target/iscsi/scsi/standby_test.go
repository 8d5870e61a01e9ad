package scsi

import (
	"testing"

	"github.com/gabion-storage/gabion/target/targettest"
)

// away makes another node the holder.
func (b *backend) away() {
	b.mu.Lock()
	b.busy, b.here = true, false
	b.groups[0].State, b.groups[1].State = Standby, ActiveOptimized
	b.mu.Unlock()
}

func TestFirstAccessAttachesOnce(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	for _, cdb := range []string{"00 00 00 00 00 00", "12 00 00 00 60 00", "25 00 00000000 00 0000 00", "1a 00 3f 00 ff 00"} {
		r.do(cdb, nil)
	}
	if r.b.attach != 0 {
		t.Error("a command that needs no medium attached the volume")
	}
	for range 3 {
		r.do("28 00 00000000 00 0001 00", nil)
	}
	if r.b.attach != 1 {
		t.Errorf("attached %d times", r.b.attach)
	}
}

// TestStandbyPort is SPC-4, 5.11.2.4.4: what a port in standby state answers, and
// that SET TARGET PORT GROUPS makes it active.
func TestStandbyPort(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	other := r.nexus(1)
	r.do("2a 00 00000000 00 0001 00", make([]byte, 512))
	r.b.away()
	r.lu.Changed()
	r.expectAttentionStandby(r.n)
	r.expectAttentionStandby(other)
	for _, cdb := range []string{"00 00 00 00 00 00", "28 00 00000000 00 0001 00", "35 00 00000000 00 0000 00", "16 00 00 00 00 00"} {
		r.fails(r.n, notReadyStandby, cdb, nil)
	}
	r.fails(r.n, notReadyStandby, "2a 00 00000000 00 0001 00", make([]byte, 512))
	for _, cdb := range []string{
		"12 00 00 00 60 00", "a0 00 00 00 00 00 00 00 00 10 00 00", "1a 00 3f 00 ff 00", "5e 00 00 00 00 00 00 01 00 00",
		"9e 10 0000000000000000 00000020 00 00", "a3 0a 00000000 00000100 00 00",
	} {
		r.do(cdb, nil)
	}
	if got := r.do("03 00 00 00 12 00", nil); got[2] != 2 || got[12] != 4 || got[13] != 0x0b {
		t.Errorf("request sense: %x", got)
	}
	r.do("a4 0a 00000000 00000008 00 00", []byte{0, 0, 0, 0, 0, 0, 0, 1})
	r.expectAttention(r.n)
	r.expectAttention(other, attentionAccess)
	r.do("2a 00 00000000 00 0001 00", make([]byte, 512))
}

func (r *rig) expectAttentionStandby(n *Nexus) {
	r.t.Helper()
	r.fails(n, attentionAccess, "00 00 00 00 00 00", nil)
	r.fails(n, notReadyStandby, "00 00 00 00 00 00", nil)
}

func TestGrowthIsToldOnce(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	b := r.nexus(1)
	r.do("28 00 00000000 00 0001 00", nil)
	r.mem.Grow(2 << 20)
	// Noticed by the next command, which is carried out.
	r.do("28 00 00000800 00 0001 00", nil)
	r.expectAttention(r.n, attentionCapacity)
	r.expectAttention(b, attentionCapacity)
	if got := r.do("25 00 00000000 00 0000 00", nil); got[2] != 0x0f || got[3] != 0xff {
		t.Errorf("capacity %x", got)
	}
	r.mem.Grow(3 << 20)
	r.lu.Changed()
	r.lu.Changed()
	r.expectAttention(r.n, attentionCapacity)
}

func TestAttentionsAreKeptApart(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	for _, s := range []sense{attentionCapacity, attentionAccess, attentionReset, attentionMode} {
		r.n.notify(s)
	}
	r.do("12 00 00 00 60 00", nil)                              // does not take one
	r.do("a0 00 00 00 00 00 00 00 00 10 00 00", nil)            // neither
	if got := r.do("03 00 00 00 12 00", nil); got[12] != 0x29 { // takes one, as data
		t.Errorf("request sense: %x", got)
	}
	r.expectAttention(r.n, attentionMode, attentionAccess, attentionCapacity)
}

func TestReadOnlyVolume(t *testing.T) {
	r := newRigOn(t, targettest.NewReadOnly(1<<20, 512), Config{})
	block := make([]byte, 512)
	for _, cdb := range []string{"2a 00 00000000 00 0001 00", "41 00 00000000 00 0001 00", "8b 00 0000000000000000 00000001 00 00", "2e 00 00000000 00 0001 00"} {
		r.fails(r.n, protectReadOnly, cdb, block)
	}
	r.fails(r.n, protectReadOnly, "42 00 00 00 00 00 00 00 08 00", make([]byte, 8))
	r.do("28 00 00000000 00 0001 00", nil)
	if got := r.do("1a 00 3f 00 ff 00", nil); got[2]&0x80 == 0 {
		t.Error("MODE SENSE does not say that it is write protected")
	}
}

// TestOtherLUNs: LUN 0 is the only one.
func TestOtherLUNs(t *testing.T) {
	r := newRig(t, 1<<20, 512)
	lun := func(c *Command) { c.LUN = 1 << 48 }
	if c := r.wait(r.start(r.n, bytesOf(t, "12 00 00 00 60 00"), nil, lun)); c.Status != Good || c.In[0] != 0x7f {
		t.Errorf("inquiry: %s", result(c))
	}
	if c := r.wait(r.start(r.n, bytesOf(t, "a0 00 00 00 00 00 00 00 00 10 00 00"), nil, lun)); c.N != 16 {
		t.Errorf("report luns: %s", result(c))
	}
	if c := r.wait(r.start(r.n, bytesOf(t, "03 00 00 00 12 00"), nil, lun)); c.Status != Good || c.In[12] != 0x25 {
		t.Errorf("request sense: %s", result(c))
	}
	for _, cdb := range []string{"00 00 00 00 00 00", "28 00 00000000 00 0001 00", "12 01 00 00 60 00", "ff"} {
		if c := r.wait(r.start(r.n, bytesOf(t, cdb), nil, lun)); senseCode(c) != illegalLUN {
			t.Errorf("%s: %s", cdb, result(c))
		}
	}
}
