package dht

import (
	"context"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// List returns the extents of a volume on one brick, in order of number, epoch
// and address. Extents put or deleted meanwhile may be in it or not. Kinds:
// Unavailable, Timeout, NoSpace (more than ListMax).
func (s *Store) List(ctx context.Context, b overlay.BrickRef, vol ident.VolumeID) ([]brick.Ref, error) {
	var all []brick.Ref
	r := listRequest{brick: b.Brick, volume: vol, limit: ListPageMax}
	for {
		var page listPage
		var err error
		if b.Node == s.self {
			page, err = s.serveList(r)
		} else {
			var answer []byte
			if answer, err = s.call(ctx, b.Node, typeList, r.encode()); err == nil {
				page, err = decodeListPage(answer, r.after)
			}
		}
		if err != nil {
			return nil, err
		}
		if len(all)+len(page.refs) > ListMax {
			return nil, fault.Newf(fault.NoSpace, "dht.list", vol.Short(), "more than %d extents on one brick", ListMax)
		}
		all = append(all, page.refs...)
		if !page.more {
			return all, nil
		}
		r.after = all[len(all)-1]
	}
}

// Stat returns the sizes in bytes of extents on one brick, -1 for those it
// lacks. Presence says nothing about the bytes. Kinds: Unavailable, Timeout.
func (s *Store) Stat(ctx context.Context, b overlay.BrickRef, addrs []ident.Addr) ([]int64, error) {
	all := make([]int64, 0, len(addrs))
	for part := range slices.Chunk(addrs, AddrsMax) {
		r := statRequest{brick: b.Brick, addrs: part}
		var sizes []int64
		var err error
		if b.Node == s.self {
			sizes, err = s.serveStat(r)
		} else {
			var answer []byte
			if answer, err = s.call(ctx, b.Node, typeStat, r.encode()); err == nil {
				sizes, err = decodeSizes(answer, len(part))
			}
		}
		if err != nil {
			return nil, err
		}
		all = append(all, sizes...)
	}
	return all, nil
}

// snapshots keeps listings between their pages: a brick walks its whole index
// for one, which must not happen once for each page. A lost snapshot is made
// again; since pages go by order, not by index, that changes nothing.
type snapshots struct {
	mu  sync.Mutex
	all []snapshot // least recently used first
}

type snapshot struct {
	brick  ident.BrickID
	volume ident.VolumeID
	refs   []brick.Ref // sorted, read only
}

// take removes the snapshot for the page of r that is not the first.
func (s *snapshots) take(r listRequest) (refs []brick.Ref, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.all, func(x snapshot) bool { return x.brick == r.brick && x.volume == r.volume })
	if i < 0 || r.after == (brick.Ref{}) {
		return nil, false
	}
	refs = s.all[i].refs
	s.all = slices.Delete(s.all, i, i+1)
	return refs, true
}

func (s *snapshots) keep(r listRequest, refs []brick.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= ListSnapshotsMax {
		s.all = slices.Delete(s.all, 0, 1)
	}
	s.all = append(s.all, snapshot{r.brick, r.volume, refs})
}

// serveList answers one page.
func (s *Store) serveList(r listRequest) (listPage, error) {
	l, err := s.brick("dht.list", r.brick)
	if err != nil {
		return listPage{}, err
	}
	refs, ok := s.pages.take(r)
	if !ok {
		refs = l.ListVolume(r.volume)
		slices.SortFunc(refs, compareRefs)
	}
	i, found := slices.BinarySearchFunc(refs, r.after, compareRefs)
	if found {
		i++
	}
	rest := refs[i:]
	if len(rest) <= r.limit {
		return listPage{refs: rest}, nil
	}
	s.pages.keep(r, refs)
	return listPage{refs: rest[:r.limit], more: true}, nil
}
