package brick

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// TestHungDiskBreaksTheBrick: whatever waits for a disk that never answers is
// told, for each kind of operation that may hang.
func TestHungDiskBreaksTheBrick(t *testing.T) {
	for _, c := range []struct {
		hang vfs.Fault
		do   func(b *Brick) error
	}{
		{vfs.Fault{Op: "sync", Name: "journal/"}, func(b *Brick) error {
			if _, err := b.Journal().Append([]byte("x")); err != nil {
				return err
			}
			return syncNow(b.Journal())
		}},
		{vfs.Fault{Op: "sync", Name: "extents/"}, func(b *Brick) error {
			return b.PutExtents([]Extent{testExtent(testVolume, 1, 5000)})
		}},
		{vfs.Fault{Op: "write", Name: "index-"}, func(b *Brick) error {
			return b.PutExtents([]Extent{testExtent(testVolume, 1, 5000)})
		}},
	} {
		t.Run(c.hang.Op+" "+c.hang.Name, func(t *testing.T) {
			m := vfs.NewMem()
			cfg := small(m, NewMemStable())
			cfg.StallMax = 30 * time.Millisecond
			broke := make(chan error, 1)
			cfg.OnBroken = func(err error) { broke <- err }
			b := mustOpen(t, cfg)
			release := m.Hang(c.hang)
			defer release()
			began := time.Now()
			wantKind(t, c.do(b), fault.Unavailable)
			if err := <-broke; !strings.Contains(err.Error(), "has not answered") || b.Broken() == nil {
				t.Fatalf("broken for another reason: %v", err)
			}
			if took := time.Since(began); took < cfg.StallMax {
				t.Fatalf("told after %v, before %v", took, cfg.StallMax)
			}
			// Nobody waits for this disk again.
			_, err := b.Journal().Append([]byte("y"))
			wantKind(t, err, fault.Unavailable)
			wantKind(t, syncNow(b.Journal()), fault.Unavailable)
			wantKind(t, b.PutExtents([]Extent{testExtent(testVolume, 2, 5000)}), fault.Unavailable)
			wantKind(t, b.DeleteExtents([]ident.Addr{{1}}), fault.Unavailable)
			wantKind(t, b.Stable().Set("k", nil), fault.Unavailable)
			wantKind(t, b.Close(), fault.Unavailable)
		})
	}
}

// TestWritersDoNotQueueBehindAHungOne: one journal write hangs; who comes
// later is let go when the brick is broken.
func TestWritersDoNotQueueBehindAHungOne(t *testing.T) {
	m := vfs.NewMem()
	cfg := small(m, NewMemStable())
	cfg.StallMax = 30 * time.Millisecond
	b := mustOpen(t, cfg)
	release := m.Hang(vfs.Fault{Op: "write", Name: "journal/"})
	ended := make(chan error, 5)
	for range 5 {
		_, err := b.Journal().Append([]byte("x"))
		must(t, err)
		go func() { ended <- b.Journal().Write() }()
	}
	for range 4 {
		wantKind(t, <-ended, fault.Unavailable)
	}
	release()
	<-ended // the one in the disk, whatever it says
}

// TestSlowDiskIsNoHungOne, and an idle one is not looked at.
func TestSlowDiskIsNoHungOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalls := make(chan string, 9)
		w := &watch{max: time.Minute, stalled: func(op, name string, _ time.Duration) { stalls <- op + " " + name }}
		for range 10 { // never idle, never stuck
			i := w.begin("write", "a")
			time.Sleep(40 * time.Second)
			j := w.begin("write", "b")
			w.end(i)
			time.Sleep(40 * time.Second)
			w.end(j)
		}
		time.Sleep(2 * time.Minute)
		w.mu.Lock()
		if w.armed || len(stalls) > 0 || len(w.ops) > 2 {
			t.Fatalf("idle, but the timer is armed: %v; %d stalls, %d slots", w.armed, len(stalls), len(w.ops))
		}
		w.mu.Unlock()
		i := w.begin("sync", "c")
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if len(stalls) > 0 {
			t.Fatal("a minute is not over")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(stalls) != 1 {
			t.Fatalf("%d stalls were told", len(stalls))
		}
		if s := <-stalls; s != "sync c" {
			t.Fatal(s)
		}
		w.end(i)
		w.stop()
	})
}

// TestStoppedProcessIsNoHungDisk: while the process is stopped (SIGSTOP, a virtual
// machine that is paused), operations of its disks end without its noticing. What it sees
// afterwards is one look that comes late.
func TestStoppedProcessIsNoHungDisk(t *testing.T) {
	stalls := 0
	w := &watch{max: time.Hour, stalled: func(string, string, time.Duration) { stalls++ }}
	defer w.stop()
	w.begin("sync", "a")
	for range 4 {
		w.mu.Lock()
		w.looked = w.looked.Add(-10 * time.Hour)
		w.mu.Unlock()
		w.look()
		if stalls > 0 {
			t.Fatal("a process that was stopped takes its disk for hung")
		}
	}
	for range watchSteps {
		w.mu.Lock()
		w.looked = w.looked.Add(-w.max / watchSteps)
		w.mu.Unlock()
		w.look()
	}
	if stalls != 1 {
		t.Fatal("a disk that hangs is not noticed after the process was stopped")
	}
}
