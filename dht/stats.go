package dht

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/overlay"
)

// HolderStats count what this node asked of one brick, its own included.
type HolderStats struct {
	Brick                     overlay.BrickRef
	Reads, ReadBytes          uint64 // served with good bytes
	ReadsFailed, ReadsCorrupt uint64 // failed: no answer, an error or absent
	Puts, PutBytes            uint64 // extents' bytes; messages
	PutsFailed                uint64
	// ReadMean and ReadP95 are what reads take lately; zero if unknown. Late: an
	// operation is under way for much longer.
	ReadMean, ReadP95 time.Duration
	Late              bool
}

// Stats are counters since New.
type Stats struct {
	Holders          []HolderStats // sorted by id
	MissedPuts       uint64        // bricks that were missed by successful puts
	Repaired         uint64        // damaged local copies replaced
	RepairsFailed    uint64
	Hedges           uint64 // reads that asked a second holder because the first was slow
	HedgesWon        uint64 // of them, answered by the second one
	Probes           uint64 // reads that only ask whether a slow brick still is
	PutBytesInFlight int
}

type holderCount struct {
	reads, readBytes, failed, corrupt, puts, putBytes, putsFailed atomic.Uint64
}

type statistics struct {
	mu      sync.RWMutex // guards the map
	holders map[overlay.BrickRef]*holderCount

	missed, repaired, repairsFailed atomic.Uint64
	hedges, hedgesWon, probes       atomic.Uint64
}

// holder returns the counters of b; beyond HoldersMax bricks they go nowhere.
func (s *statistics) holder(b overlay.BrickRef) *holderCount {
	s.mu.RLock()
	h := s.holders[b]
	s.mu.RUnlock()
	if h != nil {
		return h
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h = s.holders[b]; h == nil {
		h = new(holderCount)
		if len(s.holders) < HoldersMax {
			s.holders[b] = h
		}
	}
	return h
}

func (s *statistics) put(b overlay.BrickRef, n int, err error) {
	h := s.holder(b)
	if err != nil {
		h.putsFailed.Add(1)
		return
	}
	h.puts.Add(1)
	h.putBytes.Add(uint64(n))
}

func (s *statistics) read(b overlay.BrickRef, n int, err error) {
	h := s.holder(b)
	switch {
	case err == nil:
		h.reads.Add(1)
		h.readBytes.Add(uint64(n))
	case fault.Is(err, fault.Corrupt):
		h.corrupt.Add(1)
	default:
		h.failed.Add(1)
	}
}

// Stats returns a copy of the counters.
func (s *Store) Stats() Stats {
	st := &s.stats
	out := Stats{MissedPuts: st.missed.Load(), Repaired: st.repaired.Load(),
		RepairsFailed: st.repairsFailed.Load(), Hedges: st.hedges.Load(), HedgesWon: st.hedgesWon.Load(), Probes: st.probes.Load(), PutBytesInFlight: s.bytes.inFlight()}
	st.mu.RLock()
	for b, h := range st.holders {
		out.Holders = append(out.Holders, HolderStats{Brick: b, Reads: h.reads.Load(), ReadBytes: h.readBytes.Load(),
			ReadsFailed: h.failed.Load(), ReadsCorrupt: h.corrupt.Load(),
			Puts: h.puts.Load(), PutBytes: h.putBytes.Load(), PutsFailed: h.putsFailed.Load()})
	}
	st.mu.RUnlock()
	for i := range out.Holders {
		h := &out.Holders[i]
		h.ReadMean, h.ReadP95, h.Late = s.health.view(h.Brick)
	}
	slices.SortFunc(out.Holders, func(a, b HolderStats) int { return compareBricks(a.Brick, b.Brick) })
	return out
}
