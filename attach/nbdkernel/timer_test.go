package nbdkernel

import (
	"testing"
	"time"
)

// With several sockets the kernel's timer closes one after the other: it must
// not come before the session has given its answer.
func TestTimerOfSeveralSocketsOutlastsTheSession(t *testing.T) {
	const patience = 5 * time.Minute
	if d := timerOf(1, patience); d != resendAfter {
		t.Errorf("one socket: %v", d)
	}
	for _, n := range []int{0, 2, 16} {
		if d := timerOf(n, patience); d <= patience {
			t.Errorf("%d sockets: %v", n, d)
		}
	}
}
