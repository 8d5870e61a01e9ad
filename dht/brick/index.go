package brick

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"sync/atomic"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// The index log is one file, index-N, of a header block and frames whose Pos is
// their offset in the file. The header, little endian: "gabindx1", CRC32C u32
// over bytes [12,36), brick 16, N u64 at 28. Zeros are written ahead of the
// frames, so that a deletion needs no space on a full disk. Rewriting makes
// index-(N+1) from the live entries and removes index-N.
const (
	indexMagic      = "gabindx1"
	indexHeaderSize = 36
	indexDataOff    = 4096
	// indexBodyMax bounds the operations of one frame, in bytes.
	indexBodyMax = 1 << 20
	// indexAhead is how many zeros are kept ahead, indexGrow how many are added.
	indexAhead = 256 << 10
	indexGrow  = 1 << 20
)

// indexView is what others than the committer may know of the index.
type indexView struct {
	gen    uint64
	header []byte
	end    atomic.Int64 // everything before is durable
}

// indexLog is owned by the committer of the extents, but for view.
type indexLog struct {
	*core
	view      *atomic.Pointer[indexView]
	gen       uint64
	name      string
	f         vfs.File
	seed      uint32
	next      Pos   // of the next frame
	synced    Pos   // everything before is durable
	allocated int64 // size of the file, zeros after next
	ahead     int64 // how many zeros to keep ahead, bytes
	slack     int64 // how much history to bear before a rewrite, bytes
	buf       []byte
}

func indexName(gen uint64) string { return fmt.Sprintf("index-%08d", gen) }

// show makes the present state known.
func (x *indexLog) show() {
	v := x.view.Load()
	if v == nil || v.gen != x.gen {
		v = &indexView{gen: x.gen, header: x.header()}
		v.end.Store(int64(x.synced))
		x.view.Store(v)
		return
	}
	v.end.Store(int64(x.synced))
}

func (x *indexLog) header() []byte {
	b := make([]byte, indexDataOff)
	copy(b, indexMagic)
	copy(b[12:], x.id[:])
	binary.LittleEndian.PutUint64(b[28:], x.gen)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:indexHeaderSize], castagnoli))
	return b
}

// indexNames lists the generations of index files in the brick, ascending, and
// removes leftovers of an unfinished rewrite.
func indexNames(fs vfs.FS) (gens []uint64, err error) {
	names, err := fs.List(".")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var gen uint64
		if n, _ := fmt.Sscanf(name, "index-%08d", &gen); n != 1 {
			continue
		}
		if name == indexName(gen) {
			gens = append(gens, gen)
		} else if strings.HasSuffix(name, ".tmp") {
			if err := fs.Remove(name); err != nil {
				return nil, err
			}
		}
	}
	return gens, nil
}

// create writes generation gen with the operations that fill yields and makes
// it the index durably; afterwards x is that file.
func (x *indexLog) create(gen uint64, fill func(put func(op *indexOp))) error {
	n := &indexLog{core: x.core, view: x.view, gen: gen, name: indexName(gen), ahead: x.ahead, slack: x.slack, buf: x.buf[:0],
		seed: frameSeed(x.id, gen), next: indexDataOff, synced: 0}
	tmp := n.name + ".tmp"
	if err := n.fs.Remove(tmp); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	f, err := n.fs.Create(tmp)
	if err != nil {
		return err
	}
	n.f = f
	if err = n.fill(fill); err == nil {
		err = n.fs.Rename(tmp, n.name)
	}
	if err == nil {
		err = n.fs.SyncDir(".")
	}
	if err != nil {
		f.Close()
		_ = n.fs.Remove(tmp) // the first error says what is wrong
		return err
	}
	old := *x
	*x = *n
	x.show()
	if old.f != nil {
		_ = old.f.Close() // superseded
		_ = x.fs.Remove(old.name)
	}
	return nil
}

// fill writes header, operations and zeros, and syncs.
func (x *indexLog) fill(fill func(put func(op *indexOp))) error {
	_, err := x.f.WriteAt(x.header(), 0)
	body := make([]byte, 0, 64<<10)
	flush := func() {
		if err == nil {
			// The file gets its name when all of it is durable, so whoever reads
			// this frame may take what is before it for durable.
			x.buf = appendFrame(x.buf[:0], x.seed, x.next, x.next, body)
			_, err = x.f.WriteAt(x.buf, int64(x.next))
			x.next += Pos(len(x.buf))
		}
		body = body[:0]
	}
	fill(func(op *indexOp) {
		if len(body)+opPutSize > cap(body) {
			flush()
		}
		body = op.append(body)
	})
	flush()
	if err == nil {
		flush() // an empty frame that vouches for the last full one
	}
	if err != nil {
		return err
	}
	x.allocated = int64(x.next)
	if err := x.extend(x.ahead); err != nil {
		return err
	}
	if err := x.f.Sync(); err != nil {
		return err
	}
	x.synced = x.next
	return nil
}

