package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// patience bounds every wait of a test for something that must happen. It is never waited
// for in vain, but in tests with deliberate defects.
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GABION_TEST_PATIENCE")); err == nil {
		return d
	}
	return 60 * time.Second
}()

// eachSeed runs f for the seeds 1..few in parallel, or for GABION_SIM_SEED
// alone, or for fresh seeds one after the other for GABION_SIM_SECONDS. The time
// of a real run is not under the seed's control, so that a seed that failed may
// take some tries to fail again.
func eachSeed(t *testing.T, few uint64, f func(t *testing.T, seed uint64)) {
	run := func(seed uint64, parallel bool) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if parallel {
				t.Parallel()
			}
			defer func() {
				if t.Failed() {
					t.Logf("again: make sim SEED=%d  (GABION_SIM_SEED=%d go test ./internal/sim -run '%s')", seed, seed, t.Name())
				}
			}()
			f(t, seed)
		})
	}
	if s := os.Getenv("GABION_SIM_SEED"); s != "" {
		run(uint64(number(t, s)), false)
		return
	}
	if s := os.Getenv("GABION_SIM_SECONDS"); s != "" {
		end := time.Now().Add(time.Duration(number(t, s)) * time.Second)
		for seed := uint64(time.Now().UnixMilli()); time.Now().Before(end) && !t.Failed(); seed++ {
			run(seed, false)
		}
		return
	}
	for seed := range few {
		run(seed+1, true)
	}
}

func number(t *testing.T, s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		t.Fatalf("%q is not a positive number", s)
	}
	return n
}

// start runs a pool of three nodes with the volume v of 1 MiB on all of them.
func start(t *testing.T, seed uint64) (context.Context, *Cluster) {
	t.Helper()
	return startTuned(t, seed, func(*blockdev.Config) {})
}

// startTuned is start with a different volume.
func startTuned(t *testing.T, seed uint64, tune func(*blockdev.Config)) (context.Context, *Cluster) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("GABION_SIM_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := New(seed, 3, log, func(cfg *blockdev.Config) {
		cfg.CheckpointBytes, cfg.TailBytes = 1<<20, 4<<20
		cfg.CheckpointIdle = 300 * time.Millisecond
		cfg.IOTimeout = 4 * time.Second
		tune(cfg)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.Net.SetDelay(20*time.Microsecond, 400*time.Microsecond)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	if _, err := c.CreateVolume(ctx, "v", 1<<20, 3); err != nil {
		t.Fatal(err)
	}
	return ctx, c
}

// open opens v at a node, which must let it within patience.
func open(t *testing.T, ctx context.Context, n *Node) (target.Session, <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s, gone, err := n.Manager.Open(ctx, "v", "test")
		if err == nil {
			select {
			case <-gone: // an attachment that has just ended
				s.Close()
				err = errors.New("gone at once")
			default:
				return s, gone
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("the volume does not open at node %d: %v", n.ID[0], err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// pattern is a block's worth of a value.
func pattern(v uint64) []byte { return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v), 512) }

// submit begins the write of a value to a block.
func submit(s target.Session, block int, v uint64, fua bool) <-chan error {
	got := make(chan error, 1)
	s.Write(pattern(v), int64(block)*4096, fua, func(err error) { got <- err })
	return got
}

// ended waits for the answer to an operation.
func ended(t *testing.T, got <-chan error) error {
	t.Helper()
	select {
	case err := <-got:
		return err
	case <-time.After(patience):
		t.Fatal("an operation never ended")
		return nil
	}
}

func mustPut(t *testing.T, s target.Session, block int, v uint64, fua bool) {
	t.Helper()
	got := submit(s, block, v, fua)
	s.Kick()
	if err := ended(t, got); err != nil {
		t.Fatalf("write of block %d: %v", block, err)
	}
}

func mustHave(t *testing.T, ctx context.Context, s target.Session, block int, v uint64) {
	t.Helper()
	p := make([]byte, 4096)
	if err := s.ReadAt(ctx, p, int64(block)*4096); err != nil {
		t.Fatalf("read of block %d: %v", block, err)
	}
	if !bytes.Equal(p, pattern(v)) {
		t.Fatalf("block %d has %d, not %d", block, binary.LittleEndian.Uint64(p), v)
	}
}

func epoch(s target.Session) uint64 { return s.(interface{ Epoch() uint64 }).Epoch() }

func isOver(err error) bool { return fault.Is(err, fault.Fenced) || fault.Is(err, fault.Unavailable) }
