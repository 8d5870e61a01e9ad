// Package quorumtest has what a test of quorum, or of anything built on it,
// needs in place of a brick: a journal and a stable store in memory that can
// lose what was not synced.
package quorumtest

import (
	"fmt"
	"sync"
)

// frameSize is what one record costs beside its body, as on a real brick.
const frameSize = 24

// Journal is an in-memory journal. Positions count bytes, frames included.
type Journal struct {
	// Max is the most live bytes; set before use. 0: 1 GiB.
	Max int64
	// OnSync, if set before use, runs before each sync, on its goroutine; an
	// error breaks the journal, as a failed fsync does.
	OnSync func() error
	// Discard, if set before use, keeps no bodies: for benchmarks of the rest.
	Discard bool

	mu      sync.Mutex
	recs    []record
	base    int64 // position of recs[0], or next if empty
	next    int64
	synced  int64 // positions below are durable
	broken  error
	waiting []func(error)
	syncing bool
	idle    *sync.Cond
	syncs   int
}

type record struct {
	pos  int64
	body []byte
}

// NewJournal returns an empty journal.
func NewJournal() *Journal {
	j := &Journal{}
	j.idle = sync.NewCond(&j.mu)
	return j
}

func (j *Journal) max() int64 {
	if j.Max == 0 {
		return 1 << 30
	}
	return j.Max
}

// Append is quorum.Journal's.
func (j *Journal) Append(bufs ...[]byte) (int64, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return 0, j.broken
	}
	if j.next-j.base+int64(n+frameSize) > j.max() {
		return 0, errFull
	}
	pos := j.next
	if !j.Discard {
		body := make([]byte, 0, n)
		for _, b := range bufs {
			body = append(body, b...)
		}
		j.recs = append(j.recs, record{pos, body})
	}
	j.next += int64(n + frameSize)
	return pos, nil
}

// Write is quorum.Journal's; records are in the "page cache" at once.
func (j *Journal) Write() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken
}

// Sync is quorum.Journal's. Requests that wait share one sync.
func (j *Journal) Sync(done func(error)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = append(j.waiting, done)
	if !j.syncing {
		j.syncing = true
		go j.commit()
	}
}

func (j *Journal) commit() {
	j.mu.Lock()
	for len(j.waiting) > 0 {
		dones, upTo, err := j.waiting, j.next, j.broken
		j.waiting = nil
		j.mu.Unlock()
		if err == nil && j.OnSync != nil {
			err = j.OnSync()
		}
		j.mu.Lock()
		if err != nil {
			j.broken = err
		} else if upTo <= j.next && upTo > j.synced {
			j.synced = upTo
			j.syncs++
		}
		j.mu.Unlock()
		for _, done := range dones {
			done(err)
		}
		j.mu.Lock()
	}
	j.syncing = false
	j.idle.Broadcast()
	j.mu.Unlock()
}

// ReadAt is quorum.Journal's.
func (j *Journal) ReadAt(pos int64, n int) ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	lo, hi := 0, len(j.recs)
	for lo < hi {
		mid := (lo + hi) / 2
		if j.recs[mid].pos < pos {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(j.recs) || j.recs[lo].pos != pos || len(j.recs[lo].body) != n {
		return nil, fmt.Errorf("no record of %d bytes at %d", n, pos)
	}
	return append([]byte(nil), j.recs[lo].body...), nil
}

// Replay is quorum.Journal's.
func (j *Journal) Replay(f func(pos int64, body []byte) error) error {
	j.mu.Lock()
	recs := append([]record(nil), j.recs...)
	j.mu.Unlock()
	for _, r := range recs {
		if err := f(r.pos, r.body); err != nil {
			return err
		}
	}
	return nil
}

// Trim is quorum.Journal's.
func (j *Journal) Trim(pos int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := 0
	for i < len(j.recs) && j.recs[i].pos < pos {
		i++
	}
	j.recs = append([]record(nil), j.recs[i:]...)
	j.base = j.next
	if len(j.recs) > 0 {
		j.base = j.recs[0].pos
	}
}

// Live is quorum.Journal's.
func (j *Journal) Live() (oldest, next, max int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.base, j.next, j.max()
}

// Syncs counts the syncs that made something durable.
func (j *Journal) Syncs() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.syncs
}

// Crash returns the journal as the next process finds it; j itself must not be
// used again. With power it is a power cut: of the records not synced only the first
// keep survive. Without, the process died and everything survives.
func (j *Journal) Crash(power bool, keep int) *Journal {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing {
		j.idle.Wait()
	}
	n := NewJournal()
	n.Max, n.OnSync, n.base, n.next, n.synced = j.Max, j.OnSync, j.base, j.base, j.base
	for _, r := range j.recs {
		if power && r.pos >= j.synced {
			if keep == 0 {
				break
			}
			keep--
		}
		n.recs = append(n.recs, r)
		n.next = r.pos + int64(len(r.body)+frameSize)
	}
	n.next = max(n.next, min(j.synced, j.next))
	n.synced = min(j.synced, n.next)
	if len(n.recs) == 0 {
		n.base = n.next
	}
	return n
}
