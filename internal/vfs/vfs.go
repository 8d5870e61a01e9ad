// Package vfs is the seam between gabion and disks: everything a brick does to
// a disk goes through FS. OS is the real one; Mem keeps synced and unsynced
// bytes apart, so that a test can cut the power at any moment.
package vfs

// File is an open file. Methods may be called concurrently, except that
// overlapping reads and writes give unspecified (but not torn below 512 bytes)
// results.
type File interface {
	// ReadAt is io.ReaderAt.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt is io.WriterAt. On return the bytes survive the death of the
	// process, not a power cut.
	WriteAt(p []byte, off int64) (int, error)
	// WritevAt writes the concatenation of bufs at off in as few calls as it can.
	WritevAt(bufs [][]byte, off int64) (int, error)
	// Sync makes all completed writes to the file durable (fdatasync). After an
	// error nothing may be assumed about any write since the last success, and
	// the file must not be synced again: the brick is broken.
	Sync() error
	// PunchHole gives [off, off+n) back to the file system; the range reads as
	// zeros and the size stays. Without support it zeroes nothing and returns a
	// fault of kind Invalid.
	PunchHole(off, n int64) error
	// Truncate sets the size.
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// TryReader is an optional power of a File: a read that never waits for the
// disk.
type TryReader interface {
	// TryReadAt fills p from off if all of it is in memory and reports whether
	// it did. It never blocks on I/O.
	TryReadAt(p []byte, off int64) bool
}

// FS is one disk's directory tree. Paths are slash separated and relative to
// the root that FS was made with.
type FS interface {
	// Create makes a new file and fails with kind Exists if it is there.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing; NotFound if absent.
	Open(name string) (File, error)
	// Remove deletes a file; NotFound if absent.
	Remove(name string) error
	// Rename replaces newname atomically. Durable after SyncDir.
	Rename(oldname, newname string) error
	// List returns the names in dir, sorted; NotFound if dir is absent.
	List(dir string) ([]string, error)
	// MkdirAll makes dir and its parents.
	MkdirAll(dir string) error
	// SyncDir makes creations, renames and removals in dir durable.
	SyncDir(dir string) error
	// Free reports the bytes available to gabion and the size of the disk.
	Free() (free, total int64, err error)
	// Lock takes an exclusive advisory lock on name, creating it; Busy if held.
	Lock(name string) (unlock func(), err error)
}
