package blockdev

import (
	"context"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
)

// The extent table is stored as a snapshot and deltas, each a byte string cut
// into table extents: packs of 4 KiB pieces that no map pointer names. The
// checkpoint value lists them in order.

// Kinds of a table extent. The first piece of a string says what it begins; the
// following pieces continue it.
const (
	tableSnapshot = 1
	tableDelta    = 2
	tableMore     = 3
)

// tablePieceMax is the content of one table extent in bytes.
const tablePieceMax = extent.BlocksMax * BlockSize

// writeTable stores what the transaction changes: a delta as a rule, and a new
// snapshot once the deltas outgrow it, so that the cost stays in proportion to
// what changed. It returns the complete list for the checkpoint value.
func (f *fold) writeTable(ctx context.Context) ([]extentmap.TableRef, error) {
	delta := f.tx.Delta()
	var snap, deltas int64
	n := 0
	for _, r := range f.refs {
		switch r.Kind {
		case tableSnapshot:
			snap += int64(r.Length)
		case tableDelta:
			n++
			deltas += int64(r.Length)
		default:
			deltas += int64(r.Length)
		}
	}
	room := len(f.refs)+len(delta)/(f.pack.most*BlockSize) < extentmap.TableRefsMax
	few := n < tableDeltasMax && deltas+int64(len(delta)) <= max(snap, 64<<10)
	// Where there is hardly any room, there is none for the whole table.
	if room && (few || f.pack.relief) {
		more, err := f.writePieces(ctx, tableDelta, delta)
		return append(append([]extentmap.TableRef(nil), f.refs...), more...), err
	}
	snapshot := f.tx.Snapshot()
	if (len(snapshot)+tablePieceMax-1)/tablePieceMax > extentmap.TableRefsMax {
		return nil, fault.Newf(fault.NoSpace, "volume.checkpoint", f.v.cfg.Name, "its extent table has %d bytes; delete snapshots or data", len(snapshot))
	}
	refs, err := f.writePieces(ctx, tableSnapshot, snapshot)
	for _, r := range f.refs {
		f.oldRefs = append(f.oldRefs, r.Addr)
	}
	return refs, err
}

func (f *fold) writePieces(ctx context.Context, kind uint8, content []byte) ([]extentmap.TableRef, error) {
	var refs []extentmap.TableRef
	for len(content) > 0 {
		n := min(len(content), f.pack.most*BlockSize)
		b := builders.Get().(*extent.Builder)
		number := f.draw()
		b.Reset(f.v.cfg.ID, number, f.v.epoch)
		for at := 0; at < n; at += BlockSize {
			var raw [BlockSize]byte
			copy(raw[:], content[at:n])
			b.AddStored(uint64(at/BlockSize), raw[:]) // addresses do not compress
		}
		x, err := f.v.putExtent(ctx, b, number, f.pack.relief, nil)
		builders.Put(b)
		f.pack.note(x)
		if err != nil {
			return nil, err
		}
		refs = append(refs, extentmap.TableRef{Number: number, Addr: x.addr, Blocks: x.blocks, Bytes: x.bytes, Kind: kind, Length: uint32(n)})
		content, kind = content[n:], tableMore
	}
	return refs, nil
}

// loadTable reads the extent table that a checkpoint value names.
func (v *Volume) loadTable(ctx context.Context, refs []extentmap.TableRef) (*extentmap.Table, error) {
	var strings [][]byte
	for i, r := range refs {
		raw, err := v.cfg.Extents.Get(ctx, r.Addr)
		if err != nil {
			return nil, err
		}
		content, err := tableContent(raw, r)
		if err != nil {
			return nil, err
		}
		if r.Kind != tableMore || i == 0 {
			strings = append(strings, content)
			continue
		}
		last := len(strings) - 1
		strings[last] = append(strings[last], content...)
	}
	if len(strings) == 0 {
		return extentmap.LoadTable(nil)
	}
	return extentmap.LoadTable(strings[0], strings[1:]...)
}

// tableContent unpacks the byte string in a table extent.
func tableContent(raw []byte, r extentmap.TableRef) ([]byte, error) {
	x, err := extent.Decode(raw)
	if err != nil {
		return nil, err
	}
	if int(r.Length) > len(x.Payload) || x.PayloadLen != x.Count*BlockSize {
		return nil, fault.Newf(fault.Corrupt, "volume.loadTable", r.Addr.Short(), "table extent with %d bytes cannot hold %d", len(x.Payload), r.Length)
	}
	return append([]byte(nil), x.Payload[:r.Length]...), nil
}
