package proto

import (
	"encoding/binary"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Metadata contexts ("Metadata querying").
const (
	// ContextAllocation is the one context that the document defines.
	ContextAllocation = "base:allocation"
	// PrefixDirty and PrefixBitmap, with the name of a snapshot behind them,
	// are what changed since that snapshot: gabion's own name, and the one that
	// QEMU's tools ask for.
	PrefixDirty  = "gabion:dirty:"
	PrefixBitmap = "qemu:dirty-bitmap:"
	// ContextsMax bounds the contexts that one client selects.
	ContextsMax = 128
	// QueriesMax bounds the queries of one option.
	QueriesMax = 256
)

// MetaQuery is the data of OptListMetaContext and OptSetMetaContext.
type MetaQuery struct {
	Export  string
	Queries []string
}

// DecodeMetaQuery reads it: u32 name length, name, u32 count, and count times
// u32 length and string. Kinds: Invalid, also for a query without a colon; or
// NoSpace when a string is longer than NameMax or there are more than
// QueriesMax.
func DecodeMetaQuery(b []byte) (MetaQuery, error) {
	const op = "metadata query"
	name, b, err := takeString(b, op)
	if err != nil {
		return MetaQuery{}, err
	}
	q := MetaQuery{Export: name}
	if len(b) < 4 {
		return MetaQuery{}, invalid(op, "%d bytes are too short for a count", len(b))
	}
	count := uint64(binary.BigEndian.Uint32(b))
	b = b[4:]
	if 4*count > uint64(len(b)) {
		return MetaQuery{}, invalid(op, "%d queries in %d bytes", count, len(b))
	}
	if count > QueriesMax {
		return MetaQuery{}, fault.Newf(fault.NoSpace, "nbd.decode", op, "%d queries, the limit is %d", count, QueriesMax)
	}
	for range count {
		var s string
		if s, b, err = takeString(b, op); err != nil {
			return MetaQuery{}, err
		}
		if !strings.Contains(s, ":") {
			return MetaQuery{}, invalid(op, "%.64q has no namespace", s)
		}
		q.Queries = append(q.Queries, s)
	}
	if len(b) > 0 {
		return MetaQuery{}, invalid(op, "%d bytes behind the last query", len(b))
	}
	return q, nil
}

// takeString takes a length and a string from the front of b.
func takeString(b []byte, op string) (string, []byte, error) {
	if len(b) < 4 {
		return "", nil, invalid(op, "%d bytes are too short for a length", len(b))
	}
	n := uint64(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > uint64(len(b)) {
		return "", nil, invalid(op, "a string of %d bytes in %d bytes of data", n, len(b))
	}
	s, err := DecodeName(b[:n])
	return s, b[n:], err
}

// AppendMetaQuery appends the data of a query.
func AppendMetaQuery(b []byte, q MetaQuery) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.Export)))
	b = append(b, q.Export...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.Queries)))
	for _, s := range q.Queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// AppendMetaContext appends one context in the reply to o.
func AppendMetaContext(b []byte, o Option, id uint32, name string) []byte {
	b = appendOptionReplyHeader(b, o, RepMetaContext, 4+len(name))
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, name...)
}

// Context is a metadata context as it is selected.
type Context struct {
	Name string
	// Snapshot is whose changes it tells of, "" for what is allocated.
	Snapshot string
}

// Available lists the contexts of an export that has these snapshots, in a
// fixed order.
func Available(snapshots []string) []Context {
	cs := []Context{{Name: ContextAllocation}}
	for _, prefix := range []string{PrefixDirty, PrefixBitmap} {
		for _, s := range snapshots {
			if len(prefix)+len(s) <= NameMax {
				cs = append(cs, Context{Name: prefix + s, Snapshot: s})
			}
		}
	}
	return cs
}

// Matching picks those of cs that a query asks for, each once, in the order of
// cs. In a listing (wildcards) an empty leaf name stands for all of its
// namespace, as do the prefixes alone; no query at all asks for everything.
// Otherwise a query names one context. What matches nothing is ignored.
func Matching(cs []Context, queries []string, wildcards bool) []Context {
	if wildcards && len(queries) == 0 {
		return cs
	}
	var out []Context
	for _, c := range cs {
		for _, q := range queries {
			if q == c.Name || wildcards && isWildcard(q) && strings.HasPrefix(c.Name, q) {
				out = append(out, c)
				break
			}
		}
	}
	return out
}

// isWildcard tells whether q stands for several contexts.
func isWildcard(q string) bool {
	return q == PrefixDirty || q == PrefixBitmap || strings.IndexByte(q, ':') == len(q)-1
}

// NamesSnapshot tells whether a query of SET can select a context only if its
// snapshot exists.
func NamesSnapshot(query string) bool {
	return strings.HasPrefix(query, PrefixDirty) || strings.HasPrefix(query, PrefixBitmap)
}

// TooBig tells whether err is about a length that the document has a reply of
// its own for.
func TooBig(err error) bool { return fault.Is(err, fault.NoSpace) }
