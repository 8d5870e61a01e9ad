package scsi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/target/targettest"
)

// model is a flat array with what SPC-4 and SBC-3 say of reservations and of the
// commands that the generator makes, written from the standards' tables and not
// from the code: one command at a time, several nexuses.
type model struct {
	block int
	data  []byte
	keys  map[int]uint64 // nexus -> registered key
	kind  byte
	hold  int
	gen   uint32
}

// allowed is SPC-4, table 66, for a read or a write of nexus i.
func (m *model) allowed(i int, writes bool) bool {
	if m.kind == 0 || i == m.hold && m.kind < 7 {
		return true
	}
	_, registered := m.keys[i]
	if registered && m.kind >= 5 {
		return true
	}
	exclusive := m.kind == 3 || m.kind == 6 || m.kind == 8
	return !writes && !exclusive
}

// persist carries out a PERSISTENT RESERVE OUT and tells its status.
func (m *model) persist(i int, action, kind byte, key, next uint64) string {
	mine, registered := m.keys[i]
	if action == 6 || action == 0 && !registered && key == 0 {
		return m.register(i, next)
	}
	if !registered || mine != key {
		return "conflict"
	}
	holds := m.kind != 0 && (m.kind >= 7 || m.hold == i)
	switch action {
	case 0:
		return m.register(i, next)
	case 1:
		if m.kind == 0 {
			m.kind, m.hold = kind, i
		} else if !holds || m.kind != kind {
			return "conflict"
		}
	case 2:
		if holds && m.kind != kind {
			return "check"
		}
		if holds {
			m.kind = 0
		}
	case 3:
		clear(m.keys)
		m.kind = 0
		m.gen++
	case 4, 5:
		return m.preempt(i, kind, next)
	}
	return "good"
}

func (m *model) register(i int, next uint64) string {
	_, registered := m.keys[i]
	if next == 0 && !registered {
		return "good"
	}
	m.gen++
	if next != 0 {
		m.keys[i] = next
		return "good"
	}
	delete(m.keys, i)
	if m.kind != 0 && m.kind < 7 && m.hold == i || len(m.keys) == 0 {
		m.kind = 0
	}
	return "good"
}

func (m *model) preempt(i int, kind byte, next uint64) string {
	all := m.kind >= 7
	if next == 0 && !all {
		return "check"
	}
	takes := all && next == 0 || m.kind != 0 && !all && m.keys[m.hold] == next
	found := false
	for j, k := range m.keys {
		if (k == next || all && next == 0) && !(takes && j == i) {
			delete(m.keys, j)
			found = true
		}
	}
	switch {
	case takes:
		m.kind, m.hold = kind, i
	case !found:
		return "conflict"
	case len(m.keys) == 0:
		m.kind = 0
	}
	m.gen++
	return "good"
}

// generator makes requests and checks them against the model.
type generator struct {
	*rig
	*rand.Rand
	m       *model
	nexuses []*Nexus
	log     []string
}

func status(c *Command) string {
	return map[Status]string{Good: "good", CheckCondition: "check", ReservationConflict: "conflict"}[c.Status]
}

// run executes on nexus i, past any unit attention, and notes it.
func (g *generator) run(i int, cdb, out []byte) *Command {
	for {
		c := g.wait(g.start(g.nexuses[i], cdb, out))
		if c.Status == CheckCondition && senseCode(c).key() == 6 {
			continue
		}
		g.log = append(g.log, fmt.Sprintf("%d: %x: %s", i, cdb, status(c)))
		return c
	}
}

func (g *generator) check(c *Command, want string) bool {
	if status(c) != want {
		g.t.Fatalf("%s, want %s; the end of the story:\n%s", result(c), want, tail(g.log))
	}
	return want == "good"
}

