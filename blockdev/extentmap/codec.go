package extentmap

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/fault"
)

// A table snapshot or delta, little endian:
//
//	0   4  magic: "gtbs" snapshot, "gtbd" delta
//	4   4  version: 1, or 2 with a section about snapshots after the records
//	8   8  length of the whole in bytes
//	16  8  sequence: transactions in the snapshot; for a delta, those before it
//	24  8  count of records
//	32     records, by ascending extent number
//	end-4  CRC32C of everything before
//
// A record begins with uvarint d: d>>1 is the number minus the previous
// record's (the first one's itself), at least 1. In a snapshot d&1 is 0. An extent,
// d&1 == 0, goes on with the 32 address bytes and the uvarints blocks,
// blocks-live, bytes. A count down, d&1 == 1, goes on with uvarint freed, at
// least 1; an extent counted down to 0 leaves the table.
//
// A delta without records does not count as a transaction: it may be stored
// or not.
const (
	snapshotMagic = 'g' | 't'<<8 | 'b'<<16 | 's'<<24
	deltaMagic    = 'g' | 't'<<8 | 'b'<<16 | 'd'<<24
	tableVersion  = 1
	// tableVersionPast: a section about snapshots follows the records.
	tableVersionPast = 2
	tableHead        = 32
	tableFoot        = 4
	recordMin        = 2 // a count down: uvarint d, uvarint freed
	extentMin        = 1 + 32 + 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordWriter builds one encoding.
type recordWriter struct {
	b     []byte
	last  uint64
	count uint64
}

func newRecordWriter(magic uint32, seq uint64, sizeHint int) *recordWriter {
	b := make([]byte, tableHead, tableHead+sizeHint+tableFoot)
	binary.LittleEndian.PutUint32(b, magic)
	binary.LittleEndian.PutUint32(b[4:], tableVersion)
	binary.LittleEndian.PutUint64(b[16:], seq)
	return &recordWriter{b: b}
}

func (w *recordWriter) number(n uint64, kind uint64) {
	w.b = binary.AppendUvarint(w.b, (n-w.last)<<1|kind)
	w.last = n
	w.count++
}

func (w *recordWriter) extent(e *Extent) {
	w.number(e.Number, 0)
	w.b = append(w.b, e.Addr[:]...)
	w.b = binary.AppendUvarint(w.b, uint64(e.Blocks))
	w.b = binary.AppendUvarint(w.b, uint64(e.Blocks-e.Live))
	w.b = binary.AppendUvarint(w.b, uint64(e.Bytes))
}

func (w *recordWriter) countDown(number uint64, freed uint16) {
	w.number(number, 1)
	w.b = binary.AppendUvarint(w.b, uint64(freed))
}

func (w *recordWriter) finish() []byte {
	binary.LittleEndian.PutUint64(w.b[8:], uint64(len(w.b)+tableFoot))
	binary.LittleEndian.PutUint64(w.b[24:], w.count)
	return binary.LittleEndian.AppendUint32(w.b, crc32.Checksum(w.b, castagnoli))
}

// recordBytes is the usual size of an extent's record.
const recordBytes = 40

// Snapshot encodes the whole table. Only its owner may call it.
func (t *Table) Snapshot() []byte {
	w := newRecordWriter(snapshotMagic, t.seq, int(t.sum.extents)*recordBytes)
	for _, c := range t.chunks {
		for i := range c.es {
			w.extent(&c.es[i])
		}
	}
	w.pastSection(t.past, t.head)
	return w.finish()
}

// Snapshot encodes the table as it will be after Commit.
func (tx *Tx) Snapshot() []byte {
	seq := tx.seq
	if tx.effective() {
		seq++
	}
	w := newRecordWriter(snapshotMagic, seq, int(tx.sums().extents)*recordBytes)
	cs := tx.changes()
	put := func(upTo uint64) {
		for ; len(cs) > 0 && cs[0].e.Number < upTo; cs = cs[1:] {
			if cs[0].e.Live > 0 {
				w.extent(&cs[0].e)
			}
		}
	}
	for _, c := range tx.t.chunks {
		for i := range c.es {
			e := &c.es[i]
			put(e.Number)
			if len(cs) > 0 && cs[0].e.Number == e.Number {
				put(e.Number + 1)
				continue
			}
			w.extent(e)
		}
	}
	put(extLimit)
	w.pastSection(tx.lists())
	return w.finish()
}

// Delta encodes the change alone. It is to be loaded after everything that was
// committed before Begin, and only then.
func (tx *Tx) Delta() []byte {
	w := newRecordWriter(deltaMagic, tx.seq, len(tx.touched)*8)
	for _, c := range tx.changes() {
		switch {
		case !c.counts():
		case c.added:
			w.extent(&c.e)
		default:
			w.countDown(c.e.Number, c.freed)
		}
	}
	w.changeSection(tx)
	return w.finish()
}

// LoadTable rebuilds a table from a snapshot and the deltas made after it, in
// order. A table that never had a snapshot begins empty: snapshot is then empty
// or the first delta. An element of deltas may hold several deltas end to end.
// Corrupt: something is damaged, missing, out of order, or does not fit what it
// is applied to; a missing delta shows by the sequence numbers.
func LoadTable(snapshot []byte, deltas ...[]byte) (*Table, error) {
	t := NewTable()
	if len(snapshot) >= 4 && binary.LittleEndian.Uint32(snapshot) == deltaMagic {
		snapshot, deltas = nil, append([][]byte{snapshot}, deltas...)
	}
	if len(snapshot) > 0 {
		r, rest, err := openRecords(snapshotMagic, snapshot)
		if err != nil {
			return nil, err
		}
		if len(rest) > 0 {
			return nil, badTable("%d bytes follow the snapshot", len(rest))
		}
		if err := t.loadSnapshot(r); err != nil {
			return nil, err
		}
	}
	for _, d := range deltas {
		for first := true; first || len(d) > 0; first = false {
			r, rest, err := openRecords(deltaMagic, d)
			if err != nil {
				return nil, err
			}
			if err := t.applyDelta(r); err != nil {
				return nil, err
			}
			d = rest
		}
	}
	if err := t.checkPast(); err != nil {
		return nil, err
	}
	return t, nil
}

func badTable(format string, args ...any) error {
	return fault.Newf(fault.Corrupt, "load extent table", "", format, args...)
}

func (t *Table) loadSnapshot(r *recordReader) error {
	t.seq = r.seq
	if r.count > uint64(len(r.b)/extentMin) {
		return badTable("%d extents in %d bytes", r.count, len(r.b))
	}
	b := builder{}
	buf := make([]Extent, 0, ChunkExtents)
	for r.more() {
		rec, err := r.next()
		if err != nil {
			return err
		}
		if rec.freed != 0 || rec.e.Live == 0 {
			return badTable("extent %d of a snapshot has no live block", rec.e.Number)
		}
		t.sum.add(&rec.e, 1)
		if buf = append(buf, rec.e); len(buf) == ChunkExtents {
			b.add(buf)
			buf = buf[:0]
		}
	}
	b.add(buf)
	t.chunks = b.chunks
	if err := t.loadPast(r); err != nil {
		return err
	}
	return r.end()
}

func (t *Table) applyDelta(r *recordReader) error {
	if r.seq != t.seq {
		return badTable("a delta follows %d transactions, but the table has %d", r.seq, t.seq)
	}
	tx := t.Begin()
	for r.more() {
		rec, err := r.next()
		if err != nil {
			return err
		}
		if rec.freed == 0 {
			if rec.e.Live == 0 {
				return badTable("extent %d is added without a live block", rec.e.Number)
			}
			tx.Add(rec.e)
			if tx.err != nil {
				return badTable("extent %d is added twice", rec.e.Number)
			}
			continue
		}
		e, ok := t.Get(rec.e.Number)
		if !ok || e.Live < rec.freed {
			return badTable("%d blocks of extent %d are freed, %d were live", rec.freed, rec.e.Number, e.Live)
		}
		e.Live -= rec.freed
		tx.touched[e.Number] = &touch{e: e, freed: rec.freed}
	}
	if err := tx.loadChange(r); err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	tx.Commit()
	return nil
}

// recordReader reads the records of one encoding whose frame was checked.
type recordReader struct {
	b       []byte
	version uint32
	seq     uint64
	count   uint64 // records still to come
	last    uint64
}

// openRecords checks the frame of the first encoding in b and splits it off.
func openRecords(magic uint32, b []byte) (*recordReader, []byte, error) {
	if len(b) < tableHead+tableFoot {
		return nil, nil, badTable("%d bytes are too short for a header", len(b))
	}
	if m := binary.LittleEndian.Uint32(b); m != magic {
		return nil, nil, badTable("magic %08x instead of %08x", m, magic)
	}
	version := binary.LittleEndian.Uint32(b[4:])
	if version != tableVersion && version != tableVersionPast {
		return nil, nil, badTable("version %d is not known; this gabion reads versions %d and %d", version, tableVersion, tableVersionPast)
	}
	n := binary.LittleEndian.Uint64(b[8:])
	if n < tableHead+tableFoot || n > uint64(len(b)) {
		return nil, nil, badTable("it says %d bytes, there are %d", n, len(b))
	}
	body := b[:n-tableFoot]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[n-tableFoot:]) {
		return nil, nil, badTable("the checksum does not match")
	}
	r := &recordReader{
		b:       body[tableHead:],
		version: version,
		seq:     binary.LittleEndian.Uint64(b[16:]),
		count:   binary.LittleEndian.Uint64(b[24:]),
	}
	if r.count > uint64(len(r.b)/recordMin) {
		return nil, nil, badTable("%d records in %d bytes", r.count, len(r.b))
	}
	return r, b[n:], nil
}

