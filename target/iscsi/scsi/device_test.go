package scsi

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// commandDevice is a device whose operations are commands: what the exerciser of
// targettest is run against.
type commandDevice struct {
	r *rig
	n *Nexus
}

func exerciseOpen(open func() (commandDevice, error)) func() (target.Device, error) {
	return func() (target.Device, error) { return open() }
}

func (d commandDevice) Size() int64    { return d.r.mem.Size() }
func (d commandDevice) BlockSize() int { return d.r.mem.BlockSize() }
func (d commandDevice) ReadOnly() bool { return false }

func (d commandDevice) cdb16(code, flags byte, off, n int64) []byte {
	block := int64(d.BlockSize())
	b := binary.BigEndian.AppendUint64([]byte{code, flags}, uint64(off/block))
	return append(binary.BigEndian.AppendUint32(b, uint32(n/block)), 0, 0)
}

// execute runs a command; done is told how it ended.
func (d commandDevice) execute(cdb, out, in []byte, done func(error)) {
	d.n.Execute(&Command{CDB: cdb, Out: out, In: in, Done: func(c *Command) {
		if c.Status != Good {
			done(fault.Newf(fault.Internal, "command", Name(cdb), "%s", result(c)))
			return
		}
		done(nil)
	}})
}

func (d commandDevice) TryReadAt(p []byte, off int64) bool { return false }

func (d commandDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	ended := make(chan error, 1)
	d.execute(d.cdb16(0x88, 0, off, int64(len(p))), nil, p, func(err error) { ended <- err })
	d.Kick()
	return <-ended
}

func (d commandDevice) Write(p []byte, off int64, fua bool, done func(error)) {
	flags := byte(0)
	if fua {
		flags = flagFUA
	}
	d.execute(d.cdb16(0x8a, flags, off, int64(len(p))), bytes.Clone(p), nil, done)
}

func (d commandDevice) Flush(done func(error)) {
	d.execute(d.cdb16(0x91, 0, 0, 0), nil, nil, done)
}

// Zero is WRITE SAME with NDOB; it has no FUA, so that a flush follows.
func (d commandDevice) Zero(off, n int64, fua bool, done func(error)) {
	d.execute(d.cdb16(0x93, 0x01, off, n), nil, nil, d.flushed(fua, done))
}

func (d commandDevice) Trim(off, n int64, fua bool, done func(error)) {
	block := int64(d.BlockSize())
	p := binary.BigEndian.AppendUint64([]byte{0, 22, 0, 16, 0, 0, 0, 0}, uint64(off/block))
	p = append(binary.BigEndian.AppendUint32(p, uint32(n/block)), 0, 0, 0, 0)
	d.execute([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, p, nil, d.flushed(fua, done))
}

func (d commandDevice) flushed(fua bool, done func(error)) func(error) {
	return func(err error) {
		if err != nil || !fua {
			done(err)
			return
		}
		d.Flush(done)
		d.Kick()
	}
}

func (d commandDevice) Kick() { d.r.lu.Kick() }
