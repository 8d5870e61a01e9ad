package nbd

import (
	"sync"

	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

const (
	// statusBytes is what one BLOCK_STATUS may have as its answer, for all of
	// its contexts together; what does not fit is left out at the end.
	statusBytes = edge.StreamBytes
	// cacheBytes is the length of the pieces in which CACHE reads.
	cacheBytes = 256 << 10
	// CacheMax is how much of a range one CACHE fetches, in bytes.
	CacheMax = proto.PayloadMax
	// WarmersMax bounds the CACHE commands of one connection that read at the
	// same time; more are answered at once. A header must not cost a disk so much.
	WarmersMax = 4
)

// stretches are the buffers that devices describe themselves into.
var stretches = sync.Pool{New: func() any { return new(description) }}

type description struct {
	in  []target.Stretch
	out []proto.Extent
}

// blockStatus begins r, which was checked but for what its payload says.
func (c *conn) blockStatus(r proto.Request) error {
	var ids [proto.ContextsMax]uint32
	picked := ids[:0]
	if n := int(r.Payload(c.style)); n > 0 || r.Flags&proto.FlagPayloadLen != 0 {
		if n == 0 || n > proto.StatusQueryMax {
			return c.reject(r, proto.EINVAL, "a payload that cannot be a list of contexts")
		}
		if err := c.fill(n, false); err != nil {
			return err
		}
		length, some, err := proto.DecodeStatusQuery(c.Next(n), picked)
		r.Flags &^= proto.FlagPayloadLen
		r.Length = length
		if err != nil {
			return c.reject(r, proto.EINVAL, err.Error())
		}
		for _, id := range some {
			if id >= uint32(len(c.contexts)) {
				return c.reject(r, proto.EINVAL, "a metadata context that was not selected")
			}
		}
		if e, why := c.check(r); e != proto.OK {
			return c.reject(r, e, why)
		}
		picked = some
	} else {
		for id := range c.contexts {
			picked = append(picked, uint32(id))
		}
	}
	q := c.begin(r)
	q.picked = append(q.picked[:0], picked...)
	go q.status()
	return nil
}

// describe carries out a BLOCK_STATUS, on a goroutine of its own.
func (q *request) describe() {
	c := q.c
	d := stretches.Get().(*description)
	defer stretches.Put(d)
	q.buf = edge.GetBuffer(edge.StreamBytes)
	b := q.buf.B
	limit := (statusBytes/len(q.picked) - c.style.StatusSize(0)) / (c.style.StatusSize(1) - c.style.StatusSize(0))
	if q.df && !mutant.On("ignore-one") {
		limit = 1
	}
	for i, id := range q.picked {
		err := c.extents(d, q.off, int64(q.n), c.contexts[id].Snapshot, limit)
		if err != nil {
			q.part(err)
			return
		}
		b = c.style.AppendStatus(b, q.cookie, uint64(q.off), id, d.out, i == len(q.picked)-1)
	}
	q.buf.B = b
	q.part(nil)
}

// extents describes [off, off+n) in d.out. A device that cannot tell has data
// everywhere.
func (c *conn) extents(d *description, off, n int64, snapshot string, limit int) error {
	d.out = d.out[:0]
	if c.mapper == nil {
		d.out = append(d.out, proto.Extent{Length: uint64(n)})
		return nil
	}
	var err error
	d.in, err = c.mapper.Map(c.Context(), off, n, snapshot, limit, d.in[:0])
	if err != nil {
		return err
	}
	for _, s := range d.in {
		state := stateOf(s.Flags, snapshot)
		if k := len(d.out) - 1; k >= 0 && d.out[k].State == state {
			d.out[k].Length += uint64(s.Length)
			continue
		}
		d.out = append(d.out, proto.Extent{Length: uint64(s.Length), State: state})
	}
	return nil
}

// stateOf says a stretch's flags in the terms of a metadata context.
func stateOf(f target.StretchFlags, snapshot string) (state uint32) {
	switch {
	case snapshot != "" && f&target.Dirty != 0:
		return proto.StateDirty
	case snapshot != "":
		return 0
	case f&target.Hole != 0:
		return proto.StateHole | proto.StateZero
	case f&target.Zero != 0:
		return proto.StateZero
	}
	return 0
}

// warm carries out a CACHE, on a goroutine of its own: it reads and forgets, so
// that what a read would have to fetch is at hand.
func (q *request) warm() {
	c := q.c
	defer c.warming.Add(-1)
	if c.warming.Add(1) > WarmersMax {
		q.part(nil)
		return
	}
	b := edge.GetBuffer(edge.StreamBytes)
	defer b.Put()
	end := q.off + min(int64(q.n), CacheMax)
	for off := q.off; off < end && !c.leaving.Load(); off += cacheBytes {
		p := b.B[:min(cacheBytes, end-off)]
		if c.sess.TryReadAt(p, off) {
			continue
		}
		if err := c.sess.ReadAt(c.Context(), p, off); err != nil {
			q.part(err)
			return
		}
	}
	q.part(nil)
}
