package brick

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// boltStable is a Stable in a file of bbolt.
type boltStable struct {
	dir string
	db  *raftboltdb.BoltStore

	mu   sync.RWMutex // read: a Set runs; write: the file is copied
	kmu  sync.Mutex   // guards keys
	keys map[string]bool
}

// stableBucket is where raft-boltdb keeps values.
const stableBucket = "conf"

// openBolt opens dir/stable.db; it is made only if create is set, since a store
// that lost its promises must not vote. Corrupt: its pages are no whole tree.
func openBolt(dir string, create bool) (*boltStable, error) {
	path := filepath.Join(dir, stableFile)
	s := &boltStable{dir: dir, keys: map[string]bool{}}
	_, err := os.Stat(path)
	switch {
	case err == nil:
		err = walkBolt(path, func(key string, _ []byte) error {
			s.keys[key] = true
			return nil
		})
	case !errors.Is(err, os.ErrNotExist):
	case create:
		err = nil
	default:
		return nil, fault.Newf(fault.Corrupt, "brick.open", path,
			"the file was removed, and with it what this brick promised: replace the brick")
	}
	if err == nil {
		s.db, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	}
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fault.Newf(fault.Busy, "brick.open", path, "another process has it open")
	case errors.Is(err, syscall.ENOSPC):
		return nil, fault.New(fault.NoSpace, "brick.open", path, err)
	case err != nil:
		return nil, fault.New(fault.Corrupt, "brick.open", path, err)
	}
	return s, nil
}

// walkBolt opens a file of bbolt for reading, verifies its pages and calls value
// for each value of stableBucket.
func walkBolt(path string, value func(key string, v []byte) error) (err error) {
	defer caught(path, &err)()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	defer db.Close() // it was only read
	return db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return fault.New(fault.Corrupt, "stable", path, err)
		}
		b := tx.Bucket([]byte(stableBucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error { return value(string(k), v) })
	})
}

// caught turns a panic of bbolt over a damaged page, and the signal of a page
// that cannot be read, into an error of kind Corrupt. The result is deferred.
func caught(path string, err *error) func() {
	was := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(was)
		if r := recover(); r != nil {
			*err = fault.Newf(fault.Corrupt, "stable", path, "a page is damaged: %v", r)
		}
	}
}

func (s *boltStable) Get(key string) (v []byte, err error) {
	defer caught(stableFile, &err)()
	v, err = s.db.Get([]byte(key))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return v, err
}

func (s *boltStable) Set(key string, v []byte) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	defer caught(stableFile, &err)()
	if err := s.db.Set([]byte(key), v); err != nil {
		return err
	}
	s.kmu.Lock()
	s.keys[key] = true
	s.kmu.Unlock()
	return nil
}

func (s *boltStable) Keys() ([]string, error) {
	s.kmu.Lock()
	defer s.kmu.Unlock()
	return sortedNames(s.keys), nil
}

func (s *boltStable) Close() error { return s.db.Close() }

// verify implements verifier on a copy of the file in memory, as the disk has it.
func (s *boltStable) verify(value func(key string, v []byte) error) error {
	mem, err := vfs.Memory("gabion-stable")
	if err != nil {
		return err
	}
	defer mem.Close()
	if err := s.copyTo(mem); err != nil {
		return err
	}
	return walkBolt(fmt.Sprintf("/proc/self/fd/%d", mem.Fd()), value)
}

// copyTo copies the file between two changes of it.
func (s *boltStable) copyTo(to *os.File) error {
	dir, err := vfs.NewOS(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := dir.Open(stableFile)
	if err != nil {
		return err
	}
	defer f.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	buf := make([]byte, scanWindow)
	for off := int64(0); ; {
		n, err := vfs.ReadDirect(f, buf, off)
		if _, werr := to.WriteAt(buf[:n], off); werr != nil {
			return fault.New(fault.Internal, "stable", stableFile, werr)
		}
		off += int64(n)
		if isEOF(err) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Corrupt, "stable", stableFile, err)
		}
	}
}
