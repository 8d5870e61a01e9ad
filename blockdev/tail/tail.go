// Package tail is the memory of a volume's newest writes: an index of a run of
// log entries that no checkpoint has put in the map yet. It answers what a
// block holds, if the entries say anything about it, and gives a checkpoint
// what is left of the run in order, overwritten data gone.
//
// A tail keeps the bytes it is given in memory that it hands out itself, in
// chunks that go from tail to tail; nothing is freed before Release.
package tail

import (
	"fmt"
	"math"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

const blockSize = extentmap.BlockSize

// Kind says what a tail knows of a block.
type Kind uint8

const (
	Miss   Kind = iota // nothing: ask what is older
	Data               // its bytes
	Zero               // it is zeros
	Extent             // where it is stored
)

func (k Kind) String() string {
	return [...]string{"miss", "data", "zero", "extent"}[k]
}

// Hit is what a tail knows of one block.
type Hit struct {
	Kind Kind
	Data []byte        // of Data: its 4096 bytes, shared and read-only until Release
	Ptr  extentmap.Ptr // of Extent
	// Slot of the log entry that said so, or of a later one that zeroed
	// neighbours; 0 of Miss.
	Slot uint64
}

// Tail indexes a run of log entries in their order: what was put last counts.
// It is not safe for concurrent use, except that calls of Get, Fold, Bytes,
// Entries and Zeros may overlap with each other.
type Tail struct {
	arena arena
	index index
	ptrs  []extentmap.Ptr // of extent slots; overwritten ones stay
	zeros zeroSet
	gen   uint32 // grows with the first Zero after a put
	put   bool   // something was put in this generation
	entry uint64 // slot of the entry that is being put
}

// New makes an empty tail.
func New() *Tail { return &Tail{} }

// Alloc gives n bytes that live until Release, for Put and for whatever
// belongs to the same entry. They are not cleared: the caller fills them all.
// Requests of up to ChunkSize bytes come from recycled chunks and allocate
// nothing in steady state; larger ones are made.
func (t *Tail) Alloc(n int) []byte { return t.arena.alloc(n) }

// Entry begins the log entry of a slot: what is put or zeroed from now on, up to
// the next call, belongs to it. Slots grow.
func (t *Tail) Entry(slot uint64) { t.entry = slot }

// Put says that the blocks from block on now hold data, whole blocks in memory
// that came from Alloc. The tail keeps data; it must not change any more.
func (t *Tail) Put(block uint64, data []byte) {
	if len(data)%blockSize != 0 {
		panic(fmt.Sprintf("tail: %d bytes are not whole blocks", len(data)))
	}
	for len(data) > 0 {
		*t.slot(block) = slot{key: block + 1, gen: t.gen, entry: t.entry, data: (*[blockSize]byte)(data)}
		data = data[blockSize:]
		block++
	}
}

// PutExtent says that the blocks from block on are now stored where ptrs say:
// a large write, whose entry carries pointers instead of bytes. ptrs is copied.
// A hole among them is a block of zeros.
func (t *Tail) PutExtent(block uint64, ptrs []extentmap.Ptr) {
	if uint64(len(t.ptrs))+uint64(len(ptrs)) > math.MaxUint32 {
		panic("tail: too many extent pointers in one tail")
	}
	for _, p := range ptrs {
		t.ptrs = append(t.ptrs, p)
		*t.slot(block) = slot{key: block + 1, gen: t.gen, entry: t.entry, ptr: uint32(len(t.ptrs))}
		block++
	}
}

func (t *Tail) slot(block uint64) *slot {
	t.put = true
	return t.index.put(block)
}

// Zero says that blocks [from, to) now hold zeros. The cost does not depend on
// how many they are. An empty range is nothing.
func (t *Tail) Zero(from, to uint64) {
	if from >= to {
		return
	}
	if t.put {
		t.put = false
		if t.gen++; t.gen == 0 {
			panic("tail: too many zero ranges in one tail")
		}
	}
	t.zeros.put(from, to, t.gen, t.entry)
}

// Get tells what the entries say of a block.
func (t *Tail) Get(block uint64) Hit {
	at := t.index.get(block)
	if t.zeros.n > 0 {
		if z, ok := t.zeros.at(block); ok && (at == nil || at.gen < z.gen) {
			return Hit{Kind: Zero, Slot: z.entry}
		}
	}
	if at == nil {
		return Hit{}
	}
	return t.hit(at)
}

func (t *Tail) hit(at *slot) Hit {
	if at.data != nil {
		return Hit{Kind: Data, Data: at.data[:], Slot: at.entry}
	}
	if p := t.ptrs[at.ptr-1]; !p.IsHole() {
		return Hit{Kind: Extent, Ptr: p, Slot: at.entry}
	}
	return Hit{Kind: Zero, Slot: at.entry}
}

// Bytes is the memory that Alloc took, with what is left over in chunks and
// what was overwritten since.
func (t *Tail) Bytes() int64 { return t.arena.held }

// Entries is the number of blocks that were put, with those zeroed since.
func (t *Tail) Entries() int { return t.index.n }

// Zeros is the number of disjoint zero ranges kept.
func (t *Tail) Zeros() int { return t.zeros.n }

// Release empties the tail and gives its memory back for other tails: no slice
// from Alloc or Get may be used any more.
func (t *Tail) Release() {
	t.arena.release()
	*t = Tail{arena: t.arena}
}
