package scsi

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

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
// concurrently. All but Attach and SetState must answer at once; Device is asked
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
// after LU.ReservationsChanged is done on the node that holds the volume, if that
// is another one. A later holder calls Load before it serves its first command.
//
// Registrations outlive a loss of power of the whole pool also without APTPL: a
// volume is not one machine that is switched off.
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

// LU is one logical unit: the device server and task manager of one volume on
// one node. Methods may be called concurrently.
type LU struct {
	cfg    Config
	ctx    context.Context // ends with Close: attaching and storing stop to wait
	cancel context.CancelFunc

	descriptors   atomic.Bool             // D_SENSE of the control mode page
	writeProtect  atomic.Bool             // SWP of the control mode page
	serving       atomic.Pointer[serving] // the device whose commands are carried out
	size          atomic.Int64            // bytes, as the initiators were told
	unkicked      atomic.Bool             // something may wait for a Kick of the device
	reservationMu sync.Mutex              // one PERSISTENT RESERVE OUT at a time; taken before mu

	mu           sync.Mutex
	tasks        taskSet
	nexuses      map[*Nexus]struct{}
	lost         map[NexusID]bool // closed nexuses that were not seen again
	reserved     *Nexus           // holder of the SPC-2 reservation
	reservations reservations
	version      uint64      // of reservations, as the Store has it
	groups       []PortGroup // as the initiators were told
	attaching    bool
	unattached   []*Command // wait for the volume
}

// serving is an attached device whose reservations are known.
type serving struct{ dev target.Device }

// NewLU makes a logical unit. It does not attach the volume.
func NewLU(cfg Config) *LU {
	if cfg.Reservations == nil {
		cfg.Reservations = &MemoryStore{}
	}
	lu := &LU{cfg: cfg, nexuses: map[*Nexus]struct{}{}, lost: map[NexusID]bool{}}
	lu.ctx, lu.cancel = context.WithCancel(context.Background())
	lu.size.Store(cfg.Backend.Geometry().Size)
	lu.groups = cloneGroups(cfg.Backend.Groups())
	return lu
}

// Close ends the use of the logical unit. Its nexuses must be closed first.
func (lu *LU) Close() { lu.cancel() }

// Transfer says how many bytes of data-in a command may return at most, and how
// many of data-out it asks for. Both are bounded by TransferMax, whatever the
// command says: one that asks for more is refused by Execute with no data. An
// unknown command asks for none. At most one of the two is not zero.
func (lu *LU) Transfer(cdb []byte) (in, out int) {
	op, _, _ := lookup(cdb)
	if op == nil {
		return 0, 0
	}
	block := lu.block()
	if op.in != nil {
		n := op.in(cdb, block)
		if !op.medium || op.code == 0x9e {
			n = min(n, ParameterMax)
		}
		if n <= TransferMax {
			in = int(n)
		}
	}
	if op.out != nil {
		n := op.out(cdb, block)
		if n <= TransferMax && (op.medium || n <= ParameterMax) {
			out = int(n)
		}
	}
	return in, out
}

// device is the attached volume, nil if it must be attached first, or the
// reservations read.
func (lu *LU) device() target.Device {
	d := lu.cfg.Backend.Device()
	if d == nil {
		return nil
	}
	if s := lu.serving.Load(); s != nil && s.dev == d {
		return d
	}
	return nil
}

// block is the size of a block in bytes.
func (lu *LU) block() int {
	if d := lu.device(); d != nil {
		return d.BlockSize()
	}
	return lu.cfg.Backend.Geometry().BlockSize
}

// capacity is the number of blocks and their size in bytes.
func (lu *LU) capacity() (blocks uint64, block int) {
	if d := lu.device(); d != nil {
		return uint64(d.Size()) / uint64(d.BlockSize()), d.BlockSize()
	}
	g := lu.cfg.Backend.Geometry()
	return uint64(g.Size) / uint64(g.BlockSize), g.BlockSize
}

