package brick

import (
	"sync"

	"github.com/gabion-storage/gabion/internal/ident"
)

// tableShards is a power of two; addresses are hashes, so their first byte
// spreads evenly.
const tableShards = 64

// entry says where an extent is. It holds no pointers, so that the collector
// does not walk millions of them; with its address and the map's overhead it
// takes about 110 bytes.
type entry struct {
	number, epoch uint64
	segment       uint32
	offset        uint32 // units of extentAlign
	size          uint32 // bytes of the extent
	volume        uint32 // index into table.volumes
}

// table is the index in memory. Reads are concurrent; put and delete come from
// one goroutine.
type table struct {
	shards [tableShards]struct {
		mu sync.RWMutex
		m  map[ident.Addr]entry
	}
	mu      sync.Mutex // guards what follows
	volumes []volumeUse
	byID    map[ident.VolumeID]uint32
	count   int
	stored  int64 // room of all extents in their segments, bytes
	live    int64 // bytes of all extents
}

type volumeUse struct {
	id      ident.VolumeID
	extents int
	bytes   int64
}

func newTable() *table {
	t := &table{byID: map[ident.VolumeID]uint32{}}
	for i := range t.shards {
		t.shards[i].m = map[ident.Addr]entry{}
	}
	return t
}

func (t *table) get(a ident.Addr) (entry, bool) {
	s := &t.shards[a[0]%tableShards]
	s.mu.RLock()
	e, ok := s.m[a]
	s.mu.RUnlock()
	return e, ok
}

// volume returns the short number of a volume.
func (t *table) volume(id ident.VolumeID) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.byID[id]
	if !ok {
		i = uint32(len(t.volumes))
		t.volumes = append(t.volumes, volumeUse{id: id})
		t.byID[id] = i
	}
	return i
}

func (t *table) volumeID(i uint32) ident.VolumeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.volumes[i].id
}

func (t *table) account(e entry, n int) {
	t.mu.Lock()
	v := &t.volumes[e.volume]
	v.extents += n
	v.bytes += int64(n) * int64(e.size)
	t.count += n
	t.stored += int64(n) * recordSpan(int64(e.size))
	t.live += int64(n) * int64(e.size)
	t.mu.Unlock()
}

// put adds an entry and returns the one it replaces.
func (t *table) put(a ident.Addr, e entry) (old entry, replaced bool) {
	s := &t.shards[a[0]%tableShards]
	s.mu.Lock()
	old, replaced = s.m[a]
	s.m[a] = e
	s.mu.Unlock()
	if replaced {
		t.account(old, -1)
	}
	t.account(e, 1)
	return old, replaced
}

func (t *table) delete(a ident.Addr) (old entry, ok bool) {
	s := &t.shards[a[0]%tableShards]
	s.mu.Lock()
	old, ok = s.m[a]
	delete(s.m, a)
	s.mu.Unlock()
	if ok {
		t.account(old, -1)
	}
	return old, ok
}

// each calls fn for every entry, one shard locked at a time: what is put or
// deleted meanwhile may be seen or not, all else is seen once.
func (t *table) each(fn func(a ident.Addr, e entry)) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for a, e := range s.m {
			fn(a, e)
		}
		s.mu.RUnlock()
	}
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}
