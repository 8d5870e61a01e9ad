package edge

import (
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Time is a bound of time in a configuration; zero means its default.
type Time struct {
	Name    string
	Value   *time.Duration
	Default time.Duration
}

// SetTimes fills in defaults. Negative times are refused, with kind Invalid.
func SetTimes(op string, times ...Time) error {
	for _, t := range times {
		if *t.Value == 0 {
			*t.Value = t.Default
		}
		if *t.Value < 0 {
			return fault.Newf(fault.Invalid, op, t.Name, "%v is negative", *t.Value)
		}
	}
	return nil
}

// SetMemory fills in the defaults of what one connection may have in memory, 64 MiB, and
// of what all may have together beyond BytesFree each, 1 GiB. Less than least for
// one, and less for all than for one, are refused with kind Invalid.
func SetMemory(op string, one, all *int64, least int64) error {
	if *one == 0 {
		*one = 64 << 20
	}
	if *all == 0 {
		*all = max(1<<30, *one)
	}
	switch {
	case *one < least:
		return fault.Newf(fault.Invalid, op, "BytesMax", "%d is less than %d", *one, least)
	case *all < *one:
		return fault.Newf(fault.Invalid, op, "MemoryMax", "%d is less than BytesMax", *all)
	}
	return nil
}
