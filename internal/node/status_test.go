package node

import (
	"testing"
	"time"

	"github.com/gabion-storage/gabion/overlay"
)

func TestSilence(t *testing.T) {
	for heard, want := range map[time.Duration]string{
		1600 * time.Millisecond: "no answer for 2s",
		overlay.Never:           "not heard since this node was started",
	} {
		if got := silence(heard); got != want {
			t.Errorf("%v: %q, want %q", heard, got, want)
		}
	}
}
