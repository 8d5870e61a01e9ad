package blockdev

import (
	"context"
	"sync"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// snapshotSession is one client's use of a snapshot, at the volume's holder. It
// reads through a root that never changes, so that it needs no lease: whatever
// it finds is what was there. When the snapshot is deleted its reads fail.
type snapshotSession struct {
	v     *Volume
	s     *snapshot
	once  sync.Once
	close func()
}

// openSnapshot finds a snapshot, after making sure that this node still decides
// which there are.
func (v *Volume) openSnapshot(ctx context.Context, name string) (*snapshot, error) {
	if err := v.waitLease(ctx); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.err != nil {
		return nil, v.err
	}
	s := v.findSnapshot(name)
	if s == nil {
		return nil, v.noSnapshot("snapshot", name)
	}
	return s, nil
}

// Close implements target.Session.
func (d *snapshotSession) Close() { d.once.Do(d.close) }

// Size is what the volume had when the snapshot was made, in bytes.
func (d *snapshotSession) Size() int64    { return d.s.Size }
func (d *snapshotSession) BlockSize() int { return d.v.cfg.BlockSize }
func (d *snapshotSession) ReadOnly() bool { return true }
func (d *snapshotSession) Kick()          {}

func (d *snapshotSession) name() string { return d.v.cfg.Name + "@" + d.s.Name }

func (d *snapshotSession) check(op string, off, n int64) error {
	bs := int64(d.v.cfg.BlockSize)
	if off < 0 || n < 0 || off > d.s.Size-n || off%bs != 0 || n%bs != 0 {
		return fault.Newf(fault.Invalid, "snapshot."+op, d.name(), "[%d, +%d) is not a range of %d-byte blocks within %d bytes", off, n, bs, d.s.Size)
	}
	return nil
}

// over tells why there is nothing to read any more, or nil.
func (d *snapshotSession) over() error {
	if err := d.v.Err(); err != nil {
		return err
	}
	select {
	case <-d.s.gone:
		return fault.Newf(fault.NotFound, "snapshot.read", d.name(), "it was deleted")
	default:
		return nil
	}
}

// TryReadAt implements target.Device.
func (d *snapshotSession) TryReadAt(p []byte, off int64) bool {
	if d.check("read", off, int64(len(p))) != nil || off%BlockSize != 0 || len(p)%BlockSize != 0 || d.over() != nil {
		return false
	}
	return d.read(p, uint64(off/BlockSize), cached{d.v}, d.v.tryRun) == nil
}

// read resolves whole blocks through the root.
func (d *snapshotSession) read(p []byte, first uint64, l extentmap.Loader, read func(r run, p []byte) error) error {
	var buf [readSpanMax]extentmap.Ptr
	for len(p) > 0 {
		n := min(len(p)/BlockSize, readSpanMax)
		if err := d.s.Root.Lookup(first, buf[:n], l); err != nil {
			return err
		}
		if err := d.v.eachRun(p[:n*BlockSize], buf[:n], read); err != nil {
			return err
		}
		p, first = p[n*BlockSize:], first+uint64(n)
	}
	return nil
}

// ReadAt implements target.Device.
func (d *snapshotSession) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.check("read", off, int64(len(p))); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d.v.cfg.IOTimeout)
	defer cancel()
	stop := context.AfterFunc(d.v.ctx, cancel)
	defer stop()
	first := off / BlockSize * BlockSize
	end := (off + int64(len(p)) + BlockSize - 1) / BlockSize * BlockSize
	whole := p
	if end-first != int64(len(p)) {
		whole = make([]byte, end-first)
	}
	err := d.read(whole, uint64(first/BlockSize), waiting{d.v, ctx}, func(r run, p []byte) error { return d.v.waitRun(ctx, r, p) })
	if over := d.over(); over != nil {
		return over
	}
	if err == nil && len(whole) != len(p) {
		copy(p, whole[off-first:])
	}
	return err
}

func (d *snapshotSession) refuse(op string, off, n int64) error {
	if err := d.check(op, off, n); err != nil {
		return err
	}
	return fault.Newf(fault.ReadOnly, "snapshot."+op, d.name(), "a snapshot does not change")
}

// Write is refused, as are Zero and Trim.
func (d *snapshotSession) Write(p []byte, off int64, _ bool, done func(error)) {
	done(d.refuse("write", off, int64(len(p))))
}

func (d *snapshotSession) Zero(off, n int64, _ bool, done func(error)) {
	done(d.refuse("zero", off, n))
}

func (d *snapshotSession) Trim(off, n int64, _ bool, done func(error)) {
	done(d.refuse("trim", off, n))
}

// Flush has nothing to do: a snapshot is durable when it comes to be.
func (d *snapshotSession) Flush(done func(error)) { done(d.over()) }

// Map implements target.Mapper. It takes the names of older snapshots.
func (d *snapshotSession) Map(ctx context.Context, off, n int64, snapshot string, limit int, dst []target.Stretch) ([]target.Stretch, error) {
	if err := d.check("map", off, n); err != nil {
		return dst, err
	}
	out, err := d.v.mapRange(ctx, mapping{of: d.s, snapshot: snapshot, limit: limit, off: off, end: off + n}, dst)
	if over := d.over(); over != nil {
		return dst, over
	}
	return out, err
}

// Snapshots implements target.Mapper.
func (d *snapshotSession) Snapshots() []string { return d.v.snapshotNames(d.s.ID) }

var _ target.Session = (*snapshotSession)(nil)
var _ target.Mapper = (*snapshotSession)(nil)
