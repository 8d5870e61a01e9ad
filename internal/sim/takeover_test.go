package sim

import (
	"context"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// takeoverMax is within what time another node serves a volume whose holder has
// fallen silent. The bound is made of the wait for the holder's answer, the lease
// with its margin and some tries to attach; the rest is for a slow machine.
const takeoverMax = 1500*time.Millisecond + leaseDuration + leaseDuration/5 + 5*time.Second

// TestTakeoverFromAnIsolatedHolder cuts the holder off in the middle of its
// work. Another node serves within the bound; what the old holder had not
// answered, and what it is given later, fails and is never seen; it reads
// nothing any more.
func TestTakeoverFromAnIsolatedHolder(t *testing.T) {
	t.Parallel()
	eachSeed(t, 2, takeover)
}

func takeover(t *testing.T, seed uint64) {
	ctx, c := start(t, seed)
	a, b, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	old, gone := open(t, ctx, a)
	mustPut(t, old, 0, 10, false)
	mustPut(t, old, 1, 11, true)
	mustPut(t, old, 4, 14, true) // of which nothing is under way later
	mustHave(t, ctx, old, 0, 10)

	c.Net.Isolate(a.ID)
	silent := time.Now()
	pending := map[string]<-chan error{
		"plain": submit(old, 0, 20, false), "fua": submit(old, 1, 21, true), "new block": submit(old, 2, 22, false),
	}
	flushed := make(chan error, 1)
	old.Flush(func(err error) { flushed <- err })
	old.Kick()

	s, _ := open(t, ctx, b)
	if took := time.Since(silent); took > takeoverMax {
		t.Errorf("the takeover took %v", took)
	}
	if epoch(s) <= epoch(old) {
		t.Errorf("epoch %d after %d", epoch(s), epoch(old))
	}
	mustPut(t, s, 0, 30, false)
	mustPut(t, s, 4, 34, false)
	noRead(t, ctx, old)
	late := submit(old, 3, 23, false)
	old.Kick()
	seen := func(s target.Session) {
		t.Helper()
		for block, v := range []uint64{30, 11, 0, 0, 34} {
			mustHave(t, ctx, s, block, v)
		}
	}
	seen(s)

	c.Net.Rejoin(a.ID) // what waited in its queues arrives now
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the old holder is never told")
	}
	for what, got := range pending {
		if err := ended(t, got); err == nil {
			t.Errorf("%s: a pending write of the old holder was answered", what)
		}
	}
	if ended(t, flushed) == nil || ended(t, late) == nil {
		t.Error("a flush or a later write of the old holder was answered")
	}
	if err := ended(t, submit(old, 3, 24, false)); !isOver(err) {
		t.Errorf("a write after the end: %v", err)
	}
	noRead(t, ctx, old)
	old.Close()
	seen(s)
	// Nor do they come back when the next holder is taken over in its turn.
	b.Kill(true)
	s, _ = open(t, ctx, a)
	seen(s)
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Manager.Attach(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, ctx, third)
	seen(s)
}

// noRead demands that a holder that was replaced answers no read, neither of a
// block whose write is under way nor of any other.
func noRead(t *testing.T, ctx context.Context, s target.Session) {
	t.Helper()
	p := make([]byte, 4096)
	for _, off := range []int64{0, 4 * 4096} {
		if s.TryReadAt(p, off) {
			t.Fatal("the old holder still reads")
		}
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := s.ReadAt(ctx, p, off)
		cancel()
		if err == nil {
			t.Fatal("the old holder still reads, after a wait")
		}
	}
}

// TestAnsweredWritesSurviveTheirHolder kills the process of the holder, and no
// other, in the middle of a stream of writes without any flush: what was
// answered is there, and what was not is there whole or not at all.
func TestAnsweredWritesSurviveTheirHolder(t *testing.T) {
	t.Parallel()
	eachSeed(t, 2, func(t *testing.T, seed uint64) {
		ctx, c := start(t, seed)
		const blocks = 64
		var answered, begun [blocks]uint64
		value := uint64(0)
		for round := range 3 {
			n := c.Nodes[round]
			s, _ := open(t, ctx, n)
			var got [blocks]<-chan error
			for b := range blocks {
				value++
				begun[b], got[b] = value, submit(s, b, value, false)
				if b%8 == 7 {
					s.Kick()
				}
			}
			for b := range blocks / 2 { // the others are under way
				if err := ended(t, got[b]); err != nil {
					t.Fatalf("round %d block %d: %v", round, b, err)
				}
			}
			n.Kill(true)
			for b := range got {
				if b < blocks/2 || ended(t, got[b]) == nil {
					answered[b] = begun[b]
				}
			}
			s, _ = open(t, ctx, c.Nodes[(round+1)%3])
			for b := range answered {
				if answered[b] == begun[b] {
					mustHave(t, ctx, s, b, answered[b])
					continue
				}
				switch v := valueOf(t, ctx, s, b); v {
				case begun[b]:
					answered[b] = v // it happened, and stays so
				case answered[b]:
				default:
					t.Fatalf("round %d: block %d has %d, not %d or %d", round, b, v, answered[b], begun[b])
				}
			}
			s.Close()
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// valueOf reads the value of a block.
func valueOf(t *testing.T, ctx context.Context, s target.Session, block int) uint64 {
	t.Helper()
	p := make([]byte, 4096)
	if err := s.ReadAt(ctx, p, int64(block)*4096); err != nil {
		t.Fatalf("read of block %d: %v", block, err)
	}
	v := uint64(p[0]) | uint64(p[1])<<8
	mustHave(t, ctx, s, block, v)
	return v
}

// TestWipedNodeDoesNotVoteInTheOldName acknowledges a write at two of three
// voters, takes the disk of one of them and the life of the other: the third,
// which never saw the write, and the wiped one are no majority.
func TestWipedNodeDoesNotVoteInTheOldName(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, 1)
	a, behind, wiped := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	s, _ := open(t, ctx, a)
	mustPut(t, s, 0, 1, true)
	c.Net.Isolate(behind.ID)
	mustPut(t, s, 0, 2, true)
	mustPut(t, s, 1, 3, true)
	a.Kill(true)
	wiped.Kill(true)
	brick := wiped.Brick()
	wiped.Wipe()
	if err := wiped.Start(); err != nil {
		t.Fatal(err)
	}
	if wiped.Brick() == brick {
		t.Fatal("the new disk has the old one's name")
	}
	c.Net.Rejoin(behind.ID)

	// Two nodes run and know of the volume. That is not enough, however long the
	// old holder has been silent.
	actx, cancel := context.WithTimeout(ctx, 10*leaseDuration)
	defer cancel()
	_, _, err := behind.Manager.Open(actx, "v", "test")
	if err == nil {
		t.Fatal("a wiped node made a majority")
	}
	if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout) {
		t.Errorf("kind of %v", err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, ctx, a)
	mustHave(t, ctx, s, 0, 2)
	mustHave(t, ctx, s, 1, 3)
	mustPut(t, s, 2, 4, true)
}