// start carries out a command that nothing older keeps from it.
func (c *Command) start() {
	if c.t.op.medium {
		dev := c.lu().device()
		if dev == nil {
			c.lu().attach(c)
			return
		}
		c.t.dev = dev
	}
	c.begun()
}

// begun carries c out, unless a reservation came up while it waited.
func (c *Command) begun() {
	if c.t.n.denied(c) {
		c.conflict()
		return
	}
	c.t.op.run(c)
}

// attach begins c once the volume is attached. One goroutine attaches for all.
func (lu *LU) attach(c *Command) {
	lu.mu.Lock()
	lu.unattached = append(lu.unattached, c)
	first := !lu.attaching
	lu.attaching = true
	lu.mu.Unlock()
	if first {
		go lu.attachAll()
	}
}

func (lu *LU) attachAll() {
	dev, err := lu.attachNow()
	lu.mu.Lock()
	cs := lu.unattached
	lu.unattached, lu.attaching = nil, false
	lu.mu.Unlock()
	for _, c := range cs {
		if err != nil {
			c.failError(err)
			continue
		}
		c.t.dev = dev
		c.begun()
	}
	lu.Kick()
}

// attachNow attaches the volume and reads who may use it, in this order: what
// another node saves after that is passed to ReservationsChanged.
func (lu *LU) attachNow() (target.Device, error) {
	dev, err := lu.cfg.Backend.Attach(lu.ctx)
	if err != nil {
		return nil, err
	}
	if err := lu.load(lu.ctx); err != nil {
		return nil, err
	}
	lu.serving.Store(&serving{dev})
	return dev, nil
}

// Kick tells that the transport has no further command at hand: what was
// batched must get going. Cheap when there is nothing.
func (lu *LU) Kick() {
	if lu.unkicked.Load() && lu.unkicked.CompareAndSwap(true, false) {
		if s := lu.serving.Load(); s != nil {
			s.dev.Kick()
		}
	}
}

// Changed tells that Geometry or Groups may say something new; the initiators
// are told with unit attentions. A change of size is also noticed by the next
// command.
func (lu *LU) Changed() {
	blocks, block := lu.capacity()
	groups := lu.cfg.Backend.Groups()
	size := int64(blocks) * int64(block)
	lu.mu.Lock()
	defer lu.mu.Unlock()
	resized := lu.size.Swap(size) != size
	moved := !slices.EqualFunc(lu.groups, groups, func(a, b PortGroup) bool {
		return a.ID == b.ID && a.State == b.State && slices.Equal(a.Ports, b.Ports)
	})
	if moved {
		lu.groups = cloneGroups(groups)
	}
	for n := range lu.nexuses {
		if resized {
			n.notify(attentionCapacity)
		}
		if moved {
			n.notify(attentionAccess)
		}
	}
}

func cloneGroups(gs []PortGroup) []PortGroup {
	out := slices.Clone(gs)
	for i := range out {
		out[i].Ports = slices.Clone(out[i].Ports)
	}
	return out
}

// notifyOthers makes a unit attention pending for all nexuses but by.
func (lu *LU) notifyOthers(by *Nexus, s sense) {
	lu.mu.Lock()
	defer lu.mu.Unlock()
	for n := range lu.nexuses {
		if n != by {
			n.notify(s)
		}
	}
}

// Reset is LOGICAL UNIT RESET, and what a target reset does to each logical
// unit: all commands are aborted, SPC-2 reservations end, mode parameters return
// to their defaults, and every nexus is told. done runs once, when nothing of
// the aborted commands can take effect any more.
func (lu *LU) Reset(done func()) {
	lu.mu.Lock()
	lu.reserved = nil
	lu.descriptors.Store(false)
	lu.writeProtect.Store(false)
	lu.enforce()
	lu.mu.Unlock()
	lu.notifyOthers(nil, attentionReset)
	lu.abort(func(*Command) bool { return true }, func(int) { done() })
}
