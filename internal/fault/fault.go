// Package fault is the vocabulary of failure: a closed list of kinds that
// cross the wire, and one error type that carries what was being done, to
// which thing, and why it failed. Callers ask with KindOf; nobody compares
// error text.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Kind classifies a failure by what the caller can do about it. The numbers
// cross the wire and are append only.
type Kind uint8

const (
	// Internal: a defect of gabion or an error nobody classified.
	Internal Kind = iota
	// Invalid: the request itself is wrong; repeating it cannot help.
	Invalid
	// NotFound: the named thing does not exist.
	NotFound
	// Exists: the name is taken by another thing.
	Exists
	// Conflict: somebody else changed or holds the thing; read again first.
	Conflict
	// Busy: the thing is in use by a live holder.
	Busy
	// Fenced: a higher ballot owns the mutable block; this writer is over.
	Fenced
	// Unavailable: too few members answered; it may work later.
	Unavailable
	// Indeterminate: it may or may not have happened. Only an idempotent or
	// versioned retry may follow.
	Indeterminate
	// Corrupt: bytes do not match their checksum or address.
	Corrupt
	// NoSpace: a disk or a limit is full.
	NoSpace
	// Denied: the peer may not do this (wrong pool, no certificate, bad token).
	Denied
	// Timeout: the stated time passed.
	Timeout
	// ReadOnly: the thing cannot be written.
	ReadOnly
	kindCount
)

// Kinds lists every kind, so that a test can demand a row for each in every
// table that maps kinds at an edge.
func Kinds() []Kind {
	ks := make([]Kind, 0, kindCount)
	for k := Kind(0); k < kindCount; k++ {
		ks = append(ks, k)
	}
	return ks
}

var kindNames = [kindCount]string{
	"internal", "invalid", "not found", "exists", "conflict", "busy", "fenced", "unavailable",
	"indeterminate", "corrupt", "no space", "denied", "timeout", "read only",
}

func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is a failure of one operation on one subject.
type Error struct {
	Kind    Kind
	Op      string // what was being done: "brick.open", "volume create"
	Subject string // to which thing: a name, an id, a path; may be empty
	Err     error  // the cause, or a sentence for the person reading it; may be nil
}

func (e *Error) Error() string {
	s := e.Op
	if e.Subject != "" {
		s += " " + e.Subject
	}
	if e.Err == nil {
		return s + ": " + e.Kind.String()
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an error of kind k. err may be nil.
func New(k Kind, op, subject string, err error) *Error {
	return &Error{Kind: k, Op: op, Subject: subject, Err: err}
}

// Newf is New with a formatted cause.
func Newf(k Kind, op, subject, format string, args ...any) *Error {
	return &Error{Kind: k, Op: op, Subject: subject, Err: fmt.Errorf(format, args...)}
}

// KindOf reports the kind of the outermost *Error in err's chain. Deadline and
// cancellation errors count as Timeout; anything unknown as Internal. It
// panics on nil: success has no kind.
func KindOf(err error) Kind {
	if err == nil {
		panic("fault: KindOf(nil)")
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Timeout
	}
	return Internal
}

// Is reports whether err is non-nil and of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
