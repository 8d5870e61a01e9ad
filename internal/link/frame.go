package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gabion-storage/gabion/internal/fault"
)

// A frame on the wire, inside TLS, little endian:
//
//	0   length u32   bytes of body, at most MessageMax
//	4   type   u8
//	5   kind   u8    one-way, call, answer, failure, cancel
//	6   zero   u16
//	8   id     u64   of the call; 0 for one-way
//	16  body
//
// TLS authenticates every byte, so frames carry no checksum.
const headerSize = 16

type frameKind uint8

const (
	frameOneWay frameKind = iota
	frameCall
	frameAnswer  // body is the result
	frameFailure // body is an encoded error
	frameCancel  // the caller waits no more
	frameKinds
)

// typeHello is the first frame in each direction of a connection.
const typeHello Type = 0x01

// Bulk tells whether a type travels on the bulk connection.
func (t Type) Bulk() bool { return t >= 0x40 && t <= 0x47 }

// Gentle tells whether a type travels on the connection for what nobody waits for.
func (t Type) Gentle() bool { return t >= 0x48 && t <= 0x4f }

type class uint8

const (
	classMain class = iota
	classBulk
	classGentle
	classes
)

func classOf(t Type) class {
	switch {
	case t.Bulk():
		return classBulk
	case t.Gentle():
		return classGentle
	}
	return classMain
}

type header struct {
	size int // of the body, bytes
	typ  Type
	kind frameKind
	id   uint64
}

func appendHeader(b []byte, h header) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(h.size))
	b = append(b, byte(h.typ), byte(h.kind), 0, 0)
	return binary.LittleEndian.AppendUint64(b, h.id)
}

// parseHeader reads the header at the start of b, which has at least
// headerSize bytes. An error means that the peer does not speak this protocol.
func parseHeader(b []byte) (header, error) {
	_ = b[headerSize-1]
	h := header{
		size: int(binary.LittleEndian.Uint32(b)),
		typ:  Type(b[4]),
		kind: frameKind(b[5]),
		id:   binary.LittleEndian.Uint64(b[8:]),
	}
	if h.size > MessageMax {
		return h, fault.Newf(fault.Invalid, "link.read", "", "a message of %d bytes is longer than %d", h.size, MessageMax)
	}
	if h.kind >= frameKinds || b[6] != 0 || b[7] != 0 {
		return h, fault.Newf(fault.Invalid, "link.read", "", "bad frame header % x", b[:headerSize])
	}
	return h, nil
}

func size(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// hello body: "GBLK", version u16, class u8, zero u8.
const (
	helloVersion = 2
	helloSize    = 8
)

func appendHello(b []byte, c class) []byte {
	b = append(b, "GBLK"...)
	b = binary.LittleEndian.AppendUint16(b, helloVersion)
	return append(b, byte(c), 0)
}

func parseHello(b []byte) (class, error) {
	if len(b) != helloSize || string(b[:4]) != "GBLK" {
		return 0, errors.New("the peer's greeting is not one of gabion")
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != helloVersion {
		return 0, fmt.Errorf("the peer speaks version %d of the link protocol, this node version %d", v, helloVersion)
	}
	if b[6] >= byte(classes) {
		return 0, fmt.Errorf("unknown connection class %d", b[6])
	}
	return class(b[6]), nil
}

// An error as the body of a failure: kind u8, length of op u16, op, length of
// subject u16, subject, text to the end. Each part is cut at errorPartMax.
const errorPartMax = 4 << 10

func appendError(b []byte, err error) []byte {
	op, subject, text := "link.call", "", err.Error()
	var e *fault.Error
	if errors.As(err, &e) {
		op, subject, text = e.Op, e.Subject, ""
		if e.Err != nil {
			text = e.Err.Error()
		}
	}
	b = append(b, byte(fault.KindOf(err)))
	for _, s := range []string{op, subject} {
		s = s[:min(len(s), errorPartMax)]
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return append(b, text[:min(len(text), errorPartMax)]...)
}

// parseError is the inverse of appendError. Whatever a peer sends becomes some
// error; a kind that is not known here counts as Internal.
func parseError(b []byte) *fault.Error {
	bad := fault.Newf(fault.Internal, "link.call", "", "the peer sent an error that cannot be read")
	if len(b) < 1 {
		return bad
	}
	e := &fault.Error{Kind: fault.Kind(b[0])}
	if int(e.Kind) >= len(fault.Kinds()) {
		e.Kind = fault.Internal
	}
	b = b[1:]
	for _, s := range []*string{&e.Op, &e.Subject} {
		if len(b) < 2 {
			return bad
		}
		n := int(binary.LittleEndian.Uint16(b))
		if n > errorPartMax || len(b) < 2+n {
			return bad
		}
		*s, b = string(b[2:2+n]), b[2+n:]
	}
	if len(b) > 0 {
		e.Err = errors.New(string(b[:min(len(b), errorPartMax)]))
	}
	return e
}
