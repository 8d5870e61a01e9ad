package proto

import (
	"fmt"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Errno is the error field of a reply ("Error values").
type Errno uint32

const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ESHUTDOWN Errno = 108
)

func (e Errno) String() string {
	switch e {
	case OK:
		return "ok"
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("errno %d", uint32(e))
}

// edge is one row of the table at the edge: what a kind of fault becomes on
// the wire, in a reply to a request and in a reply to an option.
type edge struct {
	errno Errno
	reply Reply
}

// edgeOf has a row for every kind. Option errors carry the fault's own text, so
// the code only has to lead a client the right way: UNKNOWN (look at the name),
// INVALID (do not repeat) or POLICY (the server will not, now). ERR_SHUTDOWN is
// not among them, since only the server knows whether it is shutting down.
func edgeOf(k fault.Kind) (row edge, ok bool) {
	switch k {
	case fault.Internal:
		return edge{EIO, RepErrPolicy}, true
	case fault.Invalid:
		return edge{EINVAL, RepErrInvalid}, true
	case fault.NotFound:
		return edge{EIO, RepErrUnknown}, true
	case fault.Exists:
		return edge{EIO, RepErrPolicy}, true
	case fault.Conflict:
		return edge{EIO, RepErrPolicy}, true
	case fault.Busy:
		return edge{EIO, RepErrPolicy}, true
	case fault.Fenced: // this session is over: reconnect elsewhere
		return edge{ESHUTDOWN, RepErrPolicy}, true
	case fault.Unavailable:
		return edge{EIO, RepErrPolicy}, true
	case fault.Indeterminate:
		return edge{EIO, RepErrPolicy}, true
	case fault.Corrupt:
		return edge{EIO, RepErrPolicy}, true
	case fault.NoSpace:
		return edge{ENOSPC, RepErrPolicy}, true
	case fault.Denied:
		return edge{EPERM, RepErrPolicy}, true
	case fault.Timeout:
		return edge{EIO, RepErrPolicy}, true
	case fault.ReadOnly:
		return edge{EPERM, RepErrPolicy}, true
	}
	return edge{EIO, RepErrPolicy}, false
}

// ErrnoOf is the error field for err; nil is OK.
func ErrnoOf(err error) Errno {
	if err == nil {
		return OK
	}
	row, _ := edgeOf(fault.KindOf(err))
	return row.errno
}

// ReplyOf is the type of option reply that tells of err, which is not nil.
func ReplyOf(err error) Reply {
	row, _ := edgeOf(fault.KindOf(err))
	return row.reply
}
