package dht

import (
	"bytes"
	"cmp"
	"encoding/binary"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Layouts. All integers are little-endian; "zero" bytes must be zero.
//
//	put      0 brick 16 | 16 volume 16 | 32 epoch 8 | 40 count 4 | 44 zero 4
//	         48 count * { addr 32 | number 8 | epoch 8 | length 4 | flags 4 (1: relief, 2: summed) |
//	                    CRC32C 4 }
//	         then the bytes of all extents, one after another
//	         answer: empty
//	read     0 brick 16 | 16 addr 32 | 48 offset 8 | 56 length 4 (0: all) | 60 zero 4
//	         answer: the bytes
//	delete   0 brick 16 | 16 volume 16 | 32 epoch 8 | 40 count 4 | 44 zero 4
//	         48 count * addr 32
//	         answer: empty
//	list     0 brick 16 | 16 volume 16 | 32 after: number 8, epoch 8, addr 32
//	         80 limit 4 | 84 zero 4
//	         answer: 0 count 4 | 4 more 4 (0 or 1)
//	         8 count * { addr 32 | number 8 | epoch 8 | size 8 }
//	stat     0 brick 16 | 16 count 4 | 20 zero 4 | 24 count * addr 32
//	         answer: count * size 8 (-1: absent)
//	seal     0 volume 16 | 16 epoch 8
//	         answer: empty
//	check    0 brick 16 | 16 addr 32
//	         answer: empty
const (
	putHead, putEntry   = 48, 60
	readSize            = 64
	deleteHead          = 48
	listSize            = 88
	listHead, listEntry = 8, 56
	statHead            = 24
	sealSize            = 24
	checkSize           = 48
)

var le = binary.LittleEndian

func badMessage(op, format string, args ...any) error {
	return fault.Newf(fault.Invalid, "dht."+op, "", format, args...)
}

// putRequest is a batch of extents for one brick.
type putRequest struct {
	brick   ident.BrickID
	volume  ident.VolumeID
	epoch   uint64 // of the writer, for fencing
	gentle  bool   // nobody waits for it; the type of the message says so
	extents []brick.Extent
}

// head encodes all but the extents' bytes.
func (r *putRequest) head() []byte {
	b := make([]byte, putHead, putHead+len(r.extents)*putEntry)
	copy(b, r.brick[:])
	copy(b[16:], r.volume[:])
	le.PutUint64(b[32:], r.epoch)
	le.PutUint32(b[40:], uint32(len(r.extents)))
	for _, x := range r.extents {
		b = append(b, x.Addr[:]...)
		b = le.AppendUint64(b, x.Number)
		b = le.AppendUint64(b, x.Epoch)
		b = le.AppendUint32(b, uint32(len(x.Data)))
		b = le.AppendUint32(b, putFlags(x))
		b = le.AppendUint32(b, x.Sum)
	}
	return b
}

// Flags of an extent: it may use the reserve of a brick; it has a checksum.
const (
	putRelief = 1
	putSummed = 2
)

func putFlags(x brick.Extent) (flags uint32) {
	if x.Relief {
		flags |= putRelief
	}
	if x.Summed {
		flags |= putSummed
	}
	return flags
}

// decodePut refers to b.
func decodePut(b []byte) (putRequest, error) {
	var r putRequest
	if len(b) < putHead {
		return r, badMessage("put", "message of %d bytes", len(b))
	}
	copy(r.brick[:], b)
	copy(r.volume[:], b[16:])
	r.epoch = le.Uint64(b[32:])
	if z := le.Uint32(b[44:]); z != 0 {
		return r, badMessage("put", "%#x where zero should be", z)
	}
	count := uint64(le.Uint32(b[40:]))
	if count == 0 || count > PutCountMax || uint64(len(b)) < putHead+count*putEntry {
		return r, badMessage("put", "%d extents in a message of %d bytes; 1 to %d are possible", count, len(b), PutCountMax)
	}
	data := b[putHead+count*putEntry:]
	r.extents = make([]brick.Extent, count)
	for i := range r.extents {
		e := b[putHead+i*putEntry:][:putEntry]
		n, flags := uint64(le.Uint32(e[48:])), le.Uint32(e[52:])
		if n == 0 || n > ExtentMax || n > uint64(len(data)) {
			return r, badMessage("put", "extent of %d bytes; 1 to %d are possible and %d are left in the message", n, ExtentMax, len(data))
		}
		if flags&^(putRelief|putSummed) != 0 {
			return r, badMessage("put", "extent with the flags %#x", flags)
		}
		r.extents[i] = brick.Extent{Addr: ident.Addr(e[:32]), Volume: r.volume,
			Number: le.Uint64(e[32:]), Epoch: le.Uint64(e[40:]), Data: data[:n:n], Relief: flags&putRelief != 0,
			Summed: flags&putSummed != 0, Sum: le.Uint32(e[56:])}
		data = data[n:]
	}
	if len(data) != 0 {
		return r, badMessage("put", "%d bytes too many", len(data))
	}
	return r, nil
}

type readRequest struct {
	brick  ident.BrickID
	addr   ident.Addr
	off    int64 // bytes
	length int   // bytes; 0: the whole extent
}

func (r readRequest) encode() []byte {
	b := make([]byte, readSize)
	copy(b, r.brick[:])
	copy(b[16:], r.addr[:])
	le.PutUint64(b[48:], uint64(r.off))
	le.PutUint32(b[56:], uint32(r.length))
	return b
}

func decodeRead(b []byte) (readRequest, error) {
	var r readRequest
	if len(b) != readSize || le.Uint32(b[60:]) != 0 {
		return r, badMessage("read", "message of %d bytes", len(b))
	}
	copy(r.brick[:], b)
	copy(r.addr[:], b[16:])
	off, n := le.Uint64(b[48:]), uint64(le.Uint32(b[56:]))
	if off > ExtentMax || n > ExtentMax-off || n == 0 && off != 0 {
		return r, badMessage("read", "bytes [%d, %d+%d) are not within an extent of at most %d bytes", off, off, n, ExtentMax)
	}
	r.off, r.length = int64(off), int(n)
	return r, nil
}

type deleteRequest struct {
	brick  ident.BrickID
	volume ident.VolumeID
	epoch  uint64
	addrs  []ident.Addr
}

func (r *deleteRequest) encode() []byte {
	b := make([]byte, deleteHead, deleteHead+len(r.addrs)*32)
	copy(b, r.brick[:])
	copy(b[16:], r.volume[:])
	le.PutUint64(b[32:], r.epoch)
	le.PutUint32(b[40:], uint32(len(r.addrs)))
	for i := range r.addrs {
		b = append(b, r.addrs[i][:]...)
	}
	return b
}

func decodeDelete(b []byte) (deleteRequest, error) {
	var r deleteRequest
	if len(b) < deleteHead {
		return r, badMessage("delete", "message of %d bytes", len(b))
	}
	copy(r.brick[:], b)
	copy(r.volume[:], b[16:])
	r.epoch = le.Uint64(b[32:])
	var err error
	r.addrs, err = decodeAddrs("delete", le.Uint64(b[40:]), b[deleteHead:])
	return r, err
}

func decodeAddrs(op string, count uint64, b []byte) ([]ident.Addr, error) {
	if count == 0 || count > AddrsMax || uint64(len(b)) != count*32 {
		return nil, badMessage(op, "%d addresses in %d bytes; 1 to %d are possible", count, len(b), AddrsMax)
	}
	as := make([]ident.Addr, count)
	for i := range as {
		copy(as[i][:], b[i*32:])
	}
	return as, nil
}

type listRequest struct {
	brick  ident.BrickID
	volume ident.VolumeID
	after  brick.Ref // its Size is not used; zero: from the start
	limit  int
}

func (r listRequest) encode() []byte {
	b := make([]byte, listSize)
	copy(b, r.brick[:])
	copy(b[16:], r.volume[:])
	le.PutUint64(b[32:], r.after.Number)
	le.PutUint64(b[40:], r.after.Epoch)
	copy(b[48:], r.after.Addr[:])
	le.PutUint32(b[80:], uint32(r.limit))
	return b
}

func decodeList(b []byte) (listRequest, error) {
	var r listRequest
	if len(b) != listSize {
		return r, badMessage("list", "message of %d bytes", len(b))
	}
	copy(r.brick[:], b)
	copy(r.volume[:], b[16:])
	r.after = brick.Ref{Number: le.Uint64(b[32:]), Epoch: le.Uint64(b[40:]), Addr: ident.Addr(b[48:80])}
	limit := le.Uint64(b[80:])
	if limit == 0 || limit > ListPageMax {
		return r, badMessage("list", "page of %d; 1 to %d are possible", limit, ListPageMax)
	}
	r.limit = int(limit)
	return r, nil
}

// listPage is one page, in the order of compareRefs.
type listPage struct {
	refs []brick.Ref
	more bool
}

func (p listPage) encode() []byte {
	b := make([]byte, listHead, listHead+len(p.refs)*listEntry)
	le.PutUint32(b, uint32(len(p.refs)))
	if p.more {
		b[4] = 1
	}
	for i := range p.refs {
		r := &p.refs[i]
		b = append(b, r.Addr[:]...)
		b = le.AppendUint64(b, r.Number)
		b = le.AppendUint64(b, r.Epoch)
		b = le.AppendUint64(b, uint64(r.Size))
	}
	return b
}

// decodeListPage refuses pages that do not go on behind after, so that paging ends.
func decodeListPage(b []byte, after brick.Ref) (listPage, error) {
	var p listPage
	if len(b) < listHead {
		return p, badMessage("list", "answer of %d bytes", len(b))
	}
	count, more := uint64(le.Uint32(b)), le.Uint32(b[4:])
	if count > ListPageMax || uint64(len(b)) != listHead+count*listEntry || more > 1 || more == 1 && count == 0 {
		return p, badMessage("list", "answer of %d bytes with %d extents", len(b), count)
	}
	p.more = more == 1
	p.refs = make([]brick.Ref, count)
	for i := range p.refs {
		e := b[listHead+i*listEntry:]
		r := brick.Ref{Addr: ident.Addr(e[:32]), Number: le.Uint64(e[32:]), Epoch: le.Uint64(e[40:]), Size: int64(le.Uint64(e[48:]))}
		if r.Size < 0 || r.Size > ExtentMax || compareRefs(after, r) >= 0 {
			return p, badMessage("list", "answer out of order, or with an extent of %d bytes", r.Size)
		}
		p.refs[i], after = r, r
	}
	return p, nil
}

// compareRefs is the order of listings: number, epoch, address.
func compareRefs(a, b brick.Ref) int {
	if c := cmp.Compare(a.Number, b.Number); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Epoch, b.Epoch); c != 0 {
		return c
	}
	return bytes.Compare(a.Addr[:], b.Addr[:])
}

