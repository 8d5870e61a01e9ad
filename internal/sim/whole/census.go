package whole

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// survey compares what a volume's chosen state names with what bricks hold. The
// state is read as a new holder would, by the protocol, and walked by this file's
// own code from the root: pages, data and the stored extent table.
type survey struct {
	p     *process
	v     *volume
	table *extentmap.Table
	named map[ident.Addr]string // what for
}

// content reads the string that the refs of a stored table hold.
func (c *survey) content(ctx context.Context, refs []extentmap.TableRef) (parts [][]byte, err error) {
	for _, r := range refs {
		c.named[r.Addr] = "the extent table"
		raw, err := c.p.core.Extents.Get(ctx, r.Addr)
		if err != nil {
			return nil, err
		}
		x, err := extent.Decode(raw)
		if err != nil {
			return nil, err
		}
		if int(r.Length) > len(x.Payload) {
			return nil, fmt.Errorf("a table extent has %d bytes, not %d", len(x.Payload), r.Length)
		}
		text := slices.Clone(x.Payload[:r.Length])
		if r.Kind == extentmap.TableMore && len(parts) > 0 {
			parts[len(parts)-1] = append(parts[len(parts)-1], text...)
		} else {
			parts = append(parts, text)
		}
	}
	return parts, nil
}

// LoadPage implements extentmap.Loader.
func (c *survey) LoadPage(at extentmap.Ptr, _ int) (*extentmap.Page, error) {
	e, ok := c.table.Get(at.Ext)
	if !ok {
		return nil, fmt.Errorf("a page is in extent %d, which the table does not have", at.Ext)
	}
	c.named[e.Addr] = "a page of the map"
	raw := make([]byte, blockSize)
	stored := make([]byte, at.Len)
	err := c.p.core.Extents.ReadAt(context.Background(), c.v.replicas, e.Addr, int64(at.Off), stored,
		func(s []byte) bool { return extent.ReadBlock(raw, s, at.CRC) == nil })
	if err != nil {
		return nil, err
	}
	pg := new(extentmap.Page)
	return pg, pg.Decode(raw)
}

// take reads the chosen state of the volume and walks it.
func (c *survey) take(ctx context.Context, seeds []ident.NodeID) error {
	c.p.core.Manager.Detach(c.v.id, errors.New("the census is taken"))
	prop, rec, err := quorum.Open(ctx, quorum.ProposerConfig{
		Group: ident.MapBlock(c.v.id), Transport: c.p.link, Local: c.p.core.Acceptors, Self: c.p.m.id, Boot: c.p.m.boot,
		Seeds: seeds, OnProgress: func(uint64, uint64) {}, OnFenced: func(quorum.Ballot) {}, OnMembers: func() {}, Log: c.p.m.w.log,
	})
	if err != nil {
		return err
	}
	prop.Close()
	st, err := extentmap.DecodeState(rec.Checkpoint.Value)
	if err != nil {
		return err
	}
	parts, err := c.content(ctx, st.Table)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		parts = [][]byte{nil}
	}
	if c.table, err = extentmap.LoadTable(parts[0], parts[1:]...); err != nil {
		return err
	}
	ptrs := make([]extentmap.Ptr, volumeSize/blockSize)
	if err := st.Root.Lookup(0, ptrs, c); err != nil {
		return err
	}
	for b, at := range ptrs {
		if at.IsHole() {
			continue
		}
		e, ok := c.table.Get(at.Ext)
		if !ok {
			return fmt.Errorf("block %d is in extent %d, which the table does not have", b, at.Ext)
		}
		c.named[e.Addr] = fmt.Sprintf("block %d", b)
	}
	return nil
}

// compare says what is wrong with what the bricks hold: the first thing.
func (c *survey) compare(ctx context.Context) error {
	known := map[ident.Addr]bool{}
	for a := range c.named {
		known[a] = true
	}
	c.table.All(func(e extentmap.Extent) bool { known[e.Addr] = true; return true })
	held := map[overlay.BrickRef]map[ident.Addr]bool{}
	for _, n := range c.p.core.View.Nodes() {
		if c.p.m.w.machines[n.ID[0]-1].gone {
			continue
		}
		for _, b := range n.Bricks {
			at := overlay.BrickRef{Node: n.ID, Brick: b.ID}
			refs, err := c.p.core.Extents.List(ctx, at, c.v.id)
			if err != nil {
				return err
			}
			held[at] = map[ident.Addr]bool{}
			for _, r := range refs {
				held[at][r.Addr] = true
				if !known[r.Addr] {
					return fmt.Errorf("orphan: %x, number %d of epoch %d, is on %s and nothing names it", r.Addr[:4], r.Number, r.Epoch, n.Name)
				}
			}
		}
	}
	for a, what := range c.named {
		for _, b := range c.p.core.Extents.Holders(a, c.v.replicas) {
			if !held[b][a] {
				return fmt.Errorf("missing: %x, with %s, is not on node %s", a[:4], what, b.Node.Short())
			}
		}
	}
	return nil
}

// census demands that within the patience bricks hold what the volume names, all
// copies of it, and nothing else.
func (w *World) census(v *volume) {
	var err error
	ok := w.within(patience, v.name+" and the bricks agree", func() {
		for w.sound() {
			if err = w.censusOnce(v); err == nil {
				return
			}
			w.sleep(5 * time.Second)
		}
	})
	if !ok {
		w.event("%s: the last census: %v", v.name, err)
	}
}

func (w *World) censusOnce(v *volume) error {
	p := w.somebody(v)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	vol, err := p.core.Manager.Attach(ctx, v.name, true)
	if err != nil {
		return err
	}
	if err := vol.WaitMaintained(ctx); err != nil {
		return err
	}
	for vol.Status().TailBytes > 0 && w.sound() && ctx.Err() == nil { // the idle checkpoint
		w.sleep(time.Second)
	}
	var seeds []ident.NodeID
	for _, m := range w.machines {
		seeds = append(seeds, m.id)
	}
	slices.SortFunc(seeds, ident.NodeID.Compare)
	c := &survey{p: p, v: v, named: map[ident.Addr]string{}}
	if err := c.take(ctx, seeds); err != nil {
		return err
	}
	return c.compare(ctx)
}
