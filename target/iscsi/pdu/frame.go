package pdu

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gabion-storage/gabion/internal/fault"
)

// DigestSize is the length of a CRC32C digest, in bytes.
const DigestSize = 4

// Digests says which digests a connection uses (sections 11.2.3, 13.1).
type Digests struct {
	Header, Data bool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Padded is n rounded up to whole words, as segments are on the wire.
func Padded(n int) int { return (n + 3) &^ 3 }

// Size is the length of the whole PDU that h begins, in bytes.
func Size(h *Header, d Digests) int { return DataOffset(h, d) + tail(h, d) }

// DataOffset is where the data segment begins, counted from the header.
func DataOffset(h *Header, d Digests) int {
	n := HeaderSize + h.AHSLength()
	if d.Header {
		n += DigestSize
	}
	return n
}

func tail(h *Header, d Digests) int {
	n := h.DataLength()
	if n == 0 {
		return 0
	}
	if d.Data {
		return Padded(n) + DigestSize
	}
	return Padded(n)
}

// PutHeaderDigest writes the digest of the header and its additional headers
// behind them. b begins with the header.
func PutHeaderDigest(b []byte, ahs int) {
	n := HeaderSize + ahs
	binary.LittleEndian.PutUint32(b[n:n+DigestSize], crc32.Checksum(b[:n], castagnoli))
}

// HeaderDigestOK checks what PutHeaderDigest wrote.
func HeaderDigestOK(b []byte, ahs int) bool {
	n := HeaderSize + ahs
	return binary.LittleEndian.Uint32(b[n:n+DigestSize]) == crc32.Checksum(b[:n], castagnoli)
}

// DataDigest is the digest of a data segment, to be sent in this byte order.
// The padding counts and is taken to be zeros.
func DataDigest(data []byte) [DigestSize]byte {
	return FinishDataDigest(UpdateDataDigest(0, data), len(data))
}

// UpdateDataDigest continues a digest over further bytes; it begins with 0.
func UpdateDataDigest(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// FinishDataDigest adds the padding of n bytes of data and gives the digest.
func FinishDataDigest(sum uint32, n int) (d [DigestSize]byte) {
	var zeros [4]byte
	sum = crc32.Update(sum, castagnoli, zeros[:Padded(n)-n])
	binary.LittleEndian.PutUint32(d[:], sum)
	return d
}

// DataDigestOK checks the digest of a data segment with its padding: b is both
// and the digest behind them.
func DataDigestOK(b []byte) bool {
	n := len(b) - DigestSize
	return binary.LittleEndian.Uint32(b[n:]) == crc32.Checksum(b[:n], castagnoli)
}

// Types of additional header segments (section 11.2.2).
const (
	AHSExtendedCDB     = 1
	AHSBidirectionalIn = 2
)

// AHS are the additional headers that gabion understands.
type AHS struct {
	// CDB is what follows the 16 bytes of the basic header; it points into the input.
	CDB []byte
	// ReadLength is the expected length of a bidirectional command's read
	// part, in bytes; HasRead says that it is there.
	ReadLength uint32
	HasRead    bool
}

// DecodeAHS reads additional headers. Segments of unknown types are skipped.
// Invalid: lengths that do not add up, or a type twice.
func DecodeAHS(b []byte) (a AHS, err error) {
	for len(b) > 0 {
		if len(b) < 4 {
			return a, badAHS("%d bytes are no segment", len(b))
		}
		n := int(binary.BigEndian.Uint16(b)) // of what follows the type
		whole := Padded(3 + n)
		if n < 1 || whole > len(b) {
			return a, badAHS("a segment of %d bytes in %d", n, len(b))
		}
		switch body := b[4 : 3+n]; b[2] & 0x3f {
		case AHSExtendedCDB:
			if a.CDB != nil || len(body) == 0 {
				return a, badAHS("a second or empty extended CDB")
			}
			a.CDB = body
		case AHSBidirectionalIn:
			if a.HasRead || len(body) != 4 {
				return a, badAHS("a bidirectional read length of %d bytes, or a second one", len(body))
			}
			a.ReadLength, a.HasRead = binary.BigEndian.Uint32(body), true
		}
		b = b[whole:]
	}
	return a, nil
}

// Append appends the segments of a as they are on the wire.
func (a *AHS) Append(b []byte) []byte {
	if a.CDB != nil {
		b = binary.BigEndian.AppendUint16(b, uint16(len(a.CDB)+1))
		b = append(append(b, AHSExtendedCDB, 0), a.CDB...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	if a.HasRead {
		b = append(binary.BigEndian.AppendUint16(b, 5), AHSBidirectionalIn, 0)
		b = binary.BigEndian.AppendUint32(b, a.ReadLength)
	}
	return b
}

func badAHS(format string, args ...any) error {
	return fault.Newf(fault.Invalid, "iscsi.ahs", "", format, args...)
}
