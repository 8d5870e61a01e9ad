package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// openBricks opens the bricks of this node, all at once. One that is damaged, or whose
// disk does not answer, is set aside; a configuration that is wrong ends the start.
func (n *Node) openBricks() error {
	paths := slices.Clone(n.dir.mem.Bricks)
	type result struct {
		b   *brick.Brick
		err error
	}
	results := make([]chan result, len(paths))
	for i, path := range paths {
		results[i] = make(chan result, 1)
		go func() {
			b, err := n.openBrick(path)
			results[i] <- result{b, err}
		}()
	}
	var first error
	for i, path := range paths {
		r := <-results[i]
		if first == nil {
			first = r.err
		}
		if r.b != nil {
			n.asideMu.Lock()
			n.bricks = append(n.bricks, openBrick{r.b, path})
			n.asideMu.Unlock()
		}
	}
	if first != nil {
		return first
	}
	return n.saveDir()
}

// openBrick opens the brick at path, unless it is set aside or has to be: then it
// returns nil and no error.
func (n *Node) openBrick(path string) (*brick.Brick, error) {
	o := n.newOpening(path)
	err := o.identify()
	if err == nil {
		if aside := n.asideAt(path, o.id, o.found, o.idErr); aside != nil {
			n.cfg.Log.Warn("brick stays set aside", "brick", path, "reason", aside.Reason)
			return nil, nil
		}
		var b *brick.Brick
		if b, err = o.open(); err == nil {
			return b, nil
		}
	}
	if !damaging(err) {
		return nil, err
	}
	return nil, n.keepAside(asideBrick{ID: o.id, Path: path, Reason: err.Error(), Since: time.Now().Unix()})
}

// opening is a brick that is being opened. Nobody waits for its disk if that hangs.
type opening struct {
	n     *Node
	path  string
	stall time.Duration
	newFS func(path string) (vfs.FS, error)
	fs    vfs.FS
	id    ident.BrickID // zero if found is not set
	found bool
	idErr error // why the identity cannot be read
}

func (n *Node) newOpening(path string) *opening {
	o := &opening{n: n, path: path, stall: n.stallMax, newFS: n.newFS}
	if o.stall == 0 {
		o.stall = brick.StallMaxDefault
	}
	if o.newFS == nil {
		o.newFS = func(path string) (vfs.FS, error) { return vfs.NewOS(path) }
	}
	return o
}

// identify finds out what brick there is, and makes the directory of a new one.
func (o *opening) identify() error {
	var err error
	r := *o // f may outlive this call
	late := brick.Within(o.stall, func() { err = r.look() })
	if late != nil {
		return late
	}
	o.fs, o.id, o.found, o.idErr = r.fs, r.id, r.found, r.idErr
	return err
}

func (o *opening) look() error {
	st, err := os.Stat(o.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(o.path, 0o700)
	} else if err == nil && !st.IsDir() {
		return fault.Newf(fault.Invalid, "node run", "--brick "+o.path, "it is not a directory; give a directory on the disk")
	}
	if err != nil {
		return vfs.OSError("node run", "--brick "+o.path, err)
	}
	if o.fs, err = o.newFS(o.path); err != nil {
		return err
	}
	o.id, o.found, o.idErr = brick.Identify(o.fs)
	return nil
}

// open opens the brick that identify found.
func (o *opening) open() (*brick.Brick, error) {
	n, path := o.n, o.path
	type result struct {
		b   *brick.Brick
		err error
	}
	hung, done := make(chan error, 1), make(chan result, 1)
	var observe atomic.Pointer[func(time.Duration)] // known once the brick has told its id
	var opened atomic.Bool
	cfg := brick.Config{
		FS: o.fs, OSDir: path, Pool: n.poolID, Node: n.id.Node, Log: n.cfg.Log, StallMax: o.stall,
		JournalSegmentSize: n.segment,
		OnBroken: func(err error) {
			if opened.Load() {
				go n.brickBroke(path, err) // it may hold what we want
				return
			}
			select {
			case hung <- err:
			default:
			}
		},
		OnSync: func(d time.Duration) {
			if f := observe.Load(); f != nil {
				(*f)(d)
			}
		},
	}
	go func() {
		b, err := brick.Open(cfg)
		done <- result{b, err}
	}()
	var r result
	select {
	case r = <-done:
	case err := <-hung:
		go func() { // should the disk answer one day
			if r := <-done; r.b != nil {
				_ = r.b.Close()
			}
		}()
		return nil, err
	}
	if r.err != nil {
		return nil, r.err
	}
	f := n.exp.SyncObserver(r.b.ID())
	observe.Store(&f)
	opened.Store(true)
	if err := r.b.Broken(); err != nil {
		_ = r.b.Close()
		return nil, err
	}
	return r.b, nil
}

// ReadmitBrick implements control.Daemon. A brick that this process has open and that
// is broken is closed and opened anew. On error it stays aside, and it is tried again with the
// next word.
func (n *Node) ReadmitBrick(_ context.Context, id string) error {
	const op = "brick readmit"
	n.readmitMu.Lock()
	defer n.readmitMu.Unlock()
	n.asideMu.Lock()
	i, err := n.findAside(op, id)
	if err != nil {
		n.asideMu.Unlock()
		return err
	}
	a := n.dir.mem.Aside[i]
	configured := slices.Contains(n.dir.mem.Bricks, a.Path)
	var old []openBrick
	n.bricks = slices.DeleteFunc(n.bricks, func(b openBrick) bool {
		if b.path == a.Path {
			old = append(old, b)
		}
		return b.path == a.Path
	})
	n.asideMu.Unlock()
	if !configured {
		return n.dropAside(a.Path) // it is opened when the node is started with it
	}
	for _, b := range old {
		n.Core.RemoveBrick(b.b.ID())
		if err := b.b.Close(); err != nil {
			n.cfg.Log.Info("a broken brick is closed", "brick", a.Path, "error", err)
		}
	}
	b, err := n.reopen(a.Path)
	if err != nil {
		if fault.Is(err, fault.Busy) {
			err = errors.New("its disk still does not answer; try again when it does, or restart the node")
		}
		return fault.Newf(fault.Unavailable, op, id, "it stays aside: %w", err)
	}
	if err := n.dropAside(a.Path); err != nil {
		_ = b.Close()
		return err
	}
	n.asideMu.Lock()
	n.bricks = append(n.bricks, openBrick{b, a.Path})
	n.asideMu.Unlock()
	if err := n.Core.AddBrick(b); err != nil {
		b.SetAside(err)
		return fault.Newf(fault.Unavailable, op, id, "it is set aside again: %w", err)
	}
	if err := b.Broken(); err != nil {
		return fault.Newf(fault.Unavailable, op, id, "it is set aside again: %w", err)
	}
	n.cfg.Log.Info("brick is readmitted", "brick", a.Path, "id", b.ID().Short(), "after", a.Reason)
	return nil
}

// reopen opens a brick, aside or not.
func (n *Node) reopen(path string) (*brick.Brick, error) {
	o := n.newOpening(path)
	if err := o.identify(); err != nil {
		return nil, err
	}
	return o.open()
}

// dropAside strikes what is at path off the list of what is aside.
func (n *Node) dropAside(path string) error {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	n.dir.mem.Aside = slices.DeleteFunc(n.dir.mem.Aside, func(a asideBrick) bool { return a.Path == path })
	return n.dir.save()
}
