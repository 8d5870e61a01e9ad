package exporter

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestISCSIObserveCountsAndDoesNotAllocate(t *testing.T) {
	n := New(Sources{}).ISCSI()
	n.Observe("write", 4096, time.Millisecond, 0)
	n.Observe("write", 4096, time.Millisecond, 0)
	n.Observe("read", 0, time.Millisecond, 2)
	n.Observe("read", 0, time.Millisecond, 0xee)
	n.Observe("dance", 9, time.Millisecond, 0)
	if got := testutil.ToFloat64(n.bytes.WithLabelValues("write")); got != 8192 {
		t.Errorf("write bytes %v", got)
	}
	for status, want := range map[string]float64{"good": 2, "check_condition": 1, "other": 1, "busy": 0} {
		if got := testutil.ToFloat64(n.statuses.WithLabelValues(status)); got != want {
			t.Errorf("status %s: %v", status, got)
		}
	}
	if got := testutil.CollectAndCount(n.duration); got != len(classNames) {
		t.Errorf("%d classes have a histogram", got)
	}
	if got := testing.AllocsPerRun(100, func() { n.Observe("read", 4096, time.Millisecond, 0) }); got != 0 {
		t.Errorf("%v allocations for each command", got)
	}
}
