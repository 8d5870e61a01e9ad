package kouncil

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a pool of kouncils on a network in memory. Time is that of the bubble.
type rig struct {
	t     *testing.T
	net   *link.Memory
	begin time.Time
	table []overlay.Node
	nodes []*member
}

type member struct {
	*Kouncil
	trans *link.MemoryNode
	stop  func()
	skip  atomic.Int64 // nanoseconds that its clock is ahead
	mu    sync.Mutex
	heard map[ident.NodeID]string
}

// pool runs f in a bubble with n nodes that all hear each other.
func pool(t *testing.T, n int, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, net: link.NewMemory(1), begin: time.Now()}
		for i := range n {
			r.table = append(r.table, overlay.Node{ID: ident.NodeID{byte(i + 1)}, Name: fmt.Sprint("n", i)})
			r.nodes = append(r.nodes, nil)
		}
		for i := range n {
			r.start(i, 1)
		}
		defer func() {
			for _, m := range r.nodes {
				m.stop()
				m.trans.Close()
			}
		}()
		r.after(time.Second)
		f(r)
	})
}

func (r *rig) start(i int, boot uint64) *member {
	m := &member{trans: r.net.Node(r.table[i].ID), heard: map[ident.NodeID]string{}}
	m.Kouncil = New(Config{
		Transport: m.trans,
		Boot:      boot,
		Clock:     func() time.Duration { return time.Since(r.begin) + time.Duration(m.skip.Load()) },
		Payload:   func() []byte { return fmt.Appendf(nil, "n%d", i) },
		OnPayload: func(from ident.NodeID, body []byte) {
			m.mu.Lock()
			m.heard[from] = string(body)
			m.mu.Unlock()
		},
	})
	m.SetTable(1, r.table, [][]placement.Ref{{{Node: r.table[0].ID}}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.trans.Start()
	go func() { defer close(done); m.Run(ctx) }()
	m.stop = func() { cancel(); <-done }
	r.nodes[i] = m
	return m
}

func (r *rig) after(d time.Duration) {
	time.Sleep(d) // of the bubble
	synctest.Wait()
}

func (r *rig) ids() (ids []ident.NodeID) {
	for _, n := range r.table {
		ids = append(ids, n.ID)
	}
	return ids
}

func (r *rig) want(ok bool, what string) {
	r.t.Helper()
	if !ok {
		r.t.Fatal(what)
	}
}

func TestNodesBecomeSuspectThenDownThenAlive(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a, b := r.nodes[0], r.nodes[1]
		changes := make(chan overlay.State, 10)
		a.OnChange(func() { changes <- a.State(b.self) })
		r.want(a.State(b.self) == overlay.Alive && a.State(a.self) == overlay.Alive, "not alive")
		r.net.Isolate(b.self)
		r.after(SuspectAfterDefault - 700*time.Millisecond)
		r.want(a.State(b.self) == overlay.Alive, "suspect too early")
		r.after(1300 * time.Millisecond)
		r.want(a.State(b.self) == overlay.Suspect && <-changes == overlay.Suspect, "not suspect")
		r.want(a.State(r.nodes[2].self) == overlay.Alive, "the wrong node is suspect")
		r.after(DownAfterDefault)
		r.want(a.State(b.self) == overlay.Down && <-changes == overlay.Down, "not down")
		r.net.Rejoin(b.self)
		r.after(0) // at once, not with the next round
		r.want(a.State(b.self) == overlay.Alive && <-changes == overlay.Alive, "not alive again")
		r.want(a.State(ident.NodeID{99}) == overlay.Down, "an unknown node lives")
	})
}

func TestPingsCarryPayloadBootAndDelay(t *testing.T) {
	pool(t, 2, func(r *rig) {
		a, b := r.nodes[0], r.nodes[1]
		a.mu.Lock()
		r.want(a.heard[b.self] == "n1", "no payload")
		a.mu.Unlock()
		n, ok := a.Node(b.self)
		r.want(ok && n.Boot == 1 && n.Name == "n1" && n.LastHeard <= PingIntervalDefault, "wrong node")
		r.net.SetDelay(30*time.Millisecond, 30*time.Millisecond)
		r.after(time.Second)
		n, _ = a.Node(b.self)
		r.want(n.RTT == 60*time.Millisecond, "wrong round trip")
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok, "no lease")
		r.net.Crash(b.self)
		b.stop()
		r.start(1, 2)
		r.after(time.Second)
		n, _ = a.Node(b.self)
		again, ok := a.LeaseMark(r.ids())
		r.want(n.Boot == 2 && ok && again > mark, "the new life was not noticed")
	})
}

