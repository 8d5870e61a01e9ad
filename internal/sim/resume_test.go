package sim

import (
	"context"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/target"
)

func named(id byte, session uint64) target.Client {
	return target.Client{ID: [16]byte{id}, Session: session}
}

// resume opens v at a node for a named client.
func resume(t *testing.T, ctx context.Context, n *Node, c target.Client) (target.Session, <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s, gone, err := n.Manager.Resume(ctx, "v", "test", c)
		if err == nil {
			return s, gone
		}
		if ctx.Err() != nil || fault.Is(err, fault.Busy) || fault.Is(err, fault.Fenced) {
			t.Fatalf("session %d of client %d at node %d: %v", c.Session, c.ID[0], n.ID[0], err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

func refused(t *testing.T, ctx context.Context, n *Node, c target.Client, want fault.Kind) {
	t.Helper()
	s, _, err := n.Manager.Resume(ctx, "v", "test", c)
	if err == nil {
		s.Close()
	}
	if !fault.Is(err, want) {
		t.Fatalf("session %d of client %d: %v, not %v", c.Session, c.ID[0], err, want)
	}
}

// hangUp closes a session when it is told to, as a protocol server does: once
// the volume has nothing of it any more.
func hangUp(s target.Session, gone <-chan struct{}, under <-chan error) <-chan struct{} {
	hung := make(chan struct{})
	go func() {
		<-gone
		<-under
		s.Close()
		close(hung)
	}()
	return hung
}

// TestPitfallLateRequestsOfADeadConnection lets a client come back to the same node
// while a write of its old session is under way and cannot end: the new session
// begins only after it, and the write does not land on what is written then.
func TestPitfallLateRequestsOfADeadConnection(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 1)
	a := c.Nodes[0]
	old, gone := resume(t, ctx, a, named(1, 1))
	mustPut(t, old, 0, 10, false)
	refused(t, ctx, a, named(2, 1), fault.Busy)
	c.Net.Isolate(a.ID) // no majority: the write can neither happen nor fail yet
	straggler := submit(old, 0, 11, false)
	old.Kick()
	hung := hangUp(old, gone, straggler)

	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	refused(t, short, a, named(1, 2), fault.Timeout)
	c.Net.Rejoin(a.ID)
	s, _ := resume(t, ctx, a, named(1, 2))
	select {
	case <-hung:
	default:
		t.Fatal("a session began while an operation of the one before was under way")
	}
	mustPut(t, s, 0, 12, true)
	mustHave(t, ctx, s, 0, 12)
	refused(t, ctx, a, named(1, 1), fault.Fenced)
	s.Close()
}

// TestResumeElsewhere has a client leave a node that lives, as it does when its
// own way there is cut: the other node gets the volume for this client and for
// nobody else, and the session left behind is over.
func TestResumeElsewhere(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	old, gone := resume(t, ctx, a, named(1, 1))
	mustPut(t, old, 0, 10, false)
	refused(t, ctx, b, named(2, 9), fault.Busy)
	guest, _ := open(t, ctx, a)
	refused(t, ctx, b, named(1, 2), fault.Busy)
	guest.Close()

	began := time.Now()
	s, _ := resume(t, ctx, b, named(1, 3))
	if took := time.Since(began); took > leaseDuration+takeoverMax {
		t.Errorf("it took %v", took)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the session left behind goes on")
	}
	if err := ended(t, submit(old, 0, 11, false)); !isOver(err) {
		t.Errorf("a write of the session left behind: %v", err)
	}
	old.Close()
	mustHave(t, ctx, s, 0, 10)
	mustPut(t, s, 0, 12, false)

	force := named(2, 1)
	force.Force = true
	forced, _ := resume(t, ctx, a, force)
	mustHave(t, ctx, forced, 0, 12)
	if err := ended(t, submit(s, 0, 13, false)); !isOver(err) {
		t.Errorf("a write of the client that was put out: %v", err)
	}
	s.Close()
	mustHave(t, ctx, forced, 0, 12)
	forced.Close()
}

// TestGrowthIsTold has a volume grow while a named client and another have it
// open: the named one is sent away to come back to the new size, the other stays.
func TestGrowthIsTold(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 3)
	a := c.Nodes[0]
	s, gone := resume(t, ctx, a, named(1, 1))
	other, stays := open(t, ctx, a)
	defer other.Close()
	mustPut(t, s, 0, 10, false)

	grown := *c.State
	grown.Volumes = append([]pool.Volume(nil), grown.Volumes...)
	was := grown.Volumes[0].Size
	grown.Volumes[0].Size = 2 * was
	a.Manager.Sync(&grown)
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("nobody told the client")
	}
	s.Close()
	if s, gone = resume(t, ctx, a, named(1, 2)); s.Size() != 2*was {
		t.Fatalf("%d bytes, not %d", s.Size(), 2*was)
	}
	defer s.Close()
	mustHave(t, ctx, s, 0, 10)
	a.Manager.Sync(&grown) // the same news a second time is none
	select {
	case <-gone:
		t.Fatal("sent away for nothing")
	case <-stays:
		t.Fatal("a client that cannot come back was sent away")
	case <-time.After(50 * time.Millisecond):
	}
}

// TestCutOffHolderSaysSo cuts the holder off: once its lease has run out it
// tells who asks that it cannot serve, and no longer when it is back. A node that
// does not hold the volume says nothing.
func TestCutOffHolderSaysSo(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 4)
	a := c.Nodes[0]
	s, _ := resume(t, ctx, a, named(1, 1))
	defer s.Close()
	mustPut(t, s, 0, 10, false)
	if err := a.Manager.Able("v"); err != nil {
		t.Fatal(err)
	}
	until := func(able bool) {
		t.Helper()
		for end := time.Now().Add(patience); ; pause(ctx, 5*time.Millisecond) {
			err := a.Manager.Able("v")
			if able == (err == nil) && (able || fault.Is(err, fault.Unavailable)) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("able: %v; it says: %v", able, err)
			}
		}
	}
	cut := time.Now()
	c.Net.Isolate(a.ID)
	until(false)
	if took := time.Since(cut); took > leaseDuration+takeoverMax {
		t.Errorf("it took %v", took)
	}
	if err := c.Nodes[1].Manager.Able("v"); err != nil {
		t.Errorf("a node that does not hold it: %v", err)
	}
	c.Net.Rejoin(a.ID)
	until(true)
	mustPut(t, s, 0, 11, false)
}
