package brick

import (
	"testing"

	"golang.org/x/sys/unix"
)

// allocated is the number of bytes that a file takes on the machine's disk.
func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(name, &st))
	return st.Blocks * 512
}