func TestLeaseEndsAfterItsTime(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		r.want(a.LeaseValid(r.ids()), "no lease")
		r.want(!a.LeaseValid(nil), "a lease from nobody")
		r.want(!a.LeaseValid([]ident.NodeID{{8}, {9}, a.self}), "strangers count")
		r.net.Crash(r.nodes[1].self)
		r.after(time.Minute)
		r.want(a.LeaseValid(r.ids()), "two of three are a majority")
		r.net.Isolate(a.self)
		r.after(LeaseDurationDefault - PingIntervalDefault)
		r.want(a.LeaseValid(r.ids()), "ended too early")
		r.after(PingIntervalDefault)
		r.want(!a.LeaseValid(r.ids()), "a lease that nobody gives")
		r.want(r.nodes[2].HolderMayLive(a.self), "the acceptor's patience ends before the lease")
		r.after(LeaseMarginDefault + PingIntervalDefault)
		r.want(!r.nodes[2].HolderMayLive(a.self), "the acceptor waits for ever")
	})
}

// Two seconds in which nothing gets through, as on a machine that has other things to do,
// cost no lease and leave no mark.
func TestPitfallLeaseOnABusyMachine(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		before, _ := a.LeaseMark(r.ids())
		for _, b := range r.nodes[1:] {
			r.net.Cut(a.self, b.self)
			r.net.Cut(b.self, a.self)
		}
		for range 4 {
			r.want(a.LeaseValid(r.ids()), "ended too early")
			r.after(LeaseDurationDefault/5 - time.Millisecond)
		}
		r.want(a.LeaseValid(r.ids()), "ended too early")
		for _, b := range r.nodes[1:] {
			r.net.Heal(a.self, b.self)
			r.net.Heal(b.self, a.self)
		}
		r.after(2 * PingIntervalDefault)
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok && mark == before, "a gap that was none")
	})
}

// A stopped process runs its next instruction with old pongs at hand.
func TestLeaseIsInvalidInTheFirstInstructionAfterAStop(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		before, ok := a.LeaseMark(r.ids())
		r.want(ok, "no lease")
		a.skip.Add(int64(4 * time.Second)) // no timer, no message in between
		r.want(!a.LeaseValid(r.ids()), "the lease outlived the stop")
		r.after(2 * PingIntervalDefault)
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok && mark > before, "the gap left no mark")
	})
}

func TestCutHolderSeesAGap(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		before, _ := a.LeaseMark(r.ids())
		r.net.Isolate(a.self)
		r.after(4 * time.Second)
		r.net.Rejoin(a.self)
		r.after(2 * time.Second)
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok && mark > before, "another holder may have come and gone unseen")
	})
}

// Pings that were stuck arrive close to each other in send time, yet the peer
// has heard nothing for long enough to promise another holder.
func TestDelayedPingsLeaveAGap(t *testing.T) {
	pool(t, 3, func(r *rig) {
		a := r.nodes[0]
		before, _ := a.LeaseMark(r.ids())
		for _, b := range r.nodes[1:] {
			r.net.Cut(a.self, b.self) // the connection waits and survives
		}
		r.after(5 * time.Second)
		for _, b := range r.nodes[1:] {
			r.want(!b.HolderMayLive(a.self), "the acceptor still waits")
			r.net.Heal(a.self, b.self)
		}
		r.after(2 * time.Second)
		mark, ok := a.LeaseMark(r.ids())
		r.want(ok && mark > before, "another holder may have come and gone unseen")
	})
}

