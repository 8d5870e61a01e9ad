package scsi

import (
	"context"
	"log/slog"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/target"
)

// Identity is what a logical unit says of itself in INQUIRY. It must be the
// same on every node, except for the port, which is the node's own.
type Identity struct {
	Volume ident.VolumeID // names of the logical unit are derived from it
	// Target is the iSCSI name of the target device, and the stem of the name of
	// its ports (RFC 7143, 4.2.7: name,t,0xTPGT).
	Target string
	// Product is shown as the product identification; at most 16 bytes of ASCII
	// count. Default "volume".
	Product string
	// Revision is shown as the product revision level; at most 4 bytes count.
	Revision string
	// Port is the relative identifier of this node's target port, from 1, and the
	// target portal group tag. It is the node's for ever: registrations of
	// persistent reservations are stored with it.
	Port uint16
}

// Access is an asymmetric access state (SPC-4, 5.11.2).
type Access uint8

const (
	ActiveOptimized    Access = 0x0 // this node holds the volume, or would get it at the first access
	ActiveNonOptimized Access = 0x1
	Standby            Access = 0x2 // another node holds the volume
	Unavailable        Access = 0x3
	Transitioning      Access = 0xf // the volume is being attached
)

// PortGroup is one target port group. gabion has one for each node, with one
// port; nothing here depends on that.
type PortGroup struct {
	ID    uint16
	State Access
	Ports []uint16 // relative target port identifiers
}

// Geometry describes the medium. It is known without attaching the volume.
type Geometry struct {
	Size       int64 // bytes
	BlockSize  int   // bytes: 512 or 4096
	ReadOnly   bool
	WriteCache bool // a plain write may be lost by a power cut until it is flushed
}

// Backend is how a logical unit reaches its volume. All methods may be called
// concurrently. All but Attach and SetState must answer at once: they are asked
// for every command.
type Backend interface {
	Geometry() Geometry
	// Device is the attached volume, nil while it is not attached here. A
	// later attachment must be another value (they are compared).
	Device() target.Device
	// Attach attaches the volume on this node unless it is. Busy: another node has
	// it in use; the command ends with NOT READY, TARGET PORT IN STANDBY STATE.
	// Other kinds as in the table of faults. It returns what Device then returns.
	Attach(ctx context.Context) (target.Device, error)
	// Groups lists all port groups of the volume with their states, as this node
	// knows them, sorted by ID; the caller does not change it.
	Groups() []PortGroup
	// SetState asks for a state of a port group: ActiveOptimized of the own one is
	// a takeover. Invalid: this cannot be had (the sender is told INVALID FIELD IN
	// PARAMETER LIST); other kinds: SET TARGET PORT GROUPS COMMAND FAILED.
	SetState(ctx context.Context, group uint16, s Access) error
}

// Store keeps the state of persistent reservations with the volume, for every
// node the same. The bytes are opaque, at most ReservationStateMax.
//
// What a reservation forbids is enforced where the volume is attached, so
// whoever implements Store must see to it that a Save on any node returns only
// after LU.ReservationsChanged was called on the node that holds the volume.
// A later holder calls Load before it serves its first command.
type Store interface {
	// Load returns the newest state and its version; (nil, 0) if none was saved.
	// A Save that returned before Load was called is seen by it.
	Load(ctx context.Context) (state []byte, version uint64, err error)
	// Save makes state durable in place of version, with version+1. Conflict: it is
	// not the newest any more; Load and try again.
	Save(ctx context.Context, version uint64, state []byte) error
}

// Config describes a logical unit.
type Config struct {
	Identity     Identity
	Backend      Backend
	Reservations Store        // nil: a MemoryStore
	Log          *slog.Logger // nil: nothing is logged
}

// Transfer says how many bytes of data-in a command may return at most, and how
// many of data-out it asks for. Both are bounded by TransferMax, whatever the
// command says: one that asks for more is refused by Execute with no data. An
// unknown command asks for none. At most one of the two is not zero.
func (lu *LU) Transfer(cdb []byte) (in, out int) { return 0, 0 }

// Kick tells that the transport has no further command at hand: what was
// batched must get going. Cheap when there is nothing.
func (lu *LU) Kick() {}

// Changed tells that Geometry or Groups may say something new; the initiators
// are told with unit attentions. A change of size is also noticed by the next
// command.
func (lu *LU) Changed() {}

// ReservationsChanged tells that another node saved state with version in the
// Store. When it returns, every command that begins is held to it. Invalid: the
// state cannot be read; then no command that a reservation could forbid is carried out.
func (lu *LU) ReservationsChanged(state []byte, version uint64) error { return nil }

// Reset is LOGICAL UNIT RESET, and what a target reset does to each logical
// unit: all commands are aborted, SPC-2 reservations end, mode parameters return
// to their defaults. by is the nexus it came by, or nil. done runs once, when
// nothing of the aborted commands can take effect any more.
func (lu *LU) Reset(by *Nexus, done func()) { done() }

// Close ends the use of the logical unit. Its nexuses must be closed first.
func (lu *LU) Close() {}

// LU is one logical unit: the device server and task manager of one volume on
// one node. Methods may be called concurrently.
type LU struct {
	cfg Config
}

// NewLU makes a logical unit. It does not attach the volume.
func NewLU(cfg Config) *LU { return &LU{cfg: cfg} }

func (lu *LU) execute(_ *Nexus, c *Command) {
	lu.cfg.Log.Debug("command", "name", Name(c.CDB))
	c.Done(c)
}
