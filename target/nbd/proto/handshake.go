package proto

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/gabion-storage/gabion/internal/fault"
)

// AppendGreeting appends what the server says first: NBDMAGIC, IHAVEOPT and its
// handshake flags.
func AppendGreeting(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicInit)
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	return binary.BigEndian.AppendUint16(b, FlagFixedNewstyle|FlagNoZeroes)
}

// ClientFlags is the client's answer to the greeting.
type ClientFlags struct {
	FixedNewstyle bool
	NoZeroes      bool
}

// DecodeClientFlags reads the ClientFlagsSize bytes that follow the greeting. A
// flag that the server did not offer is a fault of kind Invalid: the document
// has the connection dropped then.
func DecodeClientFlags(b []byte) (ClientFlags, error) {
	if len(b) != ClientFlagsSize {
		return ClientFlags{}, invalid("client flags", "%d bytes, not %d", len(b), ClientFlagsSize)
	}
	f := binary.BigEndian.Uint32(b)
	if f&^(FlagClientFixedNewstyle|FlagClientNoZeroes) != 0 {
		return ClientFlags{}, invalid("client flags", "%#x has bits that were not offered", f)
	}
	return ClientFlags{
		FixedNewstyle: f&FlagClientFixedNewstyle != 0,
		NoZeroes:      f&FlagClientNoZeroes != 0,
	}, nil
}

// AppendClientFlags appends the client's flags.
func AppendClientFlags(b []byte, f ClientFlags) []byte {
	var v uint32
	if f.FixedNewstyle {
		v |= FlagClientFixedNewstyle
	}
	if f.NoZeroes {
		v |= FlagClientNoZeroes
	}
	return binary.BigEndian.AppendUint32(b, v)
}

// DecodeOptionHeader reads the header of an option: its type and the length of
// the data that follows, at most OptionMax. A fault of kind Invalid means that
// the stream cannot be followed any further.
func DecodeOptionHeader(b []byte) (o Option, length int, err error) {
	if len(b) != OptionHeaderSize {
		return 0, 0, invalid("option header", "%d bytes, not %d", len(b), OptionHeaderSize)
	}
	if m := binary.BigEndian.Uint64(b); m != MagicOption {
		return 0, 0, invalid("option header", "magic %#x", m)
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n > OptionMax {
		return 0, 0, invalid("option header", "%d bytes of data, the limit is %d", n, OptionMax)
	}
	return Option(binary.BigEndian.Uint32(b[8:])), int(n), nil
}

// AppendOption appends an option with its data.
func AppendOption(b []byte, o Option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ExportQuery is the data of OptInfo and OptGo.
type ExportQuery struct {
	Name string
	// Infos are the items asked for, in the client's order; unknown ones too.
	Infos []Info
}

// Wants tells whether the client asked for item i.
func (q ExportQuery) Wants(i Info) bool {
	for _, w := range q.Infos {
		if w == i {
			return true
		}
	}
	return false
}

// DecodeExportQuery reads the data of OptInfo or OptGo: u32 name length, name,
// u16 count, count times u16, and nothing after it. Kinds: Invalid, or NoSpace
// for a name longer than NameMax.
func DecodeExportQuery(b []byte) (ExportQuery, error) {
	const op = "export query"
	if len(b) < 4 {
		return ExportQuery{}, invalid(op, "%d bytes are too short for a name length", len(b))
	}
	n := uint64(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n+2 > uint64(len(b)) {
		return ExportQuery{}, invalid(op, "a name of %d bytes in %d bytes of data", n, len(b))
	}
	name, err := DecodeName(b[:n])
	if err != nil {
		return ExportQuery{}, err
	}
	b = b[n:]
	count := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) != 2*count {
		return ExportQuery{}, invalid(op, "%d information items in %d bytes", count, len(b))
	}
	q := ExportQuery{Name: name}
	if count > 0 {
		q.Infos = make([]Info, count)
		for i := range q.Infos {
			q.Infos[i] = Info(binary.BigEndian.Uint16(b[2*i:]))
		}
	}
	return q, nil
}

// AppendExportQuery appends the data of OptInfo or OptGo.
func AppendExportQuery(b []byte, q ExportQuery) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.Name)))
	b = append(b, q.Name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(q.Infos)))
	for _, i := range q.Infos {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// DecodeName checks an export name: UTF-8 without NUL, at most NameMax bytes.
// Kinds: Invalid, or NoSpace when it is too long.
func DecodeName(b []byte) (string, error) {
	if len(b) > NameMax {
		return "", fault.Newf(fault.NoSpace, "nbd.decode", "export name",
			"%d bytes, the limit is %d", len(b), NameMax)
	}
	if !utf8.Valid(b) {
		return "", invalid("export name", "it is not UTF-8")
	}
	for _, c := range b {
		if c == 0 {
			return "", invalid("export name", "it contains a NUL")
		}
	}
	return string(b), nil
}

func invalid(subject, format string, args ...any) error {
	return fault.Newf(fault.Invalid, "nbd.decode", subject, format, args...)
}
