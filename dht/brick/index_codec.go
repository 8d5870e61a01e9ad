package brick

import (
	"encoding/binary"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// The body of an index frame is a run of operations, little endian:
//
//	put     1, addr 32, volume 16, number 8, epoch 8, segment 4, offset 4, size 4
//	delete  2, addr 32
//	open    3, segment 4     from now on it may hold gaps that are not holes yet
//	clean   4, segment 4     all its gaps are holes, durably
//
// offset counts units of 4096 bytes, size bytes of the extent.
const (
	opPut    = 1
	opDelete = 2
	opOpen   = 3
	opClean  = 4

	opPutSize     = 1 + 32 + 16 + 8 + 8 + 4 + 4 + 4
	opDeleteSize  = 1 + 32
	opSegmentSize = 1 + 4
)

// indexOp is one operation; which fields count depends on code.
type indexOp struct {
	code          byte
	addr          ident.Addr
	volume        ident.VolumeID
	number, epoch uint64
	segment       uint32
	offset, size  uint32
}

func (op *indexOp) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, op.code)
	switch op.code {
	case opPut:
		b = append(b, op.addr[:]...)
		b = append(b, op.volume[:]...)
		b = le.AppendUint64(b, op.number)
		b = le.AppendUint64(b, op.epoch)
		b = le.AppendUint32(b, op.segment)
		b = le.AppendUint32(b, op.offset)
		b = le.AppendUint32(b, op.size)
	case opDelete:
		b = append(b, op.addr[:]...)
	default:
		b = le.AppendUint32(b, op.segment)
	}
	return b
}

// decodeOp reads the operation at the start of b and returns the rest.
func decodeOp(b []byte, op *indexOp) (rest []byte, ok bool) {
	le := binary.LittleEndian
	if len(b) == 0 {
		return nil, false
	}
	*op = indexOp{code: b[0]}
	switch {
	case op.code == opPut && len(b) >= opPutSize:
		copy(op.addr[:], b[1:])
		copy(op.volume[:], b[33:])
		op.number, op.epoch = le.Uint64(b[49:]), le.Uint64(b[57:])
		op.segment, op.offset, op.size = le.Uint32(b[65:]), le.Uint32(b[69:]), le.Uint32(b[73:])
		return b[opPutSize:], op.size > 0
	case op.code == opDelete && len(b) >= opDeleteSize:
		copy(op.addr[:], b[1:])
		return b[opDeleteSize:], true
	case (op.code == opOpen || op.code == opClean) && len(b) >= opSegmentSize:
		op.segment = le.Uint32(b[1:])
		return b[opSegmentSize:], true
	}
	return nil, false
}

// decodeOps calls fn for each operation of a body.
func decodeOps(body []byte, fn func(op *indexOp)) error {
	var op indexOp
	for len(body) > 0 {
		rest, ok := decodeOp(body, &op)
		if !ok {
			return fault.Newf(fault.Corrupt, "brick.index", "", "unknown operation %d", body[0])
		}
		fn(&op)
		body = rest
	}
	return nil
}
