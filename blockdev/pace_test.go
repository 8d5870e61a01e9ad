package blockdev

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// copying copies n batches of 1 MiB and tells how long that took.
func copying(t *testing.T, p *Pacer, n int) time.Duration {
	t.Helper()
	began := time.Now()
	for range n {
		if err := p.Wait(t.Context(), 1<<20, 2); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(began)
}

func TestPacerUsesWhatNobodyNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		copying(t, p, 500)
		if d := copying(t, p, 1000); d > time.Second {
			t.Errorf("1000 MiB took %s with nobody to disturb", d)
		}
	})
}

// A client that comes must not wait until a rate that was never reached has come down.
func TestPacerKeepsToWhatCopiesReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		for range 1000 {
			copying(t, p, 1)
			time.Sleep(10 * time.Millisecond) // virtual: what a copy takes
		}
		if r := p.Rate() >> 20; r < 100 || r > 200 {
			t.Errorf("a rate of %d MiB/s for copies that go at 100", r)
		}
	})
}

// What copies reached while nobody flushed says nothing about what a client bears.
func TestPacerBeginsAgainForAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		copying(t, p, 1000)
		if p.Rate() <= paceStart {
			t.Fatalf("%d MiB/s with nobody to disturb", p.Rate()>>20)
		}
		p.Foreground(time.Millisecond)
		if p.Rate() != paceStart {
			t.Errorf("%d MiB/s for a client that came, not %d", p.Rate()>>20, paceStart>>20)
		}
	})
}

// foreground reports a flush each millisecond, whose latency depends on the rate.
func foreground(p *Pacer, latency func(rate int64) time.Duration, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
			p.Foreground(latency(p.Rate()))
		}
	}
}

func TestPacerYieldsToTheForeground(t *testing.T) {
	for name, c := range map[string]struct {
		latency  func(rate int64) time.Duration
		low, top int64 // where the rate comes to rest, in MiB per second
	}{
		"as much as it bears": {func(rate int64) time.Duration {
			return time.Millisecond + time.Duration(rate)*time.Second/(100<<30)
		}, 30, 130},
		"never below the floor": {func(rate int64) time.Duration { return time.Millisecond + time.Duration(rate) }, 8, 12},
		"a fast disk":           {func(int64) time.Duration { return time.Millisecond }, 1000, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := NewPacer()
				stop := make(chan struct{})
				var wg sync.WaitGroup
				var mu sync.Mutex
				var last time.Time // a copy began
				wg.Go(func() {
					foreground(p, func(rate int64) time.Duration {
						mu.Lock()
						defer mu.Unlock()
						if time.Since(last) > 60*time.Millisecond {
							return time.Millisecond
						}
						return c.latency(rate)
					}, stop)
				})
				time.Sleep(2 * time.Second) // virtual: the baseline is learnt
				end := time.Now().Add(time.Minute)
				for time.Now().Before(end) {
					if err := p.Wait(t.Context(), 1<<20, 1); err != nil {
						t.Fatal(err)
					}
					mu.Lock()
					last = time.Now()
					mu.Unlock()
				}
				if r := p.Rate() >> 20; r < c.low || r > c.top {
					t.Errorf("the rate came to rest at %d MiB/s, not in [%d, %d]", r, c.low, c.top)
				}
				close(stop)
				wg.Wait()
			})
		})
	}
}

// TestPacerSeesStalls: a client whose flush takes longer than a window has not gone.
func TestPacerSeesStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				took := time.Millisecond
				if p.busy.Load() && p.Rate() > 20<<20 {
					took = 900 * time.Millisecond
				}
				select {
				case <-stop:
					return
				case <-time.After(took):
					p.Foreground(took)
				}
			}
		})
		time.Sleep(2 * time.Second) // virtual: the baseline is learnt
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			if err := p.Wait(t.Context(), 1<<20, 1); err != nil {
				t.Fatal(err)
			}
		}
		if r := p.Rate() >> 20; r > 40 {
			t.Errorf("%d MiB/s, with flushes that take 900 times as long", r)
		}
		close(stop)
		wg.Wait()
	})
}

func TestPacerObeysTheOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		p.SetPolicy(false, 10<<20)
		if d := copying(t, p, 101); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("100 MiB at 10 MiB/s took %s", d)
		}
		p.SetPolicy(true, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		if err := p.Wait(ctx, 1, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("copied while paused: %v", err)
		}
		cancel()
		got := make(chan error)
		go func() { got <- p.Wait(t.Context(), 1, 0) }()
		synctest.Wait()
		p.SetPolicy(false, 0)
		if err := <-got; err != nil {
			t.Error(err)
		}
	})
}

// TestPacerSteersByTheTail: one flush in fifty that waits for long is what a client
// feels, however fast the others are.
func TestPacerSteersByTheTail(t *testing.T) {
	p := NewPacer()
	for i := range 1000 {
		p.calm.add(time.Millisecond)
		d := time.Millisecond
		if i%50 == 0 {
			d = 3 * time.Millisecond
		}
		p.tense.add(d)
	}
	before := p.rate
	if p.steer(p.now()); p.rate >= before {
		t.Errorf("the rate went from %v to %v", before, p.rate)
	}
}

