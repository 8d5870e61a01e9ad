// Package login is the negotiation of iSCSI (RFC 7143, sections 6, 7, 12 and
// 13): text, the table of keys, CHAP, and the state machine of a target's login. It
// is pure: a request in, a response out. Randomness is given to it, and what
// it must know of targets it asks its caller.
package login

import (
	"bytes"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Limits of text.
const (
	// TextMax is the longest text of one negotiation, gathered over the PDUs
	// that continue each other, in bytes.
	TextMax = 16 << 10
	// KeyMax is the longest key and ValueMax the longest value, in bytes
	// (section 6.1; a binary value may be as long as CHAP needs).
	KeyMax   = 63
	ValueMax = 2100
	// PairsMax bounds the pairs of one text.
	PairsMax = 128
	// NameMax is the longest iSCSI name, in bytes (section 4.2.7.1).
	NameMax = 223
)

// Pair is one key=value.
type Pair struct {
	Key, Value string
}

// ParseText reads pairs that each end with a zero byte; one or more zero bytes at
// the end are allowed, and the last may be missing. Invalid: no "=", a key that is
// no key, or a limit.
func ParseText(b []byte) ([]Pair, error) {
	if len(b) > TextMax {
		return nil, badText("%d bytes of text, the limit is %d", len(b), TextMax)
	}
	var out []Pair
	for len(b) > 0 {
		item := b
		if i := bytes.IndexByte(b, 0); i >= 0 {
			item, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if len(item) == 0 {
			continue // padding
		}
		key, value, ok := strings.Cut(string(item), "=")
		switch {
		case !ok:
			return nil, badText("%.40q has no =", item)
		case !keyOK(key):
			return nil, badText("%.40q is no key", key)
		case len(value) > ValueMax:
			return nil, badText("the value of %s has %d bytes, the limit is %d", key, len(value), ValueMax)
		case len(out) == PairsMax:
			return nil, badText("more than %d keys", PairsMax)
		}
		out = append(out, Pair{key, value})
	}
	return out, nil
}

// keyOK demands of a key that it consists of letters, digits and the few signs
// that section 6.1 allows in it. That it begins with a capital is not demanded:
// iSCSIProtocolLevel does not.
func keyOK(k string) bool {
	if len(k) == 0 || len(k) > KeyMax {
		return false
	}
	for _, c := range []byte(k) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && !strings.ContainsRune(".-+@_#", rune(c)) {
			return false
		}
	}
	return true
}

// AppendPair appends key=value and the zero byte.
func AppendPair(dst []byte, key, value string) []byte {
	dst = append(append(dst, key...), '=')
	return append(append(dst, value...), 0)
}

// NameOK tells whether s can be an iSCSI name: at most NameMax bytes of what
// section 4.2.7.1 allows after the mapping of letters to lower case, of type iqn, eui or naa.
func NameOK(s string) bool {
	if len(s) > NameMax || (!strings.HasPrefix(s, "iqn.") && !strings.HasPrefix(s, "eui.") && !strings.HasPrefix(s, "naa.")) {
		return false
	}
	for _, c := range []byte(s[4:]) {
		if c < 0x80 && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') && c != '-' && c != '.' && c != ':' && c != '_' {
			return false
		}
	}
	return len(s) > 4
}

func badText(format string, args ...any) error {
	return fault.Newf(fault.Invalid, "iscsi.text", "", format, args...)
}
