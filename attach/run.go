package attach

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/attach/fuse"
	"github.com/gabion-storage/gabion/attach/nbdkernel"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// Config is what a process that attaches a volume is given.
type Config struct {
	Volume string
	Dirs   Dirs
	// NodeDir is the directory of the local node, Nodes are addresses given by
	// hand instead.
	NodeDir string
	Nodes   []string
	// TLS is a directory with ca-cert.pem and, for nodes that ask who comes,
	// client-cert.pem and client-key.pem; "" for none.
	TLS string
	// Kind is KindNBD, KindFUSE, or "" for what the kernel has.
	Kind string
	// Connections is the number of the kernel's sockets.
	Connections int
	// Takeover puts out other clients that have the volume attached.
	Takeover bool
	// RequestTimeout, see client.Config.
	RequestTimeout time.Duration
	Log            *slog.Logger
	// Ready is told once, when the device is there.
	Ready func(Info)
	// Stop asks for the end; it is heeded when nobody uses the device.
	Stop <-chan os.Signal
}

const (
	// openMax bounds the wait for the first session.
	openMax = 30 * time.Second
	// flushMax bounds the last flush.
	flushMax = 60 * time.Second
)

// device is what both kinds of front end are.
type device interface {
	Path() string
	// Grow tells the kernel of a size that is larger than before, in bytes.
	Grow(size int64) error
	Detach() error
}

// process is a running attachment.
type process struct {
	cfg    Config
	log    *slog.Logger
	mem    memory
	nodes  *nodes
	engine *client.Engine
	dev    device
	moved  chan struct{} // the engine has another state; one fits

	mu    sync.Mutex
	info  Info
	ready bool
}

// Run attaches a volume and serves it until Stop is heeded. Errors at the start
// change nothing: Busy (attached here already, or by somebody else), NotFound,
// Unavailable (no node answers, or the kernel lacks a driver), Denied.
func Run(cfg Config) error {
	if err := checkName(cfg.Volume); err != nil {
		return err
	}
	for _, d := range []string{cfg.Dirs.Run, cfg.Dirs.State} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return vfs.OSError(op, d, err)
		}
	}
	lock, err := cfg.Dirs.lock(cfg.Volume, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	p := &process{cfg: cfg, log: cfg.Log.With("volume", cfg.Volume), moved: make(chan struct{}, 1)}
	kind, reason, err := chooseKind(cfg.Kind)
	if err != nil {
		return err
	}
	p.info.Reason = reason
	if reason != "" {
		p.log.Warn("using FUSE and a loop device", "reason", reason)
	}
	if err := p.remember(); err != nil {
		return err
	}
	harden(p.log)
	if err := p.connect(); err != nil {
		return err
	}
	defer p.nodes.wg.Wait()
	defer p.engine.Close()
	if err := p.expose(kind); err != nil {
		return err
	}
	p.await()
	return p.end()
}

// chooseKind takes what was asked for, or the better of what there is, and says
// why that is not the best.
func chooseKind(kind string) (chosen, reason string, err error) {
	switch kind {
	case KindNBD:
		return kind, "", nbdkernel.Available()
	case KindFUSE:
		return kind, "", fuse.Available()
	case "":
	default:
		return "", "", fault.Newf(fault.Invalid, op, kind, "there are %s and %s", KindNBD, KindFUSE)
	}
	why := nbdkernel.Available()
	if why == nil {
		return KindNBD, "", nil
	}
	if err := fuse.Available(); err != nil {
		return "", "", fault.Newf(fault.Unavailable, op, "", "%w; and %w", why, err)
	}
	return KindFUSE, why.Error(), nil
}

// remember loads or makes this machine's name as a client and counts the start,
// durably, before any session can carry it.
func (p *process) remember() error {
	file := p.cfg.Dirs.stateFile(p.cfg.Volume)
	switch err := load(file, &p.mem); {
	case err == nil:
	case fault.Is(err, fault.NotFound):
	default:
		return err
	}
	if len(p.mem.ID) != 16 {
		p.mem = memory{ID: make([]byte, 16)}
		if _, err := rand.Read(p.mem.ID); err != nil {
			return err
		}
	}
	p.mem.Starts++
	return save(file, p.mem, true)
}

