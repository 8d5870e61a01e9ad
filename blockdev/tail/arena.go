package tail

const (
	// ChunkSize is the size of an arena chunk, in bytes.
	ChunkSize = 1 << 20
	// FreeChunksMax is how many unused chunks all tails of the process
	// together keep for the next one: 128 MiB.
	FreeChunksMax = 128
	// ownMin is the size from which an allocation that does not fit in the
	// current chunk gets memory of its own, so that less than a quarter of a
	// chunk is ever left over.
	ownMin = ChunkSize / 4
)

// freeChunks is shared by all tails. A channel is a bounded list that needs no
// lock of ours; no operation on it ever waits.
var freeChunks = make(chan *[ChunkSize]byte, FreeChunksMax)

func takeChunk() *[ChunkSize]byte {
	select {
	case c := <-freeChunks:
		return c
	default:
		return new([ChunkSize]byte)
	}
}

func giveChunk(c *[ChunkSize]byte) {
	select {
	case freeChunks <- c:
	default:
	}
}

// arena hands out memory that is given back all at once.
type arena struct {
	rest   []byte // of the newest chunk
	chunks []*[ChunkSize]byte
	held   int64 // bytes in chunks and in allocations of their own
}

func (a *arena) alloc(n int) []byte {
	if n > len(a.rest) {
		if n >= ownMin {
			a.held += int64(n)
			return make([]byte, n)
		}
		c := takeChunk()
		a.chunks = append(a.chunks, c)
		a.held += ChunkSize
		a.rest = c[:]
	}
	b := a.rest[:n:n]
	a.rest = a.rest[n:]
	return b
}

func (a *arena) release() {
	for i, c := range a.chunks {
		giveChunk(c)
		a.chunks[i] = nil
	}
	*a = arena{chunks: a.chunks[:0]}
}
