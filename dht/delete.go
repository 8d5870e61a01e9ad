package dht

import (
	"context"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// Delete removes extents from all bricks of their lanes, and from every other
// brick of this node. The caller has made it durable that nothing names them
// any more. It is best effort: bricks that cannot be reached keep their copies
// until reconcile finds them. An absent extent is success. Kinds: Fenced (a
// brick has met a higher epoch; nothing was deleted there), Unavailable (a brick
// was missed), Timeout.
func (s *Store) Delete(ctx context.Context, vol ident.VolumeID, epoch uint64, addrs []ident.Addr, replicas int) error {
	shares := map[overlay.BrickRef][]ident.Addr{}
	for _, a := range addrs {
		lane := s.lane(a)
		for _, b := range lane {
			shares[b] = append(shares[b], a)
		}
		for _, l := range *s.local.Load() {
			if _, ok := l.StatExtent(a); ok && !slices.Contains(lane, l.ref) {
				shares[l.ref] = append(shares[l.ref], a)
			}
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		worst error
	)
	for b, as := range shares {
		wg.Go(func() {
			err := s.DeleteAt(ctx, b, vol, epoch, as)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && (worst == nil || fault.Is(err, fault.Fenced)) {
				worst = err
			}
		})
	}
	wg.Wait()
	if worst == nil || fault.Is(worst, fault.Fenced) || fault.Is(worst, fault.Timeout) {
		return worst
	}
	return fault.Newf(fault.Unavailable, "dht.delete", vol.Short(), "some copies stay until they are found again: %w", worst)
}

// DeleteAt is Delete on one brick, whichever lane the extents belong to. Kinds:
// Fenced, Unavailable, Timeout, NotFound (no such brick there).
func (s *Store) DeleteAt(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID, epoch uint64, addrs []ident.Addr) error {
	for part := range slices.Chunk(addrs, AddrsMax) {
		r := deleteRequest{brick: b.Brick, volume: vol, epoch: epoch, addrs: part}
		var err error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case b.Node == s.self:
			dctx, cancel := context.WithTimeout(ctx, s.cfg.PutTimeout)
			err = s.onDisk(dctx, func() error { return s.serveDelete(r) })
			cancel()
		case s.cfg.View.State(b.Node) == overlay.Down && !s.cfg.Transport.Connected(b.Node):
			return fault.Newf(fault.Unavailable, "dht.delete", b.Brick.Short(), "node %s is down", b.Node.Short())
		default:
			err = s.deleteThere(ctx, b.Node, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) deleteThere(ctx context.Context, to ident.NodeID, r deleteRequest) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PutTimeout)
	defer cancel()
	_, err := s.cfg.Transport.Call(ctx, to, typeDelete, r.encode())
	return err
}

// Seal makes epoch the lowest that may put or delete extents of a volume, on all
// bricks of the given nodes. When it returns, no put or delete of a lower epoch
// is under way on a node that was reached; missed are the others, in the order
// given. Fenced: a node has met a higher epoch.
func (s *Store) Seal(ctx context.Context, vol ident.VolumeID, epoch uint64, nodes []ident.NodeID) (missed []ident.NodeID, err error) {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			r := sealRequest{volume: vol, epoch: epoch}
			if n == s.self {
				sctx, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
				defer cancel()
				errs[i] = s.onDisk(sctx, func() error { return s.serveSeal(r) })
				return
			}
			_, errs[i] = s.call(ctx, n, typeSeal, r.encode())
		})
	}
	wg.Wait()
	for i, e := range errs {
		switch {
		case fault.Is(e, fault.Fenced):
			err = e
		case e != nil:
			missed = append(missed, nodes[i])
		}
	}
	return missed, err
}

// DropLocal deletes everything of a volume on this node's bricks, durably, and
// lets nothing of it in again; freed is in bytes. The caller has a
// tombstone for the volume. An error leaves the rest for the next call.
func (s *Store) DropLocal(vol ident.VolumeID) (freed int64, err error) {
	for _, l := range *s.local.Load() {
		if err := l.fences.raise(vol, epochGone); err != nil {
			return freed, err
		}
		for part := range slices.Chunk(l.ListVolume(vol), AddrsMax) {
			addrs := make([]ident.Addr, len(part))
			var n int64
			for i, r := range part {
				addrs[i] = r.Addr
				n += r.Size
			}
			if err := l.DeleteExtents(addrs); err != nil {
				return freed, err
			}
			freed += n
		}
	}
	return freed, nil
}