// connect gets a session.
func (p *process) connect() error {
	p.nodes = &nodes{dir: p.cfg.NodeDir, log: p.log, known: p.mem.Nodes, learnt: p.learnt}
	for _, a := range p.cfg.Nodes {
		if !p.nodes.given {
			p.nodes.given, p.nodes.known = true, nil
		}
		p.nodes.known = append(p.nodes.known, client.Node{Addr: a})
	}
	if p.nodes.given {
		p.learnt(p.nodes.known)
	} else {
		p.nodes.refresh()
	}
	secure, err := loadTLS(p.cfg.TLS)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openMax)
	defer cancel()
	p.engine, err = client.Open(ctx, client.Config{
		Volume: p.cfg.Volume, ID: [16]byte(p.mem.ID), Start: p.mem.Starts, Force: p.cfg.Takeover, Nodes: p.nodes.list,
		TLS: secure, Log: p.cfg.Log, OnChange: p.changed, RequestTimeout: p.cfg.RequestTimeout,
	})
	return err
}

// learnt remembers a new list of nodes.
func (p *process) learnt(list []client.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mem.Nodes = list
	if err := save(p.cfg.Dirs.stateFile(p.cfg.Volume), p.mem, true); err != nil {
		p.log.Warn("the nodes are not remembered", "error", err)
	}
	p.info.Nodes = list
	p.publish()
}

// changed notes a new state of the engine.
func (p *process) changed(s client.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info.State = s
	p.publish()
	select {
	case p.moved <- struct{}{}:
	default:
	}
}

// publish writes the run file, under mu.
func (p *process) publish() {
	if !p.ready {
		return
	}
	if err := save(p.cfg.Dirs.runFile(p.cfg.Volume), p.info, false); err != nil {
		p.log.Warn("the run file is not written", "error", err)
	}
}

// expose makes the block device and its name.
func (p *process) expose(kind string) error {
	var old Info
	_ = load(p.cfg.Dirs.runFile(p.cfg.Volume), &old)
	var err error
	if kind == KindNBD {
		p.dev, err = p.kernel(old)
	} else {
		fuse.Clean(p.cfg.Dirs.fuseDir(p.cfg.Volume), old.Device)
		p.dev, err = fuse.Attach(p.engine, p.cfg.Dirs.fuseDir(p.cfg.Volume), p.cfg.Volume)
	}
	if err != nil {
		return err
	}
	name := filepath.Join(p.cfg.Dirs.Link, p.cfg.Volume)
	if err := link(p.dev.Path(), name); err != nil {
		p.log.Warn("there is no stable name for the device", "error", err)
		name = ""
	}
	p.mu.Lock()
	p.info = Info{
		Volume: p.cfg.Volume, Kind: kind, Device: p.dev.Path(), Link: name, SizeBytes: p.engine.Size(),
		ReadOnly: p.engine.ReadOnly(), PID: os.Getpid(), Since: time.Now(), Nodes: p.mem.Nodes, State: p.engine.State(),
		Reason: p.info.Reason,
	}
	p.ready = true
	p.publish()
	info := p.info
	p.mu.Unlock()
	tellUdev(info.Device)
	info.Running = true
	p.log.Info("attached", "device", info.Device, "kind", kind, "node", info.State.Node.String())
	if p.cfg.Ready != nil {
		p.cfg.Ready(info)
	}
	return nil
}

