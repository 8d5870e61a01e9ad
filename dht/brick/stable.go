package brick

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"sync"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// Stable holds few small values that change rarely: promises, checkpoints. Safe
// for concurrent use.
type Stable interface {
	// Get returns the value of key, nil if there is none. The caller owns it.
	Get(key string) ([]byte, error)
	// Set is durable on return. It does not keep v.
	Set(key string, v []byte) error
	// Keys returns all keys, sorted.
	Keys() ([]string, error)
	Close() error
}

// verifier is an optional power of a Stable: it reads what is on the disk,
// whatever memory has, and returns Corrupt if that is not a whole store.
type verifier interface {
	// verify calls value for every key and value on the disk.
	verify(value func(key string, v []byte) error) error
}

// A stored value is four bytes, the CRC32C over key and value, little endian, and
// the value: bbolt has no checksums of its own.
const stableSum = 4

func sealValue(key string, v []byte) []byte {
	sum := crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, v)
	return append(binary.LittleEndian.AppendUint32(make([]byte, 0, stableSum+len(v)), sum), v...)
}

// openValue returns the value of what is stored under key; it aliases b.
func openValue(key string, b []byte) ([]byte, error) {
	if len(b) >= stableSum {
		v := b[stableSum:]
		sum := crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, v)
		if binary.LittleEndian.Uint32(b) == sum || mutant.On("stable-wrong-sum") {
			return v, nil
		}
	}
	return nil, fault.Newf(fault.Corrupt, "stable", key, "its value in %s does not match its checksum", stableFile)
}

// guardedStable ends with its brick, and ends its brick: a store that could not
// sync, or whose values are damaged, cannot say what it holds.
type guardedStable struct {
	*core
	inner Stable

	setting sync.RWMutex // read: a Set runs; write: a value is set to what it is

	mu   sync.Mutex
	keys map[string]bool // there must be a value
}

// guard verifies every value of inner. Corrupt: one is damaged.
func guard(c *core, inner Stable) (*guardedStable, error) {
	s := &guardedStable{core: c, inner: inner, keys: map[string]bool{}}
	keys, err := inner.Keys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		s.keys[k] = true
		if _, err := s.read(k); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// read returns the verified value of key, nil if there is none.
func (s *guardedStable) read(key string) ([]byte, error) {
	i := s.watch.begin("read", stableFile)
	b, err := s.inner.Get(key)
	s.watch.end(i)
	if err != nil {
		return nil, err
	}
	if b == nil {
		s.mu.Lock()
		lost := s.keys[key]
		s.mu.Unlock()
		if lost {
			return nil, fault.Newf(fault.Corrupt, "stable", key, "its value is gone from %s", stableFile)
		}
		return nil, nil
	}
	return openValue(key, b)
}

func (s *guardedStable) Get(key string) ([]byte, error) {
	if err := s.down(); err != nil {
		return nil, err
	}
	v, err := s.read(key)
	if fault.Is(err, fault.Corrupt) {
		return nil, s.fail("stable", err)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "stable.get", key, err)
	}
	return v, nil
}

func (s *guardedStable) Set(key string, v []byte) error {
	if err := s.down(); err != nil {
		return err
	}
	s.setting.RLock()
	defer s.setting.RUnlock()
	return s.set(key, v)
}

func (s *guardedStable) set(key string, v []byte) error {
	i := s.watch.begin("write", stableFile)
	err := s.inner.Set(key, sealValue(key, v))
	s.watch.end(i)
	switch {
	case err == nil:
		s.mu.Lock()
		s.keys[key] = true
		s.mu.Unlock()
		return nil
	case errors.Is(err, syscall.ENOSPC), fault.Is(err, fault.NoSpace):
		return fault.New(fault.NoSpace, "stable.set", key, err) // bbolt rolled it back
	}
	return s.fail("stable", err)
}

// Keys returns the keys that have values.
func (s *guardedStable) Keys() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedNames(s.keys), nil
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

// Close does nothing: the brick closes what it opened.
func (s *guardedStable) Close() error { return nil }

// rewrite sets every value again to what it is.
func (s *guardedStable) rewrite() error {
	keys, _ := s.Keys()
	for _, k := range keys {
		s.setting.Lock()
		v, err := s.read(k)
		if err == nil {
			err = s.set(k, v)
		}
		s.setting.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// check verifies every value, on the disk too, and returns how many bytes that
// were. Corrupt: one is damaged or gone.
func (s *guardedStable) check() (n int64, err error) {
	keys, _ := s.Keys()
	for _, k := range keys {
		v, err := s.read(k)
		if err != nil {
			return n, err
		}
		n += int64(len(k) + stableSum + len(v))
	}
	d, ok := s.inner.(verifier)
	if !ok {
		return n, nil
	}
	left := map[string]bool{}
	for _, k := range keys {
		left[k] = true
	}
	i := s.watch.begin("read", stableFile)
	defer s.watch.end(i)
	err = d.verify(func(key string, b []byte) error {
		delete(left, key)
		n += int64(len(key) + len(b))
		_, err := openValue(key, b)
		return err
	})
	if err == nil && len(left) > 0 {
		err = fault.Newf(fault.Corrupt, "stable", sortedNames(left)[0], "its value is gone from %s", stableFile)
	}
	return n, err
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

// Keys returns all keys, sorted.
func (s *MemStable) Keys() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedNames(s.m), nil
}

// FlipBit is bit rot: it inverts one bit of byte off of what is stored under key.
// NotFound: there is no such byte.
func (s *MemStable) FlipBit(key string, off int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := slices.Clone(s.m[key])
	if off < 0 || off >= len(v) {
		return fault.Newf(fault.NotFound, "stable.flipbit", key, "no byte %d", off)
	}
	v[off] ^= 1 << (off % 8)
	s.m[key] = v
	return nil
}

// Close does nothing: the store can be used again.
func (s *MemStable) Close() error { return nil }
