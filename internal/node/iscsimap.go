package node

import (
	"context"

	"github.com/gabion-storage/gabion/target"
)

// Map implements target.Mapper, for GET LBA STATUS: what the volume behind the
// session knows would else be hidden by the type of Session. A session that knows
// nothing stores all of it.
func (a *attachment) Map(ctx context.Context, off, n int64, snapshot string, limit int, dst []target.Stretch) ([]target.Stretch, error) {
	if m, ok := a.Session.(target.Mapper); ok {
		return m.Map(ctx, off, n, snapshot, limit, dst)
	}
	return append(dst, target.Stretch{Length: n}), nil
}

// Snapshots implements target.Mapper.
func (a *attachment) Snapshots() []string {
	if m, ok := a.Session.(target.Mapper); ok {
		return m.Snapshots()
	}
	return nil
}

var _ target.Mapper = (*attachment)(nil)
