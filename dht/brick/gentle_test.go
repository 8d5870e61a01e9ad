package brick

import (
	"strings"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// dirtyFS notes how many bytes of extents were written to the page cache, and how many
// were under way to the disk at once.
type dirtyFS struct {
	vfs.FS
	mu          sync.Mutex
	dirty       int64
	queue, most int64
	err         error // of the next direct write
}

func (d *dirtyFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasPrefix(name, "extents/") {
		return f, err
	}
	return &dirtyFile{f, d}, nil
}

func (d *dirtyFS) Create(name string) (vfs.File, error) {
	f, err := d.FS.Create(name)
	return d.wrap(name, f, err)
}

func (d *dirtyFS) Open(name string) (vfs.File, error) {
	f, err := d.FS.Open(name)
	return d.wrap(name, f, err)
}

type dirtyFile struct {
	vfs.File
	d *dirtyFS
}

func (f *dirtyFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	n, err := f.File.WritevAt(bufs, off)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.dirty += int64(n)
	return n, err
}

func (f *dirtyFile) WriteDirectAt(bufs [][]byte, off int64) error {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	if n%4096 != 0 || off%4096 != 0 {
		return fault.Newf(fault.Invalid, "vfs.write", "x", "%d bytes at %d", n, off)
	}
	f.d.mu.Lock()
	f.d.queue += n
	f.d.most = max(f.d.most, f.d.queue)
	err := f.d.err
	f.d.mu.Unlock()
	if err == nil {
		_, err = f.File.WritevAt(bufs, off)
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.queue -= n
	return err
}

// TestGentlePutsLeaveLittleDirty: a journal's sync finds no more than a piece of
// each brick in the queue of the disk, however many copies arrive.
func TestGentlePutsLeaveLittleDirty(t *testing.T) {
	d := &dirtyFS{FS: vfs.NewMem()}
	cfg := small(vfs.NewMem(), NewMemStable())
	cfg.FS, cfg.ExtentSegmentSize = d, 1<<20
	b := mustOpen(t, cfg)
	var all [][]Extent
	for i := range 4 {
		all = append(all, []Extent{testExtent(testVolume, uint64(10*i+1), 200_000), testExtent(testVolume, uint64(10*i+2), 3000)})
	}
	var wg sync.WaitGroup
	for _, xs := range all {
		wg.Go(func() { must(t, b.PutExtentsGently(xs)) })
	}
	wg.Wait()
	if d.most > gentlePiece || d.most == 0 || d.dirty != 0 {
		t.Errorf("%d bytes were in the queue of the disk at once, more than %d; %d in its cache", d.most, gentlePiece, d.dirty)
	}
	for _, xs := range all {
		for _, x := range xs {
			checkExtent(t, b, x)
		}
	}
	d.err = fault.Newf(fault.NoSpace, "vfs.write", "x", "the disk is full")
	wantKind(t, b.PutExtentsGently([]Extent{testExtent(testVolume, 99, 200_000)}), fault.NoSpace)
	if err := b.Broken(); err != nil {
		t.Errorf("a full disk broke the brick: %v", err)
	}
	d.err = fault.Newf(fault.Internal, "vfs.write", "x", "what somebody wrote is lost")
	wantKind(t, b.PutExtentsGently([]Extent{testExtent(testVolume, 99, 200_000)}), fault.Unavailable)
	if b.Broken() == nil {
		t.Error("pages were lost, and the brick goes on")
	}
	_ = b.Close()
}
