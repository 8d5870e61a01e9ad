package quorumtest

import (
	"errors"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
)

var errFull = fault.New(fault.NoSpace, "journal.append", "", errors.New("the journal is full"))

// Stable is an in-memory stable store; what was Set survives every crash.
type Stable struct {
	// OnSet, if set before use, runs before each Set; its error fails the Set.
	OnSet func(key string) error

	mu sync.Mutex
	m  map[string][]byte
}

// NewStable returns an empty store.
func NewStable() *Stable { return &Stable{m: make(map[string][]byte)} }

// Get is quorum.Stable's.
func (s *Stable) Get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.m[key]...), nil
}

// Set is quorum.Stable's.
func (s *Stable) Set(key string, v []byte) error {
	if s.OnSet != nil {
		if err := s.OnSet(key); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[key] = append([]byte(nil), v...)
	return nil
}

// Close does nothing.
func (s *Stable) Close() error { return nil }
