package ledger

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
)

// memory is a disk with a volatile cache.
type memory struct {
	mu           sync.Mutex
	now, durable []byte
	writes       int
	dropFlush    bool
	failAt       int
}

func newMemory(blocks int64) *memory {
	return &memory{now: make([]byte, blocks*BlockSize), durable: make([]byte, blocks*BlockSize)}
}

func (m *memory) ReadAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.now[off:])
	return nil
}

func (m *memory) WriteAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writes++; m.writes == m.failAt {
		return errors.New("no more")
	}
	copy(m.now[off:], p)
	return nil
}

func (m *memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dropFlush {
		copy(m.durable, m.now)
	}
	return nil
}

func (m *memory) cut() { copy(m.now, m.durable) }

func TestVerifyAcceptsAnHonestDisk(t *testing.T) {
	p := Plan{Blocks: 64, Seed: 7}
	d := newMemory(64)
	file := filepath.Join(t.TempDir(), "state")
	for round := uint32(1); round <= 5; round++ {
		st, err := LoadState(file, p)
		if err != nil {
			t.Fatal(err)
		}
		l := Load{Plan: p, Disk: d, Round: round, Depth: 8, FlushEvery: 10, Max: uint64(round) * 17}
		r, err := l.Run(context.Background())
		if err != nil || r.Durable != r.Issued {
			t.Fatal(r, err)
		}
		l.FlushEvery, l.Max = 0, 30
		l.Round += 100 // answered, never flushed, lost
		l.Run(context.Background())
		d.cut()
		if err := p.Verify(d, st, round, r.Durable); err != nil {
			t.Fatal(err)
		}
		if err := st.Save(file); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVerifySeesALiar(t *testing.T) {
	p := Plan{Blocks: 64}
	d := newMemory(64)
	d.dropFlush = true
	l := Load{Plan: p, Disk: d, Round: 1, Depth: 4, FlushEvery: 8, Max: 40}
	r, err := l.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	d.cut()
	st := &State{Seen: make([]Seq, 64)}
	var lost *Lost
	if err := p.Verify(d, st, 1, r.Durable); !errors.As(err, &lost) || lost.Blocks != 40 {
		t.Fatal(err)
	}
}

func TestVerifySeesAGhost(t *testing.T) {
	p := Plan{Blocks: 8}
	d := newMemory(8)
	st := &State{Seen: make([]Seq, 8)}
	if err := p.Verify(d, st, 1, 0); err != nil {
		t.Fatal(err)
	}
	// A write of round 1 that round 1's verification did not see appears in round 2.
	s := MakeSeq(1, 3)
	buf := make([]byte, BlockSize)
	p.Fill(buf, p.Block(s), s)
	d.WriteAt(buf, p.Block(s)*BlockSize)
	if err := p.Verify(d, st, 2, 0); err == nil {
		t.Fatal("a ghost was taken for data")
	}
}

func TestVerifySeesATornBlock(t *testing.T) {
	p := Plan{Blocks: 8}
	d := newMemory(8)
	r, _ := Load{Plan: p, Disk: d, Round: 1, Depth: 1, FlushEvery: 1, Max: 8}.Run(context.Background())
	d.now[5*BlockSize+3000] ^= 1
	if err := p.Verify(d, &State{Seen: make([]Seq, 8)}, 1, r.Durable); err == nil {
		t.Fatal("a torn block was taken for data")
	}
}

func TestLoadEndsAtTheFirstError(t *testing.T) {
	d := newMemory(64)
	d.failAt = 20
	r, err := Load{Plan: Plan{Blocks: 64}, Disk: d, Round: 1, Depth: 8, FlushEvery: 4}.Run(context.Background())
	if err == nil || r.Answered >= r.Issued {
		t.Fatal(r, err)
	}
}

func TestPlanVisitsEveryBlock(t *testing.T) {
	p := Plan{Blocks: 32, Seed: 3}
	for pass := range uint64(4) {
		seen := map[int64]bool{}
		for i := range uint64(32) {
			seen[p.Block(MakeSeq(9, pass*32+i+1))] = true
		}
		if len(seen) != 32 {
			t.Fatalf("pass %d visits %d blocks", pass, len(seen))
		}
	}
}
