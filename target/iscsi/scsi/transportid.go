package scsi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// appendTransportID appends the TransportID of an initiator port: format 01b,
// name and ISID (SPC-4, 7.6.4.6).
func appendTransportID(b []byte, id NexusID) []byte {
	name := id.Initiator + ",i,0x" + hex.EncodeToString(id.ISID[:])
	n := max(20, (len(name)+1+3)&^3)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	at := len(b)
	b = append(b, make([]byte, n)...)
	copy(b[at:], name)
	return b
}

// decodeTransportID reads one TransportID from the front of b, and its length.
// Only those of initiator ports will do: a device name alone (format 00b) names
// no nexus.
func decodeTransportID(b []byte) (id NexusID, n int, ok bool) {
	if len(b) < 24 || b[0] != 0x45 {
		return id, 0, false
	}
	n = 4 + int(binary.BigEndian.Uint16(b[2:]))
	if n < 24 || n%4 != 0 || n > len(b) {
		return id, 0, false
	}
	text, _, terminated := bytes.Cut(b[4:n], []byte{0})
	name, isid, cut := strings.Cut(string(text), ",i,0x")
	if !terminated || !cut || len(name) == 0 || len(name) > InitiatorNameMax || len(isid) != 12 {
		return id, 0, false
	}
	raw, err := hex.DecodeString(isid)
	if err != nil {
		return id, 0, false
	}
	id.Initiator = strings.ToLower(name)
	copy(id.ISID[:], raw)
	return id, n, true
}