// kernel gives the volume to the nbd driver: to the device that a process which
// died has left, where the kernel still holds requests, or to a new one.
func (p *process) kernel(old Info) (device, error) {
	index := -1
	if i, err := strconv.Atoi(strings.TrimPrefix(old.Device, "/dev/nbd")); err == nil && old.Kind == KindNBD &&
		nbdkernel.IsOurs(i, p.cfg.Volume) && old.SizeBytes <= p.engine.Size() {
		index = i
	}
	cfg := nbdkernel.Config{Name: p.cfg.Volume, Connections: p.cfg.Connections, Patience: p.cfg.RequestTimeout, Log: p.cfg.Log}
	if cfg.Patience <= 0 {
		cfg.Patience = 24 * time.Hour
	}
	if index >= 0 {
		if d, err := nbdkernel.Attach(p.engine, index, cfg); err == nil {
			p.log.Info("took up the device again", "device", d.Path())
			return d, nil
		}
	}
	return nbdkernel.Attach(p.engine, -1, cfg)
}

// link replaces a symbolic link.
func link(to, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(to, name)
}

// await returns when the end was asked for and nobody uses the device.
func (p *process) await() {
	t := time.NewTicker(askAgain)
	defer t.Stop()
	for {
		p.grow()
		select {
		case <-p.moved: // each session tells the size anew
		case <-t.C:
			p.nodes.list()
		case <-p.cfg.Stop:
			used := usedBy(p.dev.Path())
			if used == "" {
				return
			}
			p.log.Warn("not detached: the device is in use", "device", p.dev.Path(), "used", used)
			p.mu.Lock()
			p.info.Used = used // for who waits for the end
			p.publish()
			p.info.Used = ""
			p.mu.Unlock()
		}
	}
}

// grow tells the kernel when the volume has become larger. If the kernel does not
// take it, it is tried again at the next occasion.
func (p *process) grow() {
	size := p.engine.Size()
	p.mu.Lock()
	was := p.info.SizeBytes
	p.mu.Unlock()
	if size <= was {
		return
	}
	if err := p.dev.Grow(size); err != nil {
		p.log.Error("the device did not grow with the volume", "device", p.dev.Path(), "size_bytes", size, "error", err)
		return
	}
	p.log.Info("grown", "device", p.dev.Path(), "size_bytes", size, "was_bytes", was)
	p.mu.Lock()
	p.info.SizeBytes = size
	p.publish()
	p.mu.Unlock()
}

// end detaches in order: what was written is flushed, then the device goes,
// then its names.
func (p *process) end() error {
	flushed := make(chan error, 1)
	p.engine.Flush(func(err error) { flushed <- err })
	p.engine.Kick()
	var err error
	select {
	case err = <-flushed:
	case <-time.After(flushMax):
		err = fault.Newf(fault.Timeout, op, p.cfg.Volume, "the last flush was not answered within %v", flushMax)
	}
	err = errors.Join(err, p.dev.Detach())
	p.vanish()
	p.log.Info("detached", "device", p.info.Device)
	return err
}

// vanish takes back all that says that the volume is attached. The engine has
// more to tell afterwards, the end of its session: that must not write the run
// file again, for whose end 'gabion detach' waits.
func (p *process) vanish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = false
	forget(p.cfg.Dirs, p.info)
}

// forget removes a device's names. The kernel's own event of the detachment came
// when the run file was there still, so that udev, asked then, has kept the name
// or made it again: it is asked once more.
func forget(d Dirs, i Info) {
	if leadsTo(i.Link) == i.Device {
		_ = os.Remove(i.Link)
	}
	_ = os.Remove(d.runFile(i.Volume))
	tellUdev(i.Device)
}

// leadsTo is where a symbolic link points, "" if it is none. What it points to
// need not be there. Links that udev has made are relative.
func leadsTo(name string) string {
	to, err := os.Readlink(name)
	if err != nil {
		return ""
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(name), to)
	}
	return filepath.Clean(to)
}

// tellUdev has udev, if there is one, go through its rules for a device, which
// ask NameOf what it is called.
func tellUdev(device string) {
	_ = os.WriteFile(filepath.Join("/sys/block", filepath.Base(device), "uevent"), []byte("change"), 0)
}
