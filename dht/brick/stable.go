package brick

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Stable holds few small values that change rarely: promises, checkpoints. Safe
// for concurrent use.
type Stable interface {
	// Get returns the value of key, nil if there is none. The caller owns it.
	Get(key string) ([]byte, error)
	// Set is durable on return. It does not keep v.
	Set(key string, v []byte) error
	Close() error
}

// boltStable is a Stable in a file of bbolt.
type boltStable struct{ db *raftboltdb.BoltStore }

// openBolt opens dir/stable.db; it is made only if create is set, since a store
// that lost its promises must not vote.
func openBolt(dir string, create bool) (*boltStable, error) {
	path := filepath.Join(dir, stableFile)
	if _, err := os.Stat(path); !create && errors.Is(err, os.ErrNotExist) {
		return nil, fault.Newf(fault.Corrupt, "brick.open", path,
			"the file was removed, and with it what this brick promised: replace the brick")
	}
	db, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fault.Newf(fault.Busy, "brick.open", path, "another process has it open")
	case errors.Is(err, syscall.ENOSPC):
		return nil, fault.New(fault.NoSpace, "brick.open", path, err)
	case err != nil:
		return nil, fault.New(fault.Corrupt, "brick.open", path, err)
	}
	return &boltStable{db}, nil
}

func (s *boltStable) Get(key string) ([]byte, error) {
	v, err := s.db.Get([]byte(key))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return v, err
}

func (s *boltStable) Set(key string, v []byte) error { return s.db.Set([]byte(key), v) }
func (s *boltStable) Close() error                   { return s.db.Close() }

// guardedStable ends with its brick, and ends its brick: a store that could not
// sync cannot say what it holds.
type guardedStable struct {
	*core
	Stable
}

func (s *guardedStable) Get(key string) ([]byte, error) {
	if err := s.down(); err != nil {
		return nil, err
	}
	v, err := s.Stable.Get(key)
	if err != nil {
		return nil, fault.New(fault.Internal, "stable.get", key, err)
	}
	return v, nil
}

func (s *guardedStable) Set(key string, v []byte) error {
	if err := s.down(); err != nil {
		return err
	}
	err := s.Stable.Set(key, v)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), fault.Is(err, fault.NoSpace):
		return fault.New(fault.NoSpace, "stable.set", key, err) // bbolt rolled it back
	}
	return s.fail("stable", err)
}

// MemStable is a Stable in memory whose Sets are durable at once. It outlives
// the brick and the power cuts of a test.
type MemStable struct {
	mu sync.Mutex
	m  map[string][]byte
}

// NewMemStable makes an empty store.
func NewMemStable() *MemStable { return &MemStable{m: map[string][]byte{}} }

func (s *MemStable) Get(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.m[key]), nil
}

func (s *MemStable) Set(key string, v []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[key] = append([]byte{}, v...)
	return nil
}

// Close does nothing: the store can be used again.
func (s *MemStable) Close() error { return nil }
