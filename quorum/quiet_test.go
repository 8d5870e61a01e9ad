package quorum

import (
	"testing"
	"testing/synctest"
	"time"
)

// sent counts the messages of all nodes.
func (p *testPool) sent() (n uint64) {
	for _, node := range p.nodes {
		n += node.link.Stats().Sent
	}
	return n
}

// allDurable waits until every member has slot durable.
func (h *testHolder) allDurable(t *testing.T, slot uint64) {
	t.Helper()
	eventually(t, "durability everywhere", func() bool {
		for _, s := range h.Status() {
			if s.Durable < slot {
				return false
			}
		}
		return true
	})
}

func TestIdleGroupSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, 3)
		p.create(3)
		h := p.nodes[0].open()
		slot := h.put(t, "a")
		h.flush(t, slot)
		ckpt, err := h.Checkpoint(slot, nil)
		if err != nil {
			t.Fatal(err)
		}
		h.allDurable(t, ckpt)
		h.put(t, "b") // what nobody flushes is synced after a while
		h.allDurable(t, ckpt+1)
		time.Sleep(time.Minute)
		before := p.sent()
		time.Sleep(time.Hour)
		if after := p.sent(); after != before {
			t.Fatalf("%d messages in an idle hour", after-before)
		}
	})
}

// With eager sync a write and its flush cost one round trip: one message to each
// member, and the Sync finds its work done or under way.
func TestEagerSyncIsOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, 3)
		p.create(3)
		h := p.nodes[0].open()
		h.allDurable(t, h.Next()-1)
		synctest.Wait()
		before := p.nodes[0].link.Stats().Sent
		h.SetEagerSync(true)
		for range 10 {
			slot, err := h.Propose(EntryData, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			h.Kick()
			h.Sync(slot)
			h.Kick()
			h.wait(t, "durable", func() bool { return h.durable >= slot })
			synctest.Wait()
		}
		h.SetEagerSync(false)
		if n := p.nodes[0].link.Stats().Sent - before; n != 20 {
			t.Errorf("%d messages for ten eager writes to two members", n)
		}
		// Propose, Sync, Kick is one message too.
		before = p.nodes[0].link.Stats().Sent
		slot, err := h.Propose(EntryData, []byte("fua"))
		if err != nil {
			t.Fatal(err)
		}
		h.flush(t, slot)
		synctest.Wait()
		if n := p.nodes[0].link.Stats().Sent - before; n != 2 {
			t.Errorf("%d messages for a FUA write to two members", n)
		}
	})
}

// A member whose answers get lost holds up nobody, and is taken on again.
func TestSilentMemberIsProbedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, 3)
		p.create(3)
		h := p.nodes[0].open()
		h.allDurable(t, h.Next()-1)
		p.net.Cut(p.nodes[2].id, p.nodes[0].id)
		slot := h.put(t, "a", "b")
		h.flush(t, slot)
		eventually(t, "silence", func() bool { return h.Status()[2].Silent > SilentMax })
		time.Sleep(time.Minute)
		h.flush(t, h.put(t, "c"))
		p.net.Heal(p.nodes[2].id, p.nodes[0].id)
		h.allDurable(t, slot+1)
		if s := h.Status()[2]; s.State != "ok" || s.Silent != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

// A member that cannot keep up is given no more than its window, and the others
// go on; later it gets the rest.
func TestSlowMemberGetsItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(t, 3)
		p.create(3)
		h := p.nodes[0].open()
		h.allDurable(t, h.Next()-1)
		before := p.nodes[2].link.Stats().ReceivedBytes
		p.net.Cut(p.nodes[2].id, p.nodes[0].id) // it takes, but its answers wait
		body := make([]byte, BodyMax)
		var slot uint64
		for range 24 {
			var err error
			if slot, err = h.Propose(EntryData, body); err != nil {
				t.Fatal(err)
			}
			h.Kick()
			h.wait(t, "received", func() bool { return h.received >= slot })
		}
		synctest.Wait()
		if n := p.nodes[2].link.Stats().ReceivedBytes - before; n > WindowBytesMax+2*BodyMax {
			t.Errorf("%d bytes sent to a member that does not answer", n)
		}
		if !h.Status()[2].Lagging {
			t.Error("it is not lagging")
		}
		p.net.Heal(p.nodes[2].id, p.nodes[0].id)
		h.flush(t, slot)
		h.allDurable(t, slot)
		if h.Status()[2].Lagging {
			t.Error("it is still lagging")
		}
	})
}
