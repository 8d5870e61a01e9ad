package scsi

import (
	"context"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
)

// ReservationStateMax is the longest state of persistent reservations, in bytes.
const ReservationStateMax = 4 << 10

// MemoryStore is a Store that lasts as long as the process.
type MemoryStore struct {
	mu      sync.Mutex
	state   []byte
	version uint64
}

func (s *MemoryStore) Load(context.Context) ([]byte, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state), s.version, nil
}

func (s *MemoryStore) Save(_ context.Context, version uint64, state []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != s.version {
		return fault.Newf(fault.Conflict, "reservations save", "", "version %d is there, not %d", s.version, version)
	}
	s.state, s.version = slices.Clone(state), version+1
	return nil
}