// TestPacerRisesByStepsBesideAClient: who flushes finds out little by little what it bears,
// and a rate that copies do not reach does not rise.
func TestPacerRisesByStepsBesideAClient(t *testing.T) {
	for name, c := range map[string]struct {
		went float64 // of what it might
		want float64 // of what it was
	}{"as fast as it may": {1, 1 + paceGain}, "a third of that": {1. / 3, 1}} {
		t.Run(name, func(t *testing.T) {
			p := NewPacer()
			for range paceEnough {
				p.calm.add(time.Millisecond)
				p.tense.add(time.Millisecond)
			}
			p.rate = 4 * paceStart
			now := p.now()
			p.begun, p.begunSize = now.Add(-time.Second), int64(c.went*p.rate)
			p.steer(now)
			if got := p.rate / (4 * paceStart); math.Abs(got-c.want) > 0.001 {
				t.Errorf("the rate became %.3f times what it was, not %.3f", got, c.want)
			}
		})
	}
}

// TestPacerLearnsWhatCopiesReach, beside a client and without one: half of that is where it begins.
func TestPacerLearnsWhatCopiesReach(t *testing.T) {
	for name, client := range map[string]bool{"beside a client": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := NewPacer()
				stop := make(chan struct{})
				var wg sync.WaitGroup
				if client {
					wg.Go(func() { foreground(p, func(int64) time.Duration { return time.Millisecond }, stop) })
					time.Sleep(2 * time.Second) // virtual: the baseline is learnt
				}
				for range 300 {
					copying(t, p, 1)
					time.Sleep(5 * time.Millisecond) // virtual: what a copy takes
				}
				if full := p.full / (1 << 20); full < 170 || full > 210 {
					t.Errorf("copies that go at 200 MiB/s reach %.0f", full)
				}
				if got := p.start() / p.full; got != paceHalf {
					t.Errorf("it begins at %.2f of what they reach", got)
				}
				close(stop)
				wg.Wait()
			})
		})
	}
}

// TestPacerDoesNotLearnFromTheOperator: a limit set while copies are let go says nothing of what they reach.
func TestPacerDoesNotLearnFromTheOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { foreground(p, func(int64) time.Duration { return time.Millisecond }, stop) })
		time.Sleep(2 * time.Second) // virtual: the baseline is learnt
		for range 300 {
			p.mu.Lock()
			free := p.free(p.now())
			p.mu.Unlock()
			if free {
				p.SetPolicy(false, 20<<20)
			}
			copying(t, p, 1)
			time.Sleep(5 * time.Millisecond) // virtual: what a copy takes
		}
		if p.limit == 0 || p.full != 0 {
			t.Errorf("with a limit of %.0f it holds that copies reach %.0f bytes a second", p.limit, p.full)
		}
		close(stop)
		wg.Wait()
	})
}

// TestPacerKnowsWhatIsUndisturbed: of a few hundred flushes nobody can tell what the slowest hundredth takes, and what
// is wrong there is wrong for the whole repair.
func TestPacerKnowsWhatIsUndisturbed(t *testing.T) {
	p := NewPacer()
	for range 10_000 { // 20 s of a client with 500 a second
		if p.Wants() {
			p.Foreground(time.Millisecond)
		}
	}
	if n := len(p.calm.all); n < 2500 {
		t.Errorf("%d samples", n)
	}
}

// TestPacerClaimsHalf: below half of what copies could reach the foreground bears more, and far
// above it the rate hardly rises.
func TestPacerClaimsHalf(t *testing.T) {
	for name, c := range map[string]struct {
		share float64 // of what could be reached
		tail  float64 // of the undisturbed one
		want  float64 // of what the rate was
	}{
		"below half, calm":      {0.4, 1, 1 + 2*paceGain},
		"below half, disturbed": {0.4, 1.85, 1 + 2*paceGain},
		"below half, too much":  {0.4, 2.5, paceFall},
		"half, calm":            {0.55, 1, 1 + paceGain},
		"half, disturbed":       {0.55, 1.85, paceFall},
		"more than that, calm":  {0.8, 1, 1 + paceGain/5},
		"far more and too much": {0.8, 1.95, paceFall},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPacer()
			p.full, p.rate = 1<<30, c.share*(1<<30)
			for range paceEnough {
				p.calm.add(10 * time.Millisecond)
				p.tense.add(time.Duration(c.tail * float64(10*time.Millisecond)))
			}
			now := p.now()
			p.begun, p.begunSize = now.Add(-time.Second), int64(p.rate)
			p.steer(now)
			if got := p.rate / (c.share * (1 << 30)); math.Abs(got-c.want) > 0.001 {
				t.Errorf("the rate became %.3f times what it was, not %.3f", got, c.want)
			}
		})
	}
}

// TestPacerLooksAgain: what is undisturbed changes while it copies, as when another
// process begins to use the disk. That is no reason to go slower for ever.
func TestPacerLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		began := time.Now()
		wg.Go(func() {
			foreground(p, func(int64) time.Duration {
				if time.Since(began) < 10*time.Second {
					return time.Millisecond
				}
				return 9 * time.Millisecond
			}, stop)
		})
		time.Sleep(2 * time.Second)
		for time.Since(began) < 40*time.Second {
			if err := p.Wait(t.Context(), 4<<20, 1); err != nil {
				t.Fatal(err)
			}
		}
		if r := p.Rate() >> 20; r < 100 {
			t.Errorf("%d MiB/s, because somebody else slowed the disk down", r)
		}
		close(stop)
		wg.Wait()
	})
}

// TestMostEndangeredFirst: whoever has the fewest copies is next, however long
// others wait.
func TestMostEndangeredFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		p.SetPolicy(true, 0)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for _, copies := range []int{2, 2, 1, 2, 0, 1} {
			wg.Go(func() {
				if err := p.Wait(t.Context(), 64<<20, copies); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, copies)
				mu.Unlock()
			})
			synctest.Wait()
		}
		p.SetPolicy(false, 0)
		wg.Wait()
		if !slices.Equal(order, []int{0, 1, 1, 2, 2, 2}) {
			t.Errorf("copied in the order %v", order)
		}
	})
}
