// Package ledger writes blocks whose content says which write it was, keeps
// note of what was answered and what was made durable, and checks afterwards,
// from that note alone, that nothing acknowledged is gone and that nothing
// which was gone has come back.
package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// BlockSize is the size of one ledger block, in bytes.
const BlockSize = 4096

const stampMagic = 0x6761626c65646772

// Disk is what the ledger is written to.
type Disk interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Flush() error
}

// Plan fixes which write goes where: the same Plan must verify what it wrote.
// Writes of one round are numbered 1, 2, 3, …; the number names the block.
type Plan struct {
	Blocks int64  // a power of two
	First  int64  // first block on the disk
	Seed   uint64 // tells ledgers apart
}

// Seq names one write for ever: round in the high, number in the low 32 bits.
// 0 means never written.
type Seq uint64

func MakeSeq(round uint32, number uint64) Seq { return Seq(uint64(round)<<32 | number) }
func (s Seq) Round() uint32                   { return uint32(s >> 32) }
func (s Seq) Number() uint64                  { return uint64(s) & 0xffffffff }
func (s Seq) String() string                  { return fmt.Sprintf("%d.%d", s.Round(), s.Number()) }

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Block is where write s goes. Each run of Blocks numbers visits every block
// once, in an order of its own.
func (p Plan) Block(s Seq) int64 {
	n := s.Number() - 1
	k := mix(p.Seed ^ uint64(s.Round())<<32 ^ n/uint64(p.Blocks))
	return int64((n*(k|1) + k>>32) & uint64(p.Blocks-1))
}

// Fill makes the content of block b after write s.
func (p Plan) Fill(buf []byte, b int64, s Seq) {
	binary.LittleEndian.PutUint64(buf[0:], stampMagic)
	binary.LittleEndian.PutUint64(buf[8:], uint64(b))
	binary.LittleEndian.PutUint64(buf[16:], uint64(s))
	x := p.Seed ^ uint64(b)<<40 ^ uint64(s)
	for i := 24; i < BlockSize; i += 8 {
		x = mix(x)
		binary.LittleEndian.PutUint64(buf[i:], x)
	}
}

// Read tells which write left buf in block b; an error when none could have.
func (p Plan) Read(buf []byte, b int64) (Seq, error) {
	zero := true
	for _, c := range buf {
		if c != 0 {
			zero = false
			break
		}
	}
	if zero {
		return 0, nil
	}
	s := Seq(binary.LittleEndian.Uint64(buf[16:]))
	want := make([]byte, BlockSize)
	p.Fill(want, b, s)
	if string(want) != string(buf) {
		return 0, fmt.Errorf("block %d: torn or foreign content (says block %d, write %v)",
			b, binary.LittleEndian.Uint64(buf[8:]), s)
	}
	if s.Number() == 0 || p.Block(s) != b {
		return 0, fmt.Errorf("block %d: holds write %v, which went elsewhere", b, s)
	}
	return s, nil
}

// Load describes one round of writing.
type Load struct {
	Plan
	Disk       Disk
	Round      uint32
	Depth      int    // writes in flight
	FlushEvery uint64 // a flush follows after so many answered writes; 0: never
	Max        uint64 // stop after so many writes; 0: when ctx ends
	// Answered is called with n once writes 1..n were answered, Durable once a
	// flush that was sent after that was answered. Each is called in order and
	// not concurrently with itself; they hold up the load while they run.
	Answered func(n uint64)
	Durable  func(n uint64)
}

// Result of a round.
type Result struct {
	Issued, Answered, Durable uint64
	// Pause is the longest time without any answered write.
	Pause time.Duration
}

type loader struct {
	Load
	mu       sync.Mutex // guards below
	cond     *sync.Cond
	issued   uint64
	answered uint64          // contiguous
	ahead    map[uint64]bool // answered beyond that
	busy     map[int64]bool  // blocks with a write in flight
	durable  uint64
	last     time.Time
	pause    time.Duration
	err      error
	over     bool
	writers  int
}

// Run writes until ctx ends, Max is reached or an operation fails, and flushes
// what was written unless something failed. The error is the first failure;
// the Result holds in any case.
func (l Load) Run(ctx context.Context) (Result, error) {
	if l.Blocks <= 0 || l.Blocks&(l.Blocks-1) != 0 || int64(l.Depth) > l.Blocks/2 {
		return Result{}, errors.New("blocks must be a power of two, at least twice the depth")
	}
	r := &loader{Load: l, ahead: map[uint64]bool{}, busy: map[int64]bool{}, last: time.Now()}
	r.cond = sync.NewCond(&r.mu)
	stop := context.AfterFunc(ctx, func() { r.end(nil) })
	defer stop()
	var wg sync.WaitGroup
	r.writers = max(1, l.Depth)
	for range r.writers {
		wg.Go(func() {
			r.write()
			r.mu.Lock()
			r.writers--
			r.mu.Unlock()
			r.cond.Broadcast()
		})
	}
	if l.FlushEvery > 0 {
		wg.Go(r.flush)
	}
	wg.Wait()
	return Result{Issued: r.issued, Answered: r.answered, Durable: r.durable, Pause: r.pause}, r.err
}

func (r *loader) end(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	r.over = true
	r.mu.Unlock()
	r.cond.Broadcast()
}

func (r *loader) write() {
	buf := make([]byte, BlockSize)
	for {
		r.mu.Lock()
		if r.over || r.Max > 0 && r.issued >= r.Max {
			r.over = true
			r.mu.Unlock()
			r.cond.Broadcast()
			return
		}
		r.issued++
		n := r.issued
		s := MakeSeq(r.Round, n)
		b := r.Block(s)
		for r.busy[b] { // the order of two writes in flight to one block is nobody's promise
			r.cond.Wait()
		}
		r.busy[b] = true
		r.mu.Unlock()

		r.Fill(buf, b, s)
		if err := r.Disk.WriteAt(buf, (r.First+b)*BlockSize); err != nil {
			r.end(fmt.Errorf("write %v of block %d: %w", s, b, err))
			r.release(b)
			return
		}
		r.done(n, b)
	}
}

func (r *loader) release(b int64) {
	r.mu.Lock()
	delete(r.busy, b)
	r.mu.Unlock()
	r.cond.Broadcast()
}

func (r *loader) done(n uint64, b int64) {
	r.mu.Lock()
	now := time.Now()
	r.pause = max(r.pause, now.Sub(r.last))
	r.last = now
	delete(r.busy, b)
	r.ahead[n] = true
	before := r.answered
	for r.ahead[r.answered+1] {
		r.answered++
		delete(r.ahead, r.answered)
	}
	if r.answered > before && r.Answered != nil {
		r.Answered(r.answered)
	}
	r.mu.Unlock()
	r.cond.Broadcast()
}

func (r *loader) flush() {
	for {
		r.mu.Lock()
		for r.err == nil && r.writers > 0 && r.answered < r.durable+r.FlushEvery {
			r.cond.Wait()
		}
		n := r.answered
		if r.err != nil || r.writers == 0 && n == r.durable {
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if err := r.Disk.Flush(); err != nil {
			r.end(fmt.Errorf("flush after write %d: %w", n, err))
			return
		}
		if r.Durable != nil {
			r.Durable(n)
		}
		r.mu.Lock()
		r.durable = n
		r.mu.Unlock()
	}
}
