package scsi

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a volume that a test moves between nodes.
type backend struct {
	mu     sync.Mutex
	mem    target.Device
	here   bool // attached
	busy   bool // another node holds it
	groups []PortGroup
	attach int
}

func (b *backend) Geometry() Geometry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Geometry{Size: b.mem.Size(), BlockSize: b.mem.BlockSize(), ReadOnly: b.mem.ReadOnly(), WriteCache: true}
}

func (b *backend) Device() target.Device {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.here {
		return nil
	}
	return b.mem
}

func (b *backend) Attach(context.Context) (target.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy {
		return nil, fault.Newf(fault.Busy, "attach", "v", "node 2 has it")
	}
	b.attach++
	b.here = true
	return b.mem, nil
}

func (b *backend) Groups() []PortGroup {
	b.mu.Lock()
	defer b.mu.Unlock()
	return cloneGroups(b.groups)
}

func (b *backend) SetState(_ context.Context, group uint16, s Access) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if group != 1 || s != ActiveOptimized {
		return fault.Newf(fault.Invalid, "set state", "", "only this node can take it")
	}
	b.busy, b.here = false, true
	b.groups[0].State, b.groups[1].State = ActiveOptimized, Standby
	return nil
}

// rig is a logical unit on a memory device, and one nexus.
type rig struct {
	t   testing.TB
	b   *backend
	mem *targettest.Memory
	lu  *LU
	n   *Nexus
}

var testVolume = ident.VolumeID{0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

const testTarget = "iqn.2026-11.storage.gabion:pool:v"

func newRig(t testing.TB, size int64, block int) *rig {
	return newRigOn(t, targettest.NewMemory(size, block), Config{})
}

func newRigOn(t testing.TB, mem *targettest.Memory, cfg Config) *rig {
	b := &backend{mem: mem, groups: []PortGroup{{1, ActiveOptimized, []uint16{1}}, {2, Standby, []uint16{2}}}}
	cfg.Backend = b
	cfg.Identity = Identity{Volume: testVolume, Target: testTarget, Revision: "1.0", Port: 1}
	r := &rig{t: t, b: b, mem: mem, lu: NewLU(cfg)}
	r.n = r.nexus(0)
	t.Cleanup(r.lu.Close)
	return r
}

func nexusID(i int) NexusID {
	return NexusID{Initiator: "iqn.2026-11.org.example:host" + string(rune('a'+i)), ISID: [6]byte{0x80, 0, 0, 0, 0, byte(i)}}
}

// nexus begins the nexus of initiator i and takes its power on attention.
func (r *rig) nexus(i int) *Nexus {
	n := r.lu.Nexus(nexusID(i))
	r.t.Cleanup(func() { n.Close(nil) })
	if c := r.on(n, "00 00 00 00 00 00", nil); c.Status != CheckCondition || senseCode(c) != attentionPowerOn {
		r.t.Fatalf("the first command of a nexus: %s", result(c))
	}
	return n
}

// bytesOf reads hex with blanks.
func bytesOf(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start begins a command; the channel gives it back when it is done.
func (r *rig) start(n *Nexus, cdb []byte, out []byte, change ...func(*Command)) <-chan *Command {
	ended := make(chan *Command, 1)
	in, _ := r.lu.Transfer(cdb)
	c := &Command{CDB: cdb, Out: out, In: make([]byte, in), Done: func(c *Command) { ended <- c }}
	for _, f := range change {
		f(c)
	}
	n.Execute(c)
	r.lu.Kick()
	return ended
}

func (r *rig) wait(ended <-chan *Command) *Command {
	r.t.Helper()
	select {
	case c := <-ended:
		return c
	case <-time.After(20 * time.Second):
		r.t.Fatal("a command does not end")
		return nil
	}
}

// on runs a command on n and waits.
func (r *rig) on(n *Nexus, cdb string, out []byte) *Command {
	r.t.Helper()
	return r.wait(r.start(n, bytesOf(r.t, cdb), out))
}

// do runs a command that must be good and returns its data-in.
func (r *rig) do(cdb string, out []byte) []byte {
	r.t.Helper()
	c := r.on(r.n, cdb, out)
	if c.Status != Good {
		r.t.Fatalf("%s: %s", cdb, result(c))
	}
	return c.In[:c.N]
}

func senseCode(c *Command) sense {
	if len(c.Sense) < 8 {
		return 0
	}
	if c.Sense[0]&0x7f == 0x72 {
		return sense(c.Sense[1]&0xf)<<16 | sense(binary.BigEndian.Uint16(c.Sense[2:]))
	}
	return sense(c.Sense[2]&0xf)<<16 | sense(binary.BigEndian.Uint16(c.Sense[12:]))
}

// result is how a command ended, for messages and golden tables.
func result(c *Command) string {
	switch {
	case c.Aborted:
		return "aborted"
	case c.Status == Good:
		return "good " + hex.EncodeToString(c.In[:c.N])
	case c.Status == CheckCondition:
		return "check " + hex.EncodeToString(c.Sense)
	case c.Status == ReservationConflict:
		return "conflict"
	case c.Status == TaskSetFull:
		return "full"
	}
	return "status " + hex.EncodeToString([]byte{byte(c.Status)})
}

// fails demands sense.
func (r *rig) fails(n *Nexus, want sense, cdb string, out []byte) {
	r.t.Helper()
	if c := r.on(n, cdb, out); c.Status != CheckCondition || senseCode(c) != want {
		r.t.Errorf("%s: %s, want sense %06x", cdb, result(c), want)
	}
}
