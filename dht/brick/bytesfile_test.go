package brick

import (
	"bytes"

	"github.com/gabion-storage/gabion/internal/vfs"
)

// bytesFile is a read-only file of given content.
type bytesFile struct{ b []byte }

func (f bytesFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}
func (f bytesFile) WriteAt([]byte, int64) (int, error)    { panic("read only") }
func (f bytesFile) WritevAt([][]byte, int64) (int, error) { panic("read only") }
func (f bytesFile) Sync() error                           { panic("read only") }
func (f bytesFile) PunchHole(int64, int64) error          { panic("read only") }
func (f bytesFile) Truncate(int64) error                  { panic("read only") }
func (f bytesFile) Size() (int64, error)                  { return int64(len(f.b)), nil }
func (f bytesFile) Close() error                          { return nil }

var _ vfs.File = bytesFile{}
