// Package target is the contract between the protocols (nbd, iscsi) and the
// volumes behind them.
package target

import "context"

// Device is an attached, byte-addressed, flushable device. All methods may be
// called concurrently. Offsets and lengths are in bytes and multiples of
// BlockSize, within [0, Size); anything else is a fault of kind Invalid.
//
// Write, Zero, Trim and Flush are asynchronous so that one goroutine can keep
// many in flight: they never wait for a network or a disk, and call done
// exactly once, possibly before they return and possibly on another goroutine.
// done must not block. Every operation ends: with nil or with an error after
// the volume's stated time.
//
// Ordering: an operation called after another's done takes effect after it.
// Operations on overlapping ranges that are under way at the same time take
// effect in some order, as on any disk. A Flush covers every operation whose
// done was called before Flush was called, on whichever connection it came.
type Device interface {
	// Size in bytes; may grow.
	Size() int64
	// BlockSize is the logical block size in bytes: 512 or 4096.
	BlockSize() int
	ReadOnly() bool
	// TryReadAt fills p if it can do so without waiting and reports whether it
	// did. It is the fast path of ReadAt and never returns unverified bytes.
	TryReadAt(p []byte, off int64) bool
	// ReadAt fills p, waiting as long as it must or until ctx ends.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Write keeps no reference to p once it returns. fua asks for durability of
	// this write before done.
	Write(p []byte, off int64, fua bool, done func(error))
	// Flush makes every completed operation durable before done(nil).
	Flush(done func(error))
	// Zero makes [off, off+n) read as zeros. Trim is the same but may be
	// ignored by a device that cannot; on gabion both cost one map record.
	Zero(off, n int64, fua bool, done func(error))
	Trim(off, n int64, fua bool, done func(error))
	// Kick tells that the caller has no further operation at hand: whatever
	// was batched up to now must get going.
	Kick()
}

// StretchFlags say what is known of a stretch of a device.
type StretchFlags uint32

const (
	// Hole: no space is kept for it. A hole reads as zeros.
	Hole StretchFlags = 1 << iota
	// Zero: it reads as zeros.
	Zero
	// Dirty: it may have changed since the snapshot that was asked about.
	Dirty
)

// Stretch is a part of a device of which one thing is true.
type Stretch struct {
	Length int64 // bytes, a multiple of BlockSize, > 0
	Flags  StretchFlags
}

// Mapper is a Device that can tell what it stores. A Session may implement it.
type Mapper interface {
	// Map appends to dst the stretches of [off, off+n) in order, neighbours with
	// equal flags merged, at most limit of them: what is left out at the end is
	// not described. At least one is appended. snapshot is "" for what is
	// allocated (Hole, Zero), else the name of a snapshot, for what may have changed
	// since (Dirty). It waits as ReadAt does and fails with the same kinds;
	// NotFound: no such snapshot.
	Map(ctx context.Context, off, n int64, snapshot string, limit int, dst []Stretch) ([]Stretch, error)
	// Snapshots lists the names that Map takes, sorted.
	Snapshots() []string
}

// Session is one client's use of a device. Closing it ends that use.
type Session interface {
	Device
	Close()
}

// Export describes one exported volume.
type Export struct {
	Name        string
	Description string
	Size        int64
	BlockSize   int
	ReadOnly    bool
}

// Exports is how a protocol finds volumes.
type Exports interface {
	// List returns all exports, sorted by name.
	List(ctx context.Context) ([]Export, error)
	// Stat describes one export without attaching it; NotFound if absent.
	Stat(ctx context.Context, name string) (Export, error)
	// Open attaches the volume on this node if need be (Busy, with the holder
	// named, while another node has it in use) and begins a session. peer is the client's
	// address, for logs. gone is closed when the attachment is lost (fenced,
	// deleted, shut down): the session must then be ended.
	Open(ctx context.Context, name, peer string) (s Session, gone <-chan struct{}, err error)
}
