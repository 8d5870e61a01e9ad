package blockdev

import (
	"context"
	"sync"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// builders lends extent builders, which hold a buffer of an extent's size.
var builders = sync.Pool{New: func() any { return new(extent.Builder) }}

// packPutsMax bounds the extents under way at once, of about 1 MiB each.
const packPutsMax = 6

// packer fills extents with blocks and puts each as soon as it is full. A
// block's pointer is known when it is added, since it names the extent by
// number. Not safe for concurrent use.
type packer struct {
	ctx    context.Context
	v      *Volume
	number func() uint64
	relief bool // its extents are put for relief
	most   int  // blocks of an extent
	b      *extent.Builder
	cur    uint64
	slots  chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	done   []packed // all that were put, in no order
	all    []ident.Addr
	missed []overlay.BrickRef
	err    error
}

func newPacker(ctx context.Context, v *Volume, number func() uint64) *packer {
	return &packer{ctx: ctx, v: v, number: number, most: extent.BlocksMax, slots: make(chan struct{}, packPutsMax)}
}

// add packs one block for owner and returns its pointer.
func (k *packer) add(owner uint64, raw []byte) (extentmap.Ptr, error) {
	if k.b == nil {
		k.cur = k.number()
		k.b = builders.Get().(*extent.Builder)
		k.b.Reset(k.v.cfg.ID, k.cur, k.v.epoch)
	}
	off, n := k.b.Add(owner, raw)
	p := extentmap.Ptr{Ext: k.cur, Off: off, Len: n, CRC: extent.Checksum(raw)}
	if k.b.Full() || k.b.Count() >= k.most {
		return p, k.seal()
	}
	return p, nil
}

// seal ends the present extent and puts it in the background.
func (k *packer) seal() error {
	if k.b == nil {
		return k.failed()
	}
	b, number := k.b, k.cur
	k.b = nil
	select {
	case k.slots <- struct{}{}:
	case <-k.ctx.Done():
		return k.ctx.Err()
	}
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		defer func() { <-k.slots }()
		x, err := k.v.putExtent(k.ctx, b, number, k.relief, nil)
		builders.Put(b)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.all = append(k.all, x.addr)
		k.missed = append(k.missed, x.missed...)
		if err != nil {
			if k.err == nil {
				k.err = err
			}
			return
		}
		k.done = append(k.done, x)
	}()
	return k.failed()
}

func (k *packer) failed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// finish seals the last extent and waits until all are durable.
func (k *packer) finish() error {
	err := k.seal()
	k.wait()
	if err == nil {
		err = k.failed()
	}
	return err
}

// note remembers an extent that was put beside the packer, so that an
// abandoned attempt deletes it too.
func (k *packer) note(x packed) {
	k.mu.Lock()
	k.all = append(k.all, x.addr)
	k.missed = append(k.missed, x.missed...)
	k.mu.Unlock()
}

func (k *packer) wait() { k.wg.Wait() }

func (k *packer) addrs() []ident.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]ident.Addr(nil), k.all...)
}

// putExtent encodes an extent and makes it durable on enough holders; durable, if
// there is one, is called as soon as it is, and only then the others are waited for. Those
// that missed it are to be told to maintenance once something names it: before
// that, reconciliation would not look for it. relief: space is given back with it.
func (v *Volume) putExtent(ctx context.Context, b *extent.Builder, number uint64, relief bool, durable func(packed)) (packed, error) {
	data := b.Finish()
	x := packed{number: number, addr: extent.Address(data), epoch: v.epoch, blocks: uint16(b.Count()), bytes: uint32(len(data))}
	var then func()
	if durable != nil {
		then = func() { durable(x) }
	}
	res, err := v.cfg.Extents.PutThen(ctx, v.cfg.ID, v.epoch, v.cfg.Replicas, []dht.Extent{{Addr: x.addr, Number: number, Data: data,
		Hashed: true, Sum: extent.Checksum(data), Relief: relief || mutant.On("spend-reserve")}}, then)
	x.missed = res.Missed
	return x, err
}
