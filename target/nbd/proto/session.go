package proto

import "encoding/binary"

// OptSession is an option of gabion's own: a client that comes back names
// itself before GO, so that the server can end what is left of its earlier
// sessions first. The number lies far outside of those that the document gives
// away; a server that does not know it answers ERR_UNSUP, as to any other.
const OptSession Option = 0x67620001 // "gb", 1

// SessionOptionSize is the size of OptSession's data, in bytes:
//
//	0           16        24      25
//	| client id | session | flags |
const SessionOptionSize = 25

const flagForce = 1 << 0

// SessionOption is the data of OptSession; see target.Client.
type SessionOption struct {
	ID      [16]byte
	Session uint64
	Force   bool
}

// AppendSessionOption appends the data of OptSession.
func AppendSessionOption(b []byte, s SessionOption) []byte {
	b = append(b, s.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Session)
	if s.Force {
		return append(b, flagForce)
	}
	return append(b, 0)
}

// DecodeSessionOption reads the data of OptSession. Another length, an id of
// zeros or an unknown flag is a fault of kind Invalid.
func DecodeSessionOption(b []byte) (SessionOption, error) {
	const op = "session option"
	if len(b) != SessionOptionSize {
		return SessionOption{}, invalid(op, "%d bytes, not %d", len(b), SessionOptionSize)
	}
	s := SessionOption{ID: [16]byte(b[:16]), Session: binary.BigEndian.Uint64(b[16:]), Force: b[24]&flagForce != 0}
	if s.ID == [16]byte{} {
		return SessionOption{}, invalid(op, "the client has no id")
	}
	if b[24]&^flagForce != 0 {
		return SessionOption{}, invalid(op, "flags %#x", b[24])
	}
	return s, nil
}