type statRequest struct {
	brick ident.BrickID
	addrs []ident.Addr
}

func (r *statRequest) encode() []byte {
	b := make([]byte, statHead, statHead+len(r.addrs)*32)
	copy(b, r.brick[:])
	le.PutUint32(b[16:], uint32(len(r.addrs)))
	for i := range r.addrs {
		b = append(b, r.addrs[i][:]...)
	}
	return b
}

func decodeStat(b []byte) (statRequest, error) {
	var r statRequest
	if len(b) < statHead {
		return r, badMessage("stat", "message of %d bytes", len(b))
	}
	copy(r.brick[:], b)
	var err error
	r.addrs, err = decodeAddrs("stat", le.Uint64(b[16:]), b[statHead:])
	return r, err
}

func encodeSizes(sizes []int64) []byte {
	b := make([]byte, 0, 8*len(sizes))
	for _, n := range sizes {
		b = le.AppendUint64(b, uint64(n))
	}
	return b
}

func decodeSizes(b []byte, count int) ([]int64, error) {
	if len(b) != 8*count {
		return nil, badMessage("stat", "answer of %d bytes for %d addresses", len(b), count)
	}
	sizes := make([]int64, count)
	for i := range sizes {
		if sizes[i] = int64(le.Uint64(b[8*i:])); sizes[i] < -1 || sizes[i] > ExtentMax {
			return nil, badMessage("stat", "answer with an extent of %d bytes", sizes[i])
		}
	}
	return sizes, nil
}

type sealRequest struct {
	volume ident.VolumeID
	epoch  uint64
}

func (r sealRequest) encode() []byte {
	return le.AppendUint64(append(make([]byte, 0, sealSize), r.volume[:]...), r.epoch)
}

func decodeSeal(b []byte) (sealRequest, error) {
	if len(b) != sealSize {
		return sealRequest{}, badMessage("seal", "message of %d bytes", len(b))
	}
	return sealRequest{volume: ident.VolumeID(b[:16]), epoch: le.Uint64(b[16:])}, nil
}

type checkRequest struct {
	brick ident.BrickID
	addr  ident.Addr
}

func (r checkRequest) encode() []byte {
	return append(append(make([]byte, 0, checkSize), r.brick[:]...), r.addr[:]...)
}

func decodeCheck(b []byte) (checkRequest, error) {
	if len(b) != checkSize {
		return checkRequest{}, badMessage("check", "message of %d bytes", len(b))
	}
	return checkRequest{brick: ident.BrickID(b[:16]), addr: ident.Addr(b[16:])}, nil
}
