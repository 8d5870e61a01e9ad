package brick

import (
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// StallMaxDefault is how long one operation of a disk may take before the
// disk counts as stalled. Disks retry a bad sector for some seconds.
const StallMaxDefault = 30 * time.Second

// watchSteps is how often a watch looks in the time that an operation may take. A
// look that comes late counts as watchLate steps at most: the whole process, or the
// machine, was stopped meanwhile, which says nothing about the disk.
const (
	watchSteps = 10
	watchLate  = 2
)

// watch times the operations of a disk that are under way, by the time for which
// this process ran. It has a timer only while there are any: an idle disk costs nothing,
// a busy one watchSteps ticks in each max. Safe for concurrent use.
type watch struct {
	max     time.Duration
	stalled func(op, name string, d time.Duration) // called without locks; nil: nobody cares

	mu     sync.Mutex
	ops    []watched // slots; one without op is free
	free   []int
	timer  *time.Timer
	armed  bool
	over   bool
	awake  time.Duration // for which this process ran with the timer armed, up to looked
	looked time.Time
}

type watched struct {
	op, name string
	since    time.Duration // of the watch's clock
}

// clock is the time for which this process ran. Under mu, while armed.
func (w *watch) clock(now time.Time) time.Duration {
	return w.awake + min(now.Sub(w.looked), watchLate*w.max/watchSteps)
}

// begin notes that an operation starts; end(i) follows.
func (w *watch) begin(op, name string) (i int) {
	if w == nil {
		return -1
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.free); n > 0 {
		i, w.free = w.free[n-1], w.free[:n-1]
	} else {
		i = len(w.ops)
		w.ops = append(w.ops, watched{})
	}
	now := time.Now()
	if !w.armed && !w.over {
		w.armed, w.looked = true, now
		if w.timer == nil {
			w.timer = time.AfterFunc(w.max/watchSteps, w.look)
		} else {
			w.timer.Reset(w.max / watchSteps)
		}
	}
	w.ops[i] = watched{op, name, w.clock(now)}
	return i
}

func (w *watch) end(i int) {
	if w == nil || i < 0 {
		return
	}
	w.mu.Lock()
	w.ops[i] = watched{}
	w.free = append(w.free, i)
	w.mu.Unlock()
}

// look runs when the timer fires: it tells of the oldest operation if that is
// too old, and comes back while there are any.
func (w *watch) look() {
	w.mu.Lock()
	now := time.Now()
	w.awake, w.looked = w.clock(now), now
	var oldest watched
	for _, o := range w.ops {
		if o.op != "" && (oldest.op == "" || o.since < oldest.since) {
			oldest = o
		}
	}
	if oldest.op == "" || w.over {
		w.armed = false
		w.mu.Unlock()
		return
	}
	d := w.awake - oldest.since
	if d < w.max {
		w.timer.Reset(min(w.max-d, w.max/watchSteps))
		w.mu.Unlock()
		return
	}
	w.over = true // once is enough: the brick is broken
	w.armed = false
	w.mu.Unlock()
	if w.stalled != nil {
		w.stalled(oldest.op, oldest.name, d)
	}
}

// Within runs f, which waits for a disk, and returns nil when it has ended. Timeout: f
// did not end while this process ran for max; it may go on.
func Within(max time.Duration, f func()) error {
	stalled := make(chan struct{})
	w := &watch{max: max, stalled: func(string, string, time.Duration) { close(stalled) }}
	defer w.stop()
	i := w.begin("wait", "")
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		w.end(i)
		return nil
	case <-stalled:
		return fault.Newf(fault.Timeout, "brick.open", "", "the disk has not answered for %v", max)
	}
}

// stop ends the watch.
func (w *watch) stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

// watchedFS is a vfs.FS whose operations are timed.
type watchedFS struct {
	vfs.FS
	w *watch
}

func (x watchedFS) open(op, name string, open func(string) (vfs.File, error)) (vfs.File, error) {
	i := x.w.begin(op, name)
	defer x.w.end(i)
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	try, _ := f.(vfs.TryReader)
	return &watchedFile{f, try, name, x.w}, nil
}

func (x watchedFS) do(op, name string, f func() error) error {
	i := x.w.begin(op, name)
	defer x.w.end(i)
	return f()
}

func (x watchedFS) Create(name string) (vfs.File, error) { return x.open("create", name, x.FS.Create) }
func (x watchedFS) Open(name string) (vfs.File, error)   { return x.open("open", name, x.FS.Open) }
func (x watchedFS) Remove(name string) error {
	return x.do("remove", name, func() error { return x.FS.Remove(name) })
}
func (x watchedFS) Rename(from, to string) error {
	return x.do("rename", from, func() error { return x.FS.Rename(from, to) })
}
func (x watchedFS) SyncDir(dir string) error {
	return x.do("syncdir", dir, func() error { return x.FS.SyncDir(dir) })
}
func (x watchedFS) Free() (free, total int64, err error) {
	err = x.do("free", "", func() (err error) { free, total, err = x.FS.Free(); return err })
	return free, total, err
}
func (x watchedFS) List(dir string) (names []string, err error) {
	return names, x.do("list", dir, func() error { names, err = x.FS.List(dir); return err })
}

// watchedFile is a file of watchedFS. Reads that never wait are not timed.
type watchedFile struct {
	vfs.File
	try  vfs.TryReader // nil: the file has no such power
	name string
	w    *watch
}

func (f *watchedFile) TryReadAt(p []byte, off int64) bool {
	return f.try != nil && f.try.TryReadAt(p, off)
}

func (f *watchedFile) ReadAt(p []byte, off int64) (int, error) {
	i := f.w.begin("read", f.name)
	defer f.w.end(i)
	return f.File.ReadAt(p, off)
}

func (f *watchedFile) ReadDirectAt(p []byte, off int64) (int, error) {
	i := f.w.begin("read", f.name)
	defer f.w.end(i)
	return vfs.ReadDirect(f.File, p, off)
}

func (f *watchedFile) WriteAt(p []byte, off int64) (int, error) {
	i := f.w.begin("write", f.name)
	defer f.w.end(i)
	return f.File.WriteAt(p, off)
}

func (f *watchedFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	i := f.w.begin("write", f.name)
	defer f.w.end(i)
	return f.File.WritevAt(bufs, off)
}

// WriteDirectAt implements vfs.DirectWriter.
func (f *watchedFile) WriteDirectAt(bufs [][]byte, off int64) error {
	i := f.w.begin("write", f.name)
	defer f.w.end(i)
	return vfs.WriteDirect(f.File, bufs, off)
}

func (f *watchedFile) Sync() error {
	i := f.w.begin("sync", f.name)
	defer f.w.end(i)
	return f.File.Sync()
}

func (f *watchedFile) PunchHole(off, n int64) error {
	i := f.w.begin("punch", f.name)
	defer f.w.end(i)
	return f.File.PunchHole(off, n)
}
