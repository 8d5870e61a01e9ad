package brick

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// dirtyFS notes how many bytes of extents were written to the page cache or read through it, and
// how many were under way to the disk, or from it, at once.
type dirtyFS struct {
	vfs.FS
	mu          sync.Mutex
	dirty       int64
	cached      int64
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

func (f *dirtyFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	f.d.cached += int64(len(p))
	f.d.mu.Unlock()
	return f.File.ReadAt(p, off)
}

func (f *dirtyFile) ReadDirectAt(p []byte, off int64) (int, error) {
	whole := off&^4095 - (off+int64(len(p))+4095)&^4095 // a disk is read by the block
	f.d.mu.Lock()
	f.d.queue -= whole
	f.d.most = max(f.d.most, f.d.queue)
	f.d.mu.Unlock()
	n, err := vfs.ReadDirect(f.File, p, off)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.queue += whole
	return n, err
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

// TestGentleReadsLeaveLittleQueued: a journal's sync finds no more than a piece of each brick in the
// queue of the disk, however many copies are read; nothing is read ahead.
func TestGentleReadsLeaveLittleQueued(t *testing.T) {
	d := &dirtyFS{FS: vfs.NewMem()}
	cfg := small(vfs.NewMem(), NewMemStable())
	cfg.FS, cfg.ExtentSegmentSize = d, 2<<20
	b := mustOpen(t, cfg)
	var xs []Extent
	for i, n := range []int{1, 4096, gentlePiece - extentHeader, gentlePiece - extentHeader + 1, gentlePiece, 3*gentlePiece - 7, 1 << 20} {
		xs = append(xs, testExtent(testVolume, uint64(i+1), n))
	}
	must(t, b.PutExtents(xs))
	d.cached = 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, x := range xs {
				p := make([]byte, len(x.Data))
				must(t, b.ReadExtentGently(x.Addr, p))
				if !bytes.Equal(p, x.Data) {
					t.Errorf("%d bytes differ", len(p))
				}
			}
		})
	}
	wg.Wait()
	if d.most > gentlePiece || d.most == 0 || d.cached != 0 {
		t.Errorf("%d bytes were in the queue of the disk at once, more than %d; %d came through its cache", d.most, gentlePiece, d.cached)
	}
	wantKind(t, b.ReadExtentGently(testExtent(testVolume, 99, 10).Addr, make([]byte, 10)), fault.NotFound)
	wantKind(t, b.ReadExtentGently(xs[0].Addr, make([]byte, 2)), fault.Invalid)
}