// record is an extent, or with freed > 0 a count down of e.Number.
type record struct {
	e     Extent
	freed uint16
}

func (r *recordReader) more() bool { return r.count > 0 }

func (r *recordReader) end() error {
	if len(r.b) != 0 {
		return badTable("%d bytes follow the last record", len(r.b))
	}
	return nil
}

// uvarint reads a canonical uvarint of at most limit.
func (r *recordReader) uvarint(limit uint64) (uint64, bool) {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit || (n > 1 && r.b[n-1] == 0) {
		return 0, false
	}
	r.b = r.b[n:]
	return v, true
}

func (r *recordReader) next() (record, error) {
	var rec record
	d, ok := r.uvarint(extLimit<<1 - 1)
	if !ok || d>>1 == 0 || r.last+d>>1 >= extLimit {
		return rec, badTable("the number after extent %d is out of range", r.last)
	}
	r.last += d >> 1
	r.count--
	rec.e.Number = r.last
	if d&1 == 1 {
		freed, ok := r.uvarint(1<<16 - 1)
		if !ok || freed == 0 {
			return rec, badTable("the count for extent %d is out of range", r.last)
		}
		rec.freed = uint16(freed)
		return rec, nil
	}
	if len(r.b) < len(rec.e.Addr) {
		return rec, badTable("extent %d is cut off", r.last)
	}
	r.b = r.b[copy(rec.e.Addr[:], r.b):]
	blocks, ok1 := r.uvarint(1<<16 - 1)
	dead, ok2 := r.uvarint(blocks)
	size, ok3 := r.uvarint(1<<32 - 1)
	if !ok1 || !ok2 || !ok3 || blocks == 0 {
		return rec, badTable("extent %d has a field out of range", r.last)
	}
	rec.e.Blocks, rec.e.Live, rec.e.Bytes = uint16(blocks), uint16(blocks-dead), uint32(size)
	return rec, nil
}
