package vfs

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
)

// OSError gives an error of the operating system the kind that a caller can act on; nil stays nil.
func OSError(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(osKind(err), op, subject, err)
}

func osKind(err error) fault.Kind {
	for _, k := range osKinds {
		for _, e := range k.errs {
			if errors.Is(err, e) {
				return k.kind
			}
		}
	}
	return fault.Internal
}

var osKinds = []struct {
	kind fault.Kind
	errs []error
}{
	{fault.NoSpace, []error{syscall.ENOSPC, syscall.EDQUOT}},
	{fault.NotFound, []error{fs.ErrNotExist}},
	{fault.Exists, []error{fs.ErrExist}},
	{fault.Denied, []error{fs.ErrPermission}},
	{fault.ReadOnly, []error{syscall.EROFS}},
	{fault.Busy, []error{syscall.EADDRINUSE}},
	{fault.Invalid, []error{fs.ErrClosed, syscall.EINVAL, syscall.ENAMETOOLONG, syscall.ENOTDIR, syscall.EADDRNOTAVAIL}},
}
