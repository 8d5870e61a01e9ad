package proto

import (
	"encoding/binary"
	"unicode/utf8"
)

// AppendOptionReply appends one reply to option o.
func AppendOptionReply(b []byte, o Option, r Reply, data []byte) []byte {
	b = appendOptionReplyHeader(b, o, r, len(data))
	return append(b, data...)
}

func appendOptionReplyHeader(b []byte, o Option, r Reply, n int) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOptionReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// AppendError appends an error reply with a sentence for the person at the
// other end, cut to NameMax bytes.
func AppendError(b []byte, o Option, r Reply, text string) []byte {
	text = cut(text)
	return append(appendOptionReplyHeader(b, o, r, len(text)), text...)
}

// AppendServer appends one line of OptList: a name and a description.
func AppendServer(b []byte, name, description string) []byte {
	name, description = cut(name), cut(description)
	b = appendOptionReplyHeader(b, OptList, RepServer, 4+len(name)+len(description))
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, description...)
}

// AppendInfoExport appends size in bytes and transmission flags.
func AppendInfoExport(b []byte, o Option, size int64, flags uint16) []byte {
	b = appendOptionReplyHeader(b, o, RepInfo, 12)
	b = binary.BigEndian.AppendUint16(b, uint16(InfoExport))
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	return binary.BigEndian.AppendUint16(b, flags)
}

// AppendInfoText appends InfoName or InfoDescription.
func AppendInfoText(b []byte, o Option, i Info, text string) []byte {
	text = cut(text)
	b = appendOptionReplyHeader(b, o, RepInfo, 2+len(text))
	b = binary.BigEndian.AppendUint16(b, uint16(i))
	return append(b, text...)
}

// AppendInfoBlockSize appends the size constraints: the smallest block (a power
// of two, bytes), BlockPreferred and PayloadMax.
func AppendInfoBlockSize(b []byte, o Option, min int) []byte {
	b = appendOptionReplyHeader(b, o, RepInfo, 14)
	b = binary.BigEndian.AppendUint16(b, uint16(InfoBlockSize))
	b = binary.BigEndian.AppendUint32(b, uint32(min))
	b = binary.BigEndian.AppendUint32(b, BlockPreferred)
	return binary.BigEndian.AppendUint32(b, PayloadMax)
}

// AppendExportNameReply appends the answer to OptExportName, which has no
// header, and with which transmission begins.
func AppendExportNameReply(b []byte, size int64, flags uint16, noZeroes bool) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = binary.BigEndian.AppendUint16(b, flags)
	if !noZeroes {
		b = append(b, make([]byte, ExportNamePadding)...)
	}
	return b
}

// OptionReplyHeader is the header of a reply to an option.
type OptionReplyHeader struct {
	Option Option
	Reply  Reply
	Length int // bytes of data that follow, at most OptionMax
}

// DecodeOptionReplyHeader reads OptionReplyHeaderSize bytes.
func DecodeOptionReplyHeader(b []byte) (OptionReplyHeader, error) {
	const op = "option reply header"
	if len(b) != OptionReplyHeaderSize {
		return OptionReplyHeader{}, invalid(op, "%d bytes, not %d", len(b), OptionReplyHeaderSize)
	}
	if m := binary.BigEndian.Uint64(b); m != MagicOptionReply {
		return OptionReplyHeader{}, invalid(op, "magic %#x", m)
	}
	n := binary.BigEndian.Uint32(b[16:])
	if n > OptionMax {
		return OptionReplyHeader{}, invalid(op, "%d bytes of data, the limit is %d", n, OptionMax)
	}
	return OptionReplyHeader{
		Option: Option(binary.BigEndian.Uint32(b[8:])),
		Reply:  Reply(binary.BigEndian.Uint32(b[12:])),
		Length: int(n),
	}, nil
}

// cut shortens s to NameMax bytes without splitting a character.
func cut(s string) string { return cutTo(s, NameMax) }

func cutTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
