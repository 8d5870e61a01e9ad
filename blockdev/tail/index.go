package tail

// slot is the newest put of one block: data in the arena, or an extent pointer
// in Tail.ptrs.
type slot struct {
	key  uint64 // block+1; 0 is an empty slot
	gen  uint32 // Tail.gen at the put: zero ranges of a later generation hide it
	ptr  uint32 // 1 + place in Tail.ptrs; 0 for data
	data *[blockSize]byte
	// entry is the slot of the log entry it belongs to.
	entry uint64
}

const (
	shardBits = 6
	shards    = 1 << shardBits
	slotsMin  = 64 // of a shard, a power of two
)

// index is an open-addressed hash table with linear probing, cut in shards, so
// that growing moves a small part of it at a time. Eight neighbouring blocks
// hash to eight neighbouring slots: a run of blocks costs few cache misses.
type index struct {
	n      int
	shards [shards]shard
}

type shard struct {
	slots []slot // a power of two, at most three quarters used
	used  int
	max   int
}

// hash mixes the number of a group of eight blocks (Fibonacci hashing). The
// upper bits pick the shard, the lower ones the slot.
func hash(block uint64) uint64 {
	h := (block >> 3) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func home(h, block uint64) uint64 { return h<<3 | block&7 }

// get returns the slot of a block, nil if there is none.
func (x *index) get(block uint64) *slot {
	h := hash(block)
	s := &x.shards[h>>(64-shardBits)].slots
	mask := uint64(len(*s)) - 1
	if mask+1 == 0 {
		return nil
	}
	for i := home(h, block) & mask; ; i = (i + 1) & mask {
		at := &(*s)[i]
		if at.key == block+1 {
			return at
		}
		if at.key == 0 {
			return nil
		}
	}
}

// put returns the slot of a block, a new one if there was none.
func (x *index) put(block uint64) *slot {
	h := hash(block)
	s := &x.shards[h>>(64-shardBits)]
	if s.used >= s.max {
		s.grow()
	}
	mask := uint64(len(s.slots)) - 1
	for i := home(h, block) & mask; ; i = (i + 1) & mask {
		at := &s.slots[i]
		if at.key == block+1 {
			return at
		}
		if at.key == 0 {
			at.key = block + 1
			s.used++
			x.n++
			return at
		}
	}
}

func (s *shard) grow() {
	old := s.slots
	n := max(slotsMin, 2*len(old))
	s.slots = make([]slot, n)
	s.max = n / 4 * 3
	mask := uint64(n) - 1
	for k := range old {
		if old[k].key == 0 {
			continue
		}
		block := old[k].key - 1
		i := home(hash(block), block) & mask
		for s.slots[i].key != 0 {
			i = (i + 1) & mask
		}
		s.slots[i] = old[k]
	}
}
