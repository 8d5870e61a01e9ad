package node

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/pool"
)

// refusing fails to record that a volume is fenced off for good, for a while.
type refusing struct {
	*brick.MemStable
	full    atomic.Bool
	refused atomic.Int32
}

func (s *refusing) Set(key string, v []byte) error {
	if strings.HasPrefix(key, "dht.epoch/") && s.full.Load() {
		s.refused.Add(1)
		return fault.New(fault.NoSpace, "stable.set", key, errors.New("the disk is full"))
	}
	return s.MemStable.Set(key, v)
}

// memoryFile is the copy of the pool's state that a node keeps.
type memoryFile struct{ b []byte }

func (f *memoryFile) Load() ([]byte, error) { return f.b, nil }
func (f *memoryFile) Save(b []byte) error   { f.b = b; return nil }

// alone runs the core of a pool's only node.
func alone(t *testing.T, stable brick.Stable) *Core {
	t.Helper()
	c, _ := aloneOn(t, vfs.NewMemSeed(1), stable)
	return c
}

// aloneOn is alone with this disk, and returns its brick too.
func aloneOn(t *testing.T, disk *vfs.Mem, stable brick.Stable) (*Core, *brick.Brick) {
	t.Helper()
	self, of := ident.NodeID{1}, ident.PoolID{1}
	b, err := brick.Open(brick.Config{FS: disk, Pool: of, Node: self, Stable: stable, Reserve: -1, JournalSegmentSize: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := link.NewMemory(1).Node(self)
	c, err := NewCore(CoreConfig{Pool: of, PoolName: "p", Name: "n1", Addr: "10.0.0.1:1", Boot: 1, First: true,
		Transport: l, Bricks: []*brick.Brick{b}, StateFile: &memoryFile{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); _ = b.Close(); l.Close() })
	return c, b
}

// TestSweepIsTriedAgain: what a node cannot drop of a deleted volume at once, it
// drops later, though nothing else happens in the pool that would remind it.
func TestSweepIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stable := &refusing{MemStable: brick.NewMemStable()}
		c := alone(t, stable)
		d := pool.Volume{ID: ident.NewVolume(), Name: "v", Size: 1 << 20, BlockSize: 4096, Replicas: 1, WriteCache: "quorum", Created: 1}
		if err := c.Birth(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		stable.full.Store(true)
		if err := c.Remove(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if len(c.Pool.State().Tombstones) != 1 || stable.refused.Load() == 0 {
			t.Fatalf("nothing was refused: %+v", c.Pool.State())
		}
		stable.full.Store(false)
		time.Sleep(2 * mendPause)
		if n := len(c.Pool.State().Tombstones); n != 0 {
			t.Fatal("the node never came back to the deleted volume")
		}
	})
}
