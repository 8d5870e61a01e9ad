package failover

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// path is one session of an initiator with a volume, through one node.
type path struct {
	t *testing.T
	c *iscsiclient.Client
}

func login(t *testing.T, n *cluster.Node, initiator string) *path {
	t.Helper()
	var c *iscsiclient.Client
	eventually(t, "the volume is not known there", func() (err error) {
		c, err = iscsiclient.Login(n.Info.ISCSI, iscsiclient.Config{
			Initiator: "iqn.2026-11.test:" + initiator, Target: "iqn.2026-11.storage.gabion:gabion:v", Timeout: 30 * time.Second,
		})
		return err
	})
	t.Cleanup(c.Close)
	return &path{t, c}
}

// do carries out a command, again after each unit attention, as an initiator does.
func (p *path) do(cdb, out []byte, in int) *iscsiclient.Command {
	p.t.Helper()
	for range 20 {
		cmd := &iscsiclient.Command{CDB: cdb, Out: out, In: make([]byte, in)}
		if err := p.c.Do(cmd); err != nil {
			p.t.Fatal(err)
		}
		if key, _ := cmd.SenseKey(); key != 6 {
			return cmd
		}
	}
	p.t.Fatal("unit attentions without end")
	return nil
}

func (p *path) good(what string, cdb, out []byte, in int) []byte {
	p.t.Helper()
	cmd := p.do(cdb, out, in)
	if cmd.Status != 0 {
		p.t.Fatalf("%s: %v", what, cmd)
	}
	return cmd.In[:cmd.Got]
}

// standby demands NOT READY, TARGET PORT IN STANDBY STATE.
func (p *path) standby(what string, cdb, out []byte, in int) {
	p.t.Helper()
	cmd := p.do(cdb, out, in)
	if key, asc := cmd.SenseKey(); cmd.Status != 2 || key != 2 || asc != 0x040b {
		p.t.Errorf("%s: %v", what, cmd)
	}
}

// states are those of the port groups, by group.
func (p *path) states() map[uint16]byte {
	p.t.Helper()
	b := p.good("report target port groups", []byte{0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, nil, 256)
	out := map[uint16]byte{}
	for b = b[4:]; len(b) >= 8; b = b[8+4*int(b[7]):] {
		out[binary.BigEndian.Uint16(b[2:])] = b[0] & 15
	}
	return out
}

// own is the port group that the session is with.
func (p *path) own() uint16 {
	b := p.good("device identification", []byte{0x12, 1, 0x83, 1, 0, 0}, nil, 256)
	for b = b[4:]; len(b) >= 4; b = b[4+int(b[3]):] {
		if b[1]&15 == 5 { // target port group
			return binary.BigEndian.Uint16(b[6:])
		}
	}
	p.t.Fatal("no target port group")
	return 0
}

// activate is SET TARGET PORT GROUPS: the own one active/optimized.
func (p *path) activate() {
	p.t.Helper()
	list := make([]byte, 8)
	binary.BigEndian.PutUint16(list[6:], p.own())
	p.good("set target port groups", []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, list, 0)
}

func (p *path) reserve(action byte, key, newKey uint64) *iscsiclient.Command {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], newKey)
	return p.do([]byte{0x5f, action, 1, 0, 0, 0, 0, 0, 24, 0}, list, 0)
}

// TestISCSIPaths: the holder is active, the others stand by; asked for, or when
// the holder dies, another one takes over, with everything that was answered and with
// the reservations.
func TestISCSIPaths(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	one, two := login(t, c.Nodes[0], "host"), login(t, c.Nodes[1], "host")
	data := func(i byte) []byte { return bytes.Repeat([]byte{i}, 4096) }
	write := iscsiclient.Write10(8, 8, false)
	read := iscsiclient.Read10(8, 8)
	if a, b := one.own(), two.own(); a == b {
		t.Fatalf("both nodes are port %d", a)
	}
	one.good("the first write", write, data(1), 0)
	two.standby("a write through the other node", write, data(9), 0)
	eventually(t, "the port groups are not as they should", func() error {
		for name, p := range map[string]*path{"one": one, "two": two} {
			if s := p.states(); len(s) != 3 || s[one.own()] != 0 || s[two.own()] != 2 {
				return fmt.Errorf("%s says %v", name, s)
			}
		}
		return nil
	})

	two.activate()
	if got := two.good("a read after the takeover", read, nil, 4096); !bytes.Equal(got, data(1)) {
		t.Error("the takeover lost a write")
	}
	two.good("a write after the takeover", write, data(2), 0)
	one.standby("a write of the old holder's", write, data(9), 0)

	// Reservations hold whichever port they came through, and whoever holds the volume.
	if cmd := one.reserve(0, 0, 0x11); cmd.Status != 0 {
		t.Fatal("register through the standby port: ", cmd)
	}
	if cmd := one.reserve(1, 0x11, 0); cmd.Status != 0 {
		t.Fatal("reserve through the standby port: ", cmd)
	}
	other := login(t, c.Nodes[1], "stranger")
	if cmd := other.do(write, data(9), 0); cmd.Status != 0x18 {
		t.Errorf("a write against the reservation: %v", cmd)
	}

	if err := c.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var got []byte
	eventually(t, "no takeover from a dead holder", func() error {
		cmd := one.do(read, nil, 4096)
		if cmd.Status != 0 {
			return fmt.Errorf("%v", cmd)
		}
		got = cmd.In
		return nil
	})
	t.Logf("taken over from a dead holder in %v", time.Since(began).Round(time.Millisecond))
	if !bytes.Equal(got, data(2)) {
		t.Error("what was answered is lost")
	}
	stranger := login(t, c.Nodes[0], "stranger")
	if cmd := stranger.do(write, data(9), 0); cmd.Status != 0x18 {
		t.Errorf("a write against the reservation, after the takeover: %v", cmd)
	}
	if cmd := one.do(write, data(3), 0); cmd.Status != 0x18 && cmd.Status != 0 {
		t.Errorf("a write of the registrant: %v", cmd)
	}
	if got, err := one.c.Manage(pdu.LUNReset, 0, 0); err != nil || got != pdu.FunctionComplete {
		t.Errorf("reset: %d, %v", got, err)
	}
	if err := one.c.Logout(); err != nil {
		t.Error(err)
	}
}

// eventually repeats f until it has nothing to say against.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
