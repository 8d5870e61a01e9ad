package conform

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// initiator is a session with one node, for the volume v of a pool.
type initiator struct {
	*iscsiclient.Client
	t *testing.T
}

func login(t *testing.T, n *cluster.Node, name string) *initiator {
	t.Helper()
	cfg := iscsiclient.Config{
		Initiator: "iqn.2026-11.test:" + name, Target: "iqn.2026-11.storage.gabion:gabion:v", Timeout: 30 * time.Second,
	}
	c, err := iscsiclient.Login(n.Info.ISCSI, cfg)
	// A node is given the number of its port in the first moments of its life, and
	// hears of a new volume a moment after the one that made it.
	soon := func() bool {
		return iscsiclient.Refused(err, pdu.LoginServiceUnavailable) || iscsiclient.Refused(err, pdu.LoginNotFound)
	}
	for end := time.Now().Add(cluster.StartTimeout); soon() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		c, err = iscsiclient.Login(n.Info.ISCSI, cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &initiator{c, t}
}

// run executes a command and tells how it ended: "good", "conflict", or the
// sense as "02/040b". Unit attentions are passed over, and returned before it.
func (i *initiator) run(cdb, out []byte, in int) (data []byte, result string) {
	i.t.Helper()
	for {
		c := &iscsiclient.Command{CDB: append(cdb, make([]byte, 16-len(cdb))...), Out: out, In: make([]byte, in)}
		if err := i.Do(c); err != nil {
			i.t.Fatal(err)
		}
		switch key, code := c.SenseKey(); {
		case c.Status == 0x00:
			return c.In[:c.Got], result + "good"
		case c.Status == 0x18:
			return nil, result + "conflict"
		case key == 6:
			result += fmt.Sprintf("%02x/%04x ", key, code)
		default:
			return nil, result + fmt.Sprintf("%02x/%04x", key, code)
		}
	}
}

// want demands how a command ends; only its last word, unless want has several.
func (i *initiator) want(want string, cdb, out []byte, in int) []byte {
	i.t.Helper()
	data, got := i.run(cdb, out, in)
	last := got[bytes.LastIndexByte([]byte(got), ' ')+1:]
	if got != want && last != want {
		i.t.Fatalf("% x: %s, want %s", cdb, got, want)
	}
	return data
}

func (i *initiator) persist(want string, action, kind byte, key, next uint64) {
	i.t.Helper()
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], next)
	i.want(want, []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0}, p, 0)
}

// activate is SET TARGET PORT GROUPS for the port of this session.
func (i *initiator) activate() {
	i.t.Helper()
	// Its designator in the page of device identification: type 5, after type 4.
	page := i.want("good", []byte{0x12, 1, 0x83, 1, 0, 0}, nil, 256)
	for at := 4; at+4 <= len(page); at += 4 + int(page[at+3]) {
		if page[at+1]&0xf == 5 {
			i.want("good", []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, append([]byte{0, 0, 0, 0, 0, 0}, page[at+6:at+8]...), 0)
			return
		}
	}
	i.t.Fatal("the port does not say its group")
}

var (
	ready     = []byte{0, 0, 0, 0, 0, 0}
	readKeys  = []byte{0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0}
	lbaStatus = []byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 24, 0, 0}
)

// TestReservationsAndPortsHoldAcrossNodes is what a cluster of databases relies on:
// two initiators, each with a path of its own to one volume of a pool.
func TestReservationsAndPortsHoldAcrossNodes(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M")
	a, b := login(t, c.Nodes[0], "a"), login(t, c.Nodes[1], "b")
	block := func(x byte) []byte { return bytes.Repeat([]byte{x}, 4096) }
	write, read := iscsiclient.Write10(8, 8, true), iscsiclient.Read10(8, 8)

	// The first to write has the volume; the other port is in standby, and answers
	// what needs no medium.
	a.want("good", write, block(1), 0)
	b.want("02/040b", read, nil, 4096)
	b.want("02/040b", ready, nil, 0)
	b.want("good", []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, nil, 32)

	// What is unmapped is told to be.
	if s := a.want("good", lbaStatus, nil, 24); s[20] != 0 {
		t.Errorf("a block that was written is not mapped: %x", s)
	}
	a.want("good", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0}, 0)
	if s := a.want("good", lbaStatus, nil, 24); s[20] != 1 {
		t.Errorf("a block that was unmapped is: %x", s)
	}

	// A reservation is the same from every node, and its loss reaches the other.
	a.persist("good", 0, 0, 0, 0xa)
	a.persist("good", 1, 3, 0xa, 0)
	if keys := b.want("good", readKeys, nil, 256); len(keys) != 16 || keys[15] != 0xa {
		t.Errorf("through the other node the keys are %x", keys)
	}
	b.persist("good", 0, 0, 0, 0xb)
	b.persist("good", 4, 3, 0xb, 0xa)
	a.want("conflict", write, block(2), 0) // which goes before the news
	if _, got := a.run(ready, nil, 0); !strings.Contains(got, "06/2a05 ") {
		t.Errorf("the preempted is not told: %s", got)
	}
	b.activate()
	b.want("good", write, block(3), 0)
	a.want("02/040b", ready, nil, 0)

	// The holder dies. Its reservation outlives it, and forbids a takeover too.
	if err := c.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	a.want("conflict", write, block(4), 0)
	a.want("conflict", []byte{0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, 0)
	a.persist("good", 6, 0, 0, 0xa)
	a.persist("good", 5, 3, 0xa, 0xb)
	a.activate()
	if got := a.want("good", read, nil, 4096); !bytes.Equal(got, block(3)) {
		t.Errorf("after the takeover the block begins with %x", got[:8])
	}
	a.want("good", write, block(5), 0)
}