// Whenever a trusts its lease with an unchanged mark, fewer than a majority may
// be willing to promise another: that is the whole point.
func TestLeaseAndPatienceNeverContradict(t *testing.T) {
	for seed := range uint64(20) {
		pool(t, 3, func(r *rig) {
			a := r.nodes[0]
			rng := uint64(seed*2654435761 + 1)
			draw := func(n uint64) uint64 { rng = rng*6364136223846793005 + 1442695040888963407; return rng >> 33 % n }
			var marked uint64
			willing := map[ident.NodeID]bool{} // since the mark was taken
			for step := range 400 {
				b := r.nodes[1+draw(2)]
				switch draw(12) {
				case 0:
					r.net.Cut(a.self, b.self)
				case 1:
					r.net.Cut(b.self, a.self)
				case 2, 3:
					r.net.Heal(a.self, b.self)
				case 4, 5:
					r.net.Heal(b.self, a.self)
				case 6:
					r.net.Drop(a.self, b.self)
				case 7:
					r.net.SetDelay(0, time.Duration(draw(2000))*time.Millisecond)
				}
				r.after(time.Duration(draw(700)) * time.Millisecond)
				mark, ok := a.LeaseMark(r.ids())
				if mark != marked {
					marked = mark
					clear(willing) // the holder proves its ballot anew
				}
				for _, b := range r.nodes[1:] {
					if !b.HolderMayLive(a.self) {
						willing[b.self] = true
					}
				}
				if ok && len(willing) == 2 {
					t.Fatalf("seed %d step %d: a reads while a majority may have promised another", seed, step)
				}
			}
		})
	}
}

func TestAcceptorIsPatientAfterItsOwnStart(t *testing.T) {
	pool(t, 2, func(r *rig) {
		a := r.nodes[0]
		r.net.Crash(r.nodes[1].self)
		r.nodes[1].stop()
		r.net.Isolate(r.nodes[1].self)
		b := r.start(1, 2)
		r.want(b.HolderMayLive(a.self), "a promise given before the start is forgotten")
		r.want(!b.HolderMayLive(b.self), "its own earlier process lives")
		r.after(LeaseDurationDefault + LeaseMarginDefault)
		r.want(!b.HolderMayLive(a.self), "waits for ever")
	})
}

func TestIsolatedWhenManyVanishAtOnce(t *testing.T) {
	pool(t, 6, func(r *rig) {
		a := r.nodes[0]
		r.want(!a.Isolated(), "isolated from the start")
		for _, b := range r.nodes[1:3] { // two of six are not more than a third
			r.net.Isolate(b.self)
		}
		r.after(5 * time.Second)
		r.want(!a.Isolated(), "two of six")
		r.after(2 * IsolationWindow)
		r.net.Isolate(r.nodes[3].self)
		r.after(5 * time.Second)
		r.want(!a.Isolated(), "not at once")
		for _, b := range r.nodes[4:] {
			r.net.Isolate(b.self)
		}
		r.after(5 * time.Second)
		r.want(a.Isolated(), "three within the window")
		for _, b := range r.nodes[1:] {
			r.net.Rejoin(b.self)
		}
		r.after(time.Second)
		r.want(!a.Isolated(), "they are back")
	})
}

func TestTableOnlyMovesForward(t *testing.T) {
	pool(t, 2, func(r *rig) {
		a := r.nodes[0]
		told := 0
		a.OnChange(func() { told++ })
		a.SetTable(5, r.table[:1], nil)
		a.SetTable(4, r.table, nil)
		r.want(a.TableVersion() == 5 && len(a.Nodes()) == 1 && a.LaneCount() == 0 && told == 1, "an old table won")
		r.want(a.Lane(3) == nil, "a lane that is not there")
	})
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("0123456789abcdefpayload"), true)
	f.Fuzz(func(t *testing.T, b []byte, ping bool) {
		k := New(Config{Transport: link.NewMemory(1).Node(ident.NodeID{1})})
		p := mute{}
		if ping {
			k.onPing(p, b, false)
		} else {
			k.onPong(p, b, false)
		}
		if k.LeaseValid([]ident.NodeID{{1}, {2}, {3}}) {
			t.Fatal("a lease from an answer to nothing")
		}
	})
}

type mute struct{}

func (mute) ID() ident.NodeID                { return ident.NodeID{2} }
func (mute) Send(link.Type, ...[]byte) error { return nil }
