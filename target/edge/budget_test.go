package edge

import (
	"testing"
	"time"
)

// waiters waits until n claims queue.
func waiters(t *testing.T, b *Budget, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		k := len(b.queue)
		b.mu.Unlock()
		if k == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d claims wait, want %d", k, n)
		}
	}
}

func TestBudgetServesInTurn(t *testing.T) {
	b := NewBudget(10)
	if !b.Try(8) || b.Try(3) {
		t.Fatal("8 and 3 of 10")
	}
	big, small := make(chan bool, 1), make(chan bool, 1)
	go func() { big <- b.Acquire(9, nil) }()
	waiters(t, b, 1)
	go func() { small <- b.Acquire(1, nil) }()
	waiters(t, b, 2)
	if b.Try(1) {
		t.Error("somebody overtook those who wait")
	}
	b.Release(7) // 9 are free
	if !<-big {
		t.Error("the first was not served")
	}
	waiters(t, b, 1)
	b.Release(9)
	if !<-small {
		t.Error("the second was not served")
	}
}

func TestWhoGivesUpLetsOthersIn(t *testing.T) {
	b := NewBudget(10)
	b.Try(8)
	stop, big, small := make(chan struct{}), make(chan bool, 1), make(chan bool, 1)
	go func() { big <- b.Acquire(9, stop) }()
	waiters(t, b, 1)
	go func() { small <- b.Acquire(2, nil) }()
	waiters(t, b, 2)
	close(stop)
	if <-big {
		t.Error("9 bytes were there")
	}
	if !<-small {
		t.Error("2 bytes were not given to who stood behind")
	}
	b.Release(10)
	if !b.Try(10) {
		t.Error("bytes are lost")
	}
}

func TestShareKeepsALittleAndReturnsAll(t *testing.T) {
	b := NewBudget(16 << 20)
	s := NewShare(b)
	if n := s.Short(BytesFree); n != 0 || !s.Cover(BytesFree) || s.granted != 0 {
		t.Errorf("what is free costs %d", n)
	}
	if n := s.Short(BytesFree + 1); n != grantStep {
		t.Errorf("one byte costs %d", n)
	}
	if !s.Cover(9<<20) || s.granted != 8<<20 {
		t.Errorf("granted %d", s.granted)
	}
	if s.Cover(18 << 20) {
		t.Error("more was granted than there is")
	}
	s.Shrink(8 << 20)
	if s.granted != 8<<20 {
		t.Errorf("a busy connection gave back all but %d at once", s.granted)
	}
	s.Shrink(2 << 20)
	if s.granted != 2<<20 {
		t.Errorf("kept %d", s.granted)
	}
	b.Try(14 << 20)
	s.Grant(0)
	s.Return()
	if s.granted != 0 || !b.Try(2<<20) {
		t.Error("not everything was returned")
	}
}

func TestBuffersHaveRoomForHeaders(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 4097, StreamBytes, StreamBytes + 1, BufferMax} {
		b := GetBuffer(n)
		if len(b.B) != 0 || b.Left() < n+max(n, 4096)/64 || b.Left() > 3*max(n, 4096) {
			t.Errorf("for %d bytes: %d filled, room for %d", n, len(b.B), b.Left())
		}
		b.B = append(b.B, 1)
		b.Put()
		if again := GetBuffer(n); len(again.B) != 0 {
			t.Errorf("a buffer of %d bytes comes back filled", n)
		}
	}
}