func tail(log []string) string {
	var b bytes.Buffer
	for _, l := range log[max(0, len(log)-20):] {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

// transfer is a random READ, WRITE or the like.
func (g *generator) transfer() {
	m, i := g.m, g.IntN(len(g.nexuses))
	total := len(m.data) / m.block
	blocks := 1 + g.IntN(4)
	lba := g.IntN(total + 2)
	code := []byte{0x28, 0x88, 0xa8, 0x2a, 0x8a, 0xaa, 0x2e, 0x8e, 0xae, 0x2f, 0x8f, 0xaf, 0x41, 0x93, 0x42, 0x89, 0x8b}[g.IntN(17)]
	off, n := lba*m.block, blocks*m.block
	out := bytes.Repeat([]byte{byte(g.IntN(3))}, n)
	writes, want := true, "good"
	if lba+blocks > total {
		want = "check"
	}
	current := func() []byte { return m.data[min(off, len(m.data)):min(off+n, len(m.data))] }
	var after []byte // what the medium has then
	flags := byte(0)
	switch code {
	case 0x28, 0x88, 0xa8:
		writes, out = false, nil
	case 0x2a, 0x8a, 0xaa, 0x2e, 0x8e, 0xae:
		after = out
		if code&0xf == 0xe {
			flags = 2
		}
	case 0x2f, 0x8f, 0xaf:
		writes, flags = false, 2
		if want == "good" && !bytes.Equal(out, current()) {
			want = "check"
		}
	case 0x41, 0x93:
		after, out = out, out[:m.block]
	case 0x42:
		after = make([]byte, n)
		out = make([]byte, 24)
		out[1], out[3] = 22, 16
		binary.BigEndian.PutUint64(out[8:], uint64(lba))
		binary.BigEndian.PutUint32(out[16:], uint32(blocks))
	case 0x89:
		after = bytes.Repeat([]byte{byte(g.IntN(3))}, n)
		if want == "good" && !bytes.Equal(out, current()) {
			want = "check"
		}
		out = append(slices.Clone(out), after...)
	case 0x8b:
		if want == "good" {
			after = slices.Clone(current())
			for j := range after {
				after[j] |= out[j]
			}
		}
	}
	if !m.allowed(i, writes) {
		want = "conflict"
	}
	c := g.run(i, transferCDB(code, flags, lba, blocks), out)
	if !g.check(c, want) {
		return
	}
	if after != nil {
		copy(m.data[off:], after)
	}
	if code == 0x28 || code == 0x88 || code == 0xa8 {
		if !bytes.Equal(c.In[:c.N], current()) {
			g.t.Fatalf("it reads what was not written:\n%s", tail(g.log))
		}
	}
}

func transferCDB(code, flags byte, lba, blocks int) []byte {
	switch {
	case code == 0x42:
		return []byte{code, 0, 0, 0, 0, 0, 0, 0, 24, 0}
	case code == 0x89:
		b := append([]byte{code, flags}, binary.BigEndian.AppendUint64(nil, uint64(lba))...)
		return append(b, 0, 0, 0, byte(blocks), 0, 0)
	case code>>5 == 5:
		b := binary.BigEndian.AppendUint32([]byte{code, flags}, uint32(lba))
		return append(binary.BigEndian.AppendUint32(b, uint32(blocks)), 0, 0)
	case code>>5 == 4:
		b := binary.BigEndian.AppendUint64([]byte{code, flags}, uint64(lba))
		return append(binary.BigEndian.AppendUint32(b, uint32(blocks)), 0, 0)
	}
	b := binary.BigEndian.AppendUint32([]byte{code, flags}, uint32(lba))
	return append(b, 0, 0, byte(blocks), 0)
}

// reservation is a random PERSISTENT RESERVE OUT, and looks at the state behind it.
func (g *generator) reservation() {
	i := g.IntN(len(g.nexuses))
	action := []byte{0, 0, 1, 1, 2, 3, 4, 5, 6}[g.IntN(9)]
	kind := []byte{1, 3, 5, 6, 7, 8}[g.IntN(6)]
	key, next := uint64(g.IntN(4)), uint64(g.IntN(4))
	if g.IntN(2) == 0 {
		key = g.m.keys[i]
	}
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], next)
	g.check(g.run(i, []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0}, p), g.m.persist(i, action, kind, key, next))
	keys := g.run(i, []byte{0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0}, nil)
	if gen, n := binary.BigEndian.Uint32(keys.In), keys.N; gen != g.m.gen || n != 8+8*len(g.m.keys) {
		g.t.Fatalf("%d keys in generation %d, want %d in %d:\n%s", n/8-1, gen, len(g.m.keys), g.m.gen, tail(g.log))
	}
	held := g.run(i, []byte{0x5e, 1, 0, 0, 0, 0, 0, 1, 0, 0}, nil)
	if held.N == 8 != (g.m.kind == 0) || held.N == 24 && held.In[21] != g.m.kind {
		g.t.Fatalf("reservation %x, want type %d:\n%s", held.In[:held.N], g.m.kind, tail(g.log))
	}
}

// TestCommandsMatchTheModel runs random commands of four nexuses, of which two come
// through another node with the same store.
func TestCommandsMatchTheModel(t *testing.T) {
	for seed := range uint64(8) {
		block := []int{512, 4096}[seed%2]
		mem := targettest.NewMemory(int64(32*block), block)
		store := &sharedStore{}
		r := newRigOn(t, mem, Config{Reservations: store})
		other := newRigOn(t, mem, Config{Reservations: store})
		other.lu.cfg.Identity.Port = 2
		store.peers = []*LU{r.lu, other.lu}
		r.do("34 00 00000000 00 0000 00", nil)
		other.do("34 00 00000000 00 0000 00", nil)
		g := &generator{rig: r, Rand: rand.New(rand.NewPCG(seed, 1)), nexuses: []*Nexus{r.n, r.nexus(1), other.n, other.nexus(1)},
			m: &model{block: block, data: make([]byte, mem.Size()), keys: map[int]uint64{}}}
		for range 1500 {
			if g.IntN(4) == 0 {
				g.reservation()
			} else {
				g.transfer()
			}
		}
	}
}

// TestDeviceIsUsedAsItsContractSays runs the random operations of targettest through
// commands, on a device with a delay that forgets what was not flushed.
func TestDeviceIsUsedAsItsContractSays(t *testing.T) {
	for seed := range uint64(4) {
		mem := targettest.NewMemory(256<<10, 4096)
		mem.Volatile = true
		if seed%2 == 1 {
			mem.Delay = 100_000 // ns
		}
		r := newRigOn(t, mem, Config{})
		r.do("34 00 00000000 00 0000 00", nil)
		m := targettest.NewModel(mem.Size(), 4096)
		open := func() (d commandDevice, err error) { return commandDevice{r, r.n}, nil }
		x := targettest.Exercise{Seed: seed, Steps: 600, Clients: 3, Model: m}
		x.Open = exerciseOpen(open)
		x.Run(t)
		rnd := rand.New(rand.NewPCG(seed, 7))
		mem.Crash(func(int64) bool { return rnd.IntN(2) == 0 })
		p := make([]byte, mem.Size())
		if err := mem.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		if err := m.Recovered(p); err != nil {
			t.Fatal("seed ", seed, ": ", err)
		}
	}
}
