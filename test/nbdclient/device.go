package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// Contexts that a Device asks for to be a target.Mapper.
const (
	ContextAllocation = "base:allocation"
	PrefixDirty       = "gabion:dirty:"
)

// Device is a client as a target.Session and target.Mapper, so that what tests
// devices can test what stands behind a connection. It adds to requests, at
// random, the flags that must make no difference.
type Device struct {
	*Client
	// Over, if set, returns when the server has let go of a connection that was
	// cut: what it had received by then may still be carried out before.
	Over func()

	mu   sync.Mutex
	rand *rand.Rand
}

// NewDevice wraps c, whose export announced its block size.
func NewDevice(c *Client, seed uint64) *Device {
	return &Device{Client: c, rand: rand.New(rand.NewPCG(seed, 0))}
}

// some is a random choice of flags.
func (d *Device) some(flags ...uint16) (all uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flags {
		if d.rand.IntN(2) == 0 {
			all |= f
		}
	}
	return all
}

func fuaOf(fua bool) uint16 {
	if fua {
		return FlagFUA
	}
	return 0
}

// kindly turns a refusal back into what the contract has for it.
func kindly(done func(error)) func(error) {
	return func(err error) {
		var f *Failure
		if errors.As(err, &f) {
			k := fault.Internal
			switch f.Errno {
			case syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW:
				k = fault.Invalid
			case syscall.EPERM:
				k = fault.ReadOnly
			}
			err = fault.New(k, "nbdclient", "", err)
		}
		done(err)
	}
}

func (d *Device) Size() int64                  { return d.Client.Size }
func (d *Device) BlockSize() int               { return int(d.BlockMin) }
func (d *Device) ReadOnly() bool               { return d.Flags&(1<<1) != 0 }
func (d *Device) TryReadAt([]byte, int64) bool { return false }
func (d *Device) Kick()                        {}

func (d *Device) ReadAt(_ context.Context, p []byte, off int64) error {
	flags := d.some(FlagFUA)
	if d.Style != Simple {
		flags |= d.some(FlagDF)
	}
	c := make(chan error, 1)
	d.Start(CmdRead, flags, off, len(p), p, kindly(func(err error) { c <- err }))
	return <-c
}

func (d *Device) Write(p []byte, off int64, fua bool, done func(error)) {
	d.Start(CmdWrite, fuaOf(fua), off, len(p), p, kindly(done))
}

func (d *Device) Flush(done func(error)) {
	d.Start(CmdFlush, d.some(FlagFUA), 0, 0, nil, kindly(done))
}

func (d *Device) Zero(off, n int64, fua bool, done func(error)) {
	d.Start(CmdZero, fuaOf(fua)|d.some(FlagNoHole, FlagFastZero), off, int(n), nil, kindly(done))
}

func (d *Device) Trim(off, n int64, fua bool, done func(error)) {
	d.Start(CmdTrim, fuaOf(fua), off, int(n), nil, kindly(done))
}

// Cache asks the server to have [off, off+n) at hand.
func (d *Device) Cache(off, n int64, done func(error)) {
	d.Start(CmdCache, d.some(FlagFUA), off, int(n), nil, kindly(done))
}

// Refuse sends a request that no server may carry out: off its blocks, beyond
// the end, of nothing, or with a flag that the command does not take.
func (d *Device) Refuse(done func(error)) {
	d.mu.Lock()
	block, blocks := int64(d.BlockMin), d.Client.Size/int64(d.BlockMin)
	cmd := []uint16{CmdRead, CmdWrite, CmdTrim, CmdCache, CmdZero, 4711}[d.rand.IntN(6)]
	off, n, flags := d.rand.Int64N(blocks)*block, block, uint16(0)
	switch d.rand.IntN(5) {
	case 0:
		off += 1 + d.rand.Int64N(block-1)
	case 1:
		n = 1 + d.rand.Int64N(block-1)
	case 2:
		off = d.Client.Size - block*d.rand.Int64N(4)
		n = d.Client.Size - off + block
	case 3:
		n = 0
	default:
		flags = 1 << (8 + d.rand.IntN(8))
	}
	d.mu.Unlock()
	d.Start(cmd, flags, off, int(n), make([]byte, n), func(err error) {
		var f *Failure
		switch {
		case errors.As(err, &f) && (f.Errno == syscall.EINVAL || f.Errno == syscall.ENOSPC):
			done(nil)
		case err == nil:
			done(fmt.Errorf("command %d with flags %#x on [%d, +%d) was not refused", cmd, flags, off, n))
		default:
			done(err)
		}
	})
}

// Map is that of target.Mapper, for the contexts that were selected.
func (d *Device) Map(_ context.Context, off, n int64, snapshot string, limit int, dst []target.Stretch) ([]target.Stretch, error) {
	name := ContextAllocation
	if snapshot != "" {
		name = PrefixDirty + snapshot
	}
	id, ok := d.Contexts[name]
	if !ok && snapshot == "" {
		return append(dst, target.Stretch{Length: n}), nil // nothing is known of it
	}
	if !ok {
		return dst, fault.Newf(fault.NotFound, "nbdclient.map", snapshot, "the context was not selected")
	}
	var only []uint32
	if d.Style == Extended && d.some(1) != 0 {
		only = []uint32{id}
	}
	states, err := d.BlockStatus(off, int(n), limit == 1, only...)
	if err != nil {
		kindly(func(e error) { err = e })(err)
		return dst, err
	}
	for i, e := range states[id] {
		if i == limit {
			break
		}
		var f target.StretchFlags
		switch {
		case snapshot != "" && e.State&1 != 0:
			f = target.Dirty
		case snapshot == "":
			f = target.StretchFlags(e.State) // the same bits
		}
		dst = append(dst, target.Stretch{Length: e.Length, Flags: f})
	}
	return dst, nil
}

// Snapshots is that of target.Mapper.
func (d *Device) Snapshots() []string {
	var names []string
	for _, n := range d.Selected() {
		if s, ok := strings.CutPrefix(n, PrefixDirty); ok {
			names = append(names, s)
		}
	}
	return names
}

// Close disconnects properly.
func (d *Device) Close() {
	d.Client.Close()
	<-d.over
}

// Cut drops the connection without a word.
func (d *Device) Cut() {
	d.hold()
	d.conn.Close()
	<-d.over
}

// hold makes requests end only when the server has let go, after Over.
func (d *Device) hold() {
	d.Client.mu.Lock()
	d.lost = d.Over
	d.Client.mu.Unlock()
}