// extend writes zeros so that n bytes fit after next.
func (x *indexLog) extend(n int64) error {
	end := int64(x.next) + n
	if end <= x.allocated {
		return nil
	}
	end = max(end, min(x.allocated+indexGrow, x.allocated+4*x.ahead))
	if err := writeZeros(x.f, x.allocated, end); err != nil {
		return err
	}
	x.allocated = end
	return nil
}

// append writes the operations in ops, an encoded run, as frames that end on
// whole operations, and makes them durable. With kind NoSpace nothing was
// written; after another error the brick is broken.
func (x *indexLog) append(ops []indexOp) error {
	x.buf = x.buf[:0]
	body := make([]byte, 0, min(indexBodyMax, len(ops)*opPutSize))
	next := x.next
	for i := range ops {
		body = ops[i].append(body)
		if len(body)+opPutSize > indexBodyMax || i == len(ops)-1 {
			x.buf = appendFrame(x.buf, x.seed, next, x.synced, body)
			next = x.next + Pos(len(x.buf))
			body = body[:0]
		}
	}
	need := int64(len(x.buf))
	if err := x.extend(need + x.ahead); err != nil {
		if !fault.Is(err, fault.NoSpace) {
			return err
		}
		if int64(x.next)+need > x.allocated {
			return err
		}
	}
	if _, err := x.f.WriteAt(x.buf, int64(x.next)); err != nil {
		return fault.New(fault.Internal, "brick.index", x.name, err) // never NoSpace: the bytes exist
	}
	if err := x.sync(x.f); err != nil {
		return fault.New(fault.Internal, "brick.index", x.name, err)
	}
	x.next, x.synced = next, next
	x.show()
	x.count.commits.Add(1)
	return nil
}

// open replays the newest generation into fn, with the same rules for torn ends
// as the journal, and removes older ones.
func (x *indexLog) open(fn func(op *indexOp)) error {
	gens, err := indexNames(x.fs)
	if err != nil {
		return err
	}
	if len(gens) == 0 {
		return fault.Newf(fault.Corrupt, "brick.open", indexName(1), "the index of the extents was removed")
	}
	x.gen = gens[len(gens)-1]
	x.name, x.seed = indexName(x.gen), frameSeed(x.id, x.gen)
	if x.f, err = x.fs.Open(x.name); err != nil {
		return err
	}
	if err := x.recover(fn); err != nil {
		_ = x.f.Close() // the first error is the one to report
		return err
	}
	for _, g := range gens[:len(gens)-1] {
		if err := x.fs.Remove(indexName(g)); err != nil {
			return err
		}
	}
	return nil
}

func (x *indexLog) recover(fn func(op *indexOp)) error {
	var err error
	if x.allocated, err = x.f.Size(); err != nil {
		return err
	}
	head := make([]byte, indexDataOff)
	if _, err := x.f.ReadAt(head, 0); err != nil && !isEOF(err) {
		return err
	}
	if string(head) != string(x.header()) {
		return fault.Newf(fault.Corrupt, "brick.open", x.name, "damaged header, or the index of another brick")
	}
	scan := &frameScan{f: x.f, seed: x.seed, dataOff: 0, end: x.allocated, bodyMax: indexBodyMax}
	mark := Pos(indexDataOff)
	stop, err := scan.frames(indexDataOff, 0, func(_, synced Pos, body []byte) error {
		mark = max(mark, synced)
		return decodeOps(body, fn)
	})
	if err != nil {
		return err
	}
	claim, found, err := scan.later(stop)
	if err != nil {
		return err
	}
	if claim > stop {
		return fault.Newf(fault.Corrupt, "brick.open", x.name, "the record at byte %d is damaged although everything "+
			"before byte %d was durable; this brick does not know what it holds: replace it", stop, claim)
	}
	if found {
		if err := writeZeros(x.f, int64(stop), x.allocated); err != nil {
			return err
		}
	}
	if err := rewrite(x.f, int64(mark), int64(stop)); err != nil {
		return err
	}
	x.next, x.synced = stop, stop
	if err := x.f.Sync(); err != nil {
		return err
	}
	x.show()
	return nil
}
