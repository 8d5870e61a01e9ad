package extentmap

import "fmt"

const (
	// BlockSize is the size of a volume block and of a map page, in bytes.
	BlockSize = 4096
	// Fanout is the number of pointers in a page.
	Fanout = 256
	// LevelMax is the highest level a root can have; it covers SizeMax bytes.
	LevelMax = 3
	// SizeMax is the largest span one map can cover: 16 TiB.
	SizeMax = int64(BlockSize) << (fanoutBits * (LevelMax + 1))

	fanoutBits = 8
	extLimit   = 1 << 48
	offLimit   = 1 << 21
)

// Ptr names the stored bytes [Off, Off+Len) of extent number Ext of a volume:
// one block, raw if Len is BlockSize and s2-compressed below that. CRC is the
// CRC32C of the raw BlockSize bytes. The zero value is a hole: a block of
// zeros, or an absent page.
type Ptr struct {
	Ext uint64 // 1 <= Ext < 2^48
	Off uint32 // < 2^21, in bytes from the start of the encoded extent
	Len uint16 // 1..BlockSize, in bytes
	CRC uint32
}

// IsHole reports whether p names nothing.
func (p Ptr) IsHole() bool { return p.Ext == 0 }

// Valid reports whether p is the hole or has every field in its range.
func (p Ptr) Valid() bool {
	if p.Ext == 0 {
		return p == Ptr{}
	}
	return p.Ext < extLimit && p.Off < offLimit && p.Len >= 1 && p.Len <= BlockSize
}

func (p Ptr) String() string {
	if p.IsHole() {
		return "hole"
	}
	return fmt.Sprintf("ext %d [%d,+%d) crc %08x", p.Ext, p.Off, p.Len, p.CRC)
}

// Owner says what a stored block is to its volume, for the owners table of an
// extent: volume block number n is n itself (below 2^56); page i of level l is
// (l+1)<<56 | i.
type Owner uint64

const ownerLevelShift = 56

// DataOwner is the owner of volume block number block, which is below 2^56.
func DataOwner(block uint64) Owner {
	if block>>ownerLevelShift != 0 {
		panic(fmt.Sprintf("extentmap: block %d has no owner number", block))
	}
	return Owner(block)
}

// PageOwner is the owner of page index of a level, counted from block 0.
func PageOwner(level int, index uint64) Owner {
	if level < 0 || level > LevelMax || index>>ownerLevelShift != 0 {
		panic(fmt.Sprintf("extentmap: page %d of level %d has no owner number", index, level))
	}
	return Owner(uint64(level+1)<<ownerLevelShift | index)
}

// IsPage tells a page from a data block.
func (o Owner) IsPage() bool { return o>>ownerLevelShift != 0 }

// Level is the level of a page. It is -1 for a data block and above LevelMax
// for a number that no page has; owners read from an extent are not trusted.
func (o Owner) Level() int { return int(o>>ownerLevelShift) - 1 }

// Index is the number of a page among those of its level.
func (o Owner) Index() uint64 { return uint64(o) & (1<<ownerLevelShift - 1) }

// Block is the volume block number of a data block.
func (o Owner) Block() uint64 { return uint64(o) & (1<<ownerLevelShift - 1) }

func (o Owner) String() string {
	if o.IsPage() {
		return fmt.Sprintf("page %d of level %d", o.Index(), o.Level())
	}
	return fmt.Sprintf("block %d", o.Block())
}

// span is the number of blocks that one page of a level covers.
func span(level int) uint64 { return 1 << (fanoutBits * (level + 1)) }

// LevelFor is the level of the root page that covers size bytes: 0 up to
// 1 MiB, 1 up to 256 MiB, 2 up to 64 GiB, 3 up to 16 TiB (SizeMax). It panics
// outside 0..SizeMax, which whoever creates or grows a volume must refuse.
func LevelFor(size int64) int {
	if size < 0 || size > SizeMax {
		panic(fmt.Sprintf("extentmap: a map cannot cover %d bytes", size))
	}
	level := 0
	for uint64(size) > span(level)*BlockSize {
		level++
	}
	return level
}
