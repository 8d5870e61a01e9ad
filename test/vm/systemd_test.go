//go:build systemd

package vm

import (
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

const systemdTimeout = 10 * time.Minute

// The unit and the rule of deploy/ under a real systemd and udev: the device is
// named, mounted from fstab, outlives its process, and goes in order. Run by hand
// when they change: go test -tags systemd -run TestUnitAndRule -v ./test/vm
func TestUnitAndRule(t *testing.T) {
	cluster.Need(t, true, "systemctl", "udevadm")
	r := newRig(t, "")
	r.init = "systemd"
	if code := r.boot(t, "systemd.sh").end(t, systemdTimeout); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.tell(t, "at ", "PASSED")
}
