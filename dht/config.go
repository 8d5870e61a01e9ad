package dht

import (
	"log/slog"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
)

// Limits.
const (
	// ExtentMax bounds one extent, in bytes.
	ExtentMax = 1200 << 10
	// PutBytesMax bounds the bytes that one Store has under way in puts, all
	// copies counted.
	PutBytesMax = 32 << 20
	// PutMessageMax bounds the extent bytes of one put message; a single extent
	// always fits.
	PutMessageMax = 2 << 20
	// PutCountMax bounds the extents of one put message.
	PutCountMax = 1024
	// AddrsMax bounds the addresses of one delete or stat message.
	AddrsMax = 4096
	// ListPageMax bounds the extents of one page of a listing.
	ListPageMax = 16384
	// ListMax bounds the extents of one whole listing.
	ListMax = 32 << 20
	// ListSnapshotsMax bounds the listings that a server keeps for their next page.
	ListSnapshotsMax = 4
	// ReadHoldersMax bounds the bricks that one read tries.
	ReadHoldersMax = 64
	// RepairQueueMax bounds the damaged copies that wait for their replacement;
	// further ones are found again by the next read.
	RepairQueueMax = 256
	// RepairsMax bounds the replacements that run at once.
	RepairsMax = 2
	// FencesMax bounds the volumes whose epoch is kept in memory, for each brick.
	FencesMax = 16384
	// DiskBytesMax bounds the bytes of puts under way on one brick of this node,
	// so that a disk that hangs does not keep the others from theirs.
	DiskBytesMax = PutBytesMax / 4
	// HoldersMax bounds the bricks that statistics are kept for.
	HoldersMax = 4096
)

// Defaults of Config.
const (
	PutGraceDefault    = 2 * time.Second
	PutTimeoutDefault  = 30 * time.Second
	ReadTimeoutDefault = 5 * time.Second
	ProbeEveryDefault  = 2 * time.Second
)

// Config of a Store. Transport and View are required.
type Config struct {
	Transport link.Transport
	View      View
	Log       *slog.Logger
	// PutGrace is how long a put that is durable on a majority waits for the
	// other holders.
	PutGrace time.Duration
	// PutTimeout bounds one put or delete message, ReadTimeout one attempt to
	// read from one holder.
	PutTimeout  time.Duration
	ReadTimeout time.Duration
	// ProbeEvery is how often a slow brick is read from, or waited for by a put,
	// to see whether it still is.
	ProbeEvery time.Duration
	// Gently runs what nobody waits for, and returns when that has ended. nil: in place.
	Gently func(func())
	// OnCorrupt is told of every copy that was found damaged. It must not block.
	OnCorrupt func(addr ident.Addr, b overlay.BrickRef)
}

// View is what the store wants to know of the pool; overlay.View has it.
type View interface {
	Self() ident.NodeID
	Nodes() []overlay.Node
	State(id ident.NodeID) overlay.State
	LaneCount() int
	Lane(i int) []overlay.BrickRef
}

// Brick is what the store wants of a local disk; *brick.Brick has it.
type Brick interface {
	ID() ident.BrickID
	Stable() brick.Stable
	PutExtents(xs []brick.Extent) error
	PutExtentsGently(xs []brick.Extent) error
	ReadExtent(addr ident.Addr, p []byte, off int64) error
	ReadExtentGently(addr ident.Addr, p []byte) error
	TryReadExtent(addr ident.Addr, p []byte, off int64) bool
	StatExtent(addr ident.Addr) (size int64, ok bool)
	ReplaceExtent(x brick.Extent) error
	Stalled() <-chan struct{}
	NoteDamage(addr ident.Addr, err error)
	DeleteExtents(addrs []ident.Addr) error
	ListVolume(v ident.VolumeID) []brick.Ref
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.PutGrace == 0 {
		c.PutGrace = PutGraceDefault
	}
	if c.PutTimeout == 0 {
		c.PutTimeout = PutTimeoutDefault
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = ReadTimeoutDefault
	}
	if c.ProbeEvery == 0 {
		c.ProbeEvery = ProbeEveryDefault
	}
	if c.Gently == nil {
		c.Gently = atOnce
	}
	if c.OnCorrupt == nil {
		c.OnCorrupt = func(ident.Addr, overlay.BrickRef) {}
	}
	return c
}
