package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/pki"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// What stands in a node's directory:
//
//	LOCK         held while the node runs
//	node.json    what the node remembers of itself: name, labels, bricks, address
//	boot         how often it was started, the Boot of its ballots
//	pki/         its key and certificate, the pool's certificate and key
//	pool.json    the last state of the pool it saw
//	run.json     the addresses in use now
//	gabion.sock  the operator's socket
//	brick/       its brick, unless --brick says otherwise
const (
	lockName  = "LOCK"
	nodeName  = "node.json"
	bootName  = "boot"
	runName   = "run.json"
	stateName = "pool.json"
	brickName = "brick"
)

// memory is what a node remembers of itself between runs.
type memory struct {
	Name   string        `json:"name"`
	Listen string        `json:"listen"` // last address, so that port 0 stays where it was
	NBD    string        `json:"nbd"`
	ISCSI  string        `json:"iscsi,omitempty"`
	HTTP   string        `json:"http"`
	Zone   string        `json:"zone,omitempty"`
	Rack   string        `json:"rack,omitempty"`
	Bricks []string      `json:"bricks"`
	Aside  []asideBrick  `json:"aside,omitempty"`
	Scrub  ScrubSettings `json:"scrub"`
	Pool   string        `json:"pool"`
	Joined bool          `json:"joined"` // it did not make the pool
	// Seeds are the nodes that were there when it joined.
	Seeds []pki.Seed `json:"seeds,omitempty"`
}

// dir is a node's directory, locked.
type dir struct {
	path string
	lock *os.File
	mem  memory
	old  bool // the node ran before
}

// openDir makes and locks the directory. Kinds: Busy (another node runs in it),
// Denied, Corrupt (node.json is damaged).
func openDir(path string) (*dir, error) {
	const op = "node run"
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, path, err)
	}
	d := &dir{path: abs}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, vfs.OSError(op, abs, err)
	}
	if d.lock, err = os.OpenFile(d.file(lockName), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, vfs.OSError(op, abs, err)
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.lock.Close()
		return nil, fault.Newf(fault.Busy, op, abs, "another gabion node runs in this directory; stop it or give --dir another one")
	}
	raw, err := os.ReadFile(d.file(nodeName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, d.mustBeNew()
	case err != nil:
		err = vfs.OSError(op, abs, err)
	default:
		d.old = true
		if json.Unmarshal(raw, &d.mem) != nil {
			err = fault.Newf(fault.Corrupt, op, d.file(nodeName), "the file is damaged; restore it from a backup, or let the node join again with an empty directory")
		}
	}
	if err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

// mustBeNew refuses a directory that holds something but not a node: it may be
// the wrong one, or a node's that lost its file.
func (d *dir) mustBeNew() error {
	names, err := os.ReadDir(d.path)
	if err != nil {
		return vfs.OSError("node run", d.path, err)
	}
	for _, n := range names {
		switch n.Name() {
		case lockName, "log", "lost+found":
		case "pki", bootName, brickName:
			d.lock.Close()
			return fault.Newf(fault.Corrupt, "node run", d.path, "it holds parts of a node but no %s; restore that file, or use an empty directory", nodeName)
		}
	}
	return nil
}

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// has tells whether a file is there.
func (d *dir) has(name string) bool {
	_, err := os.Stat(d.file(name))
	return err == nil
}

func (d *dir) close() { d.lock.Close() }

// save writes node.json.
func (d *dir) save() error {
	raw, err := json.MarshalIndent(d.mem, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.file(nodeName), append(raw, '\n'), 0o600)
}

// nextBoot counts this start, durably, before any ballot can carry it.
func (d *dir) nextBoot() (uint64, error) {
	raw, err := os.ReadFile(d.file(bootName))
	n := uint64(0)
	if err == nil {
		if n, err = strconv.ParseUint(string(raw), 10, 64); err != nil {
			return 0, fault.Newf(fault.Corrupt, "node run", d.file(bootName), "not a number; write into it one that is larger than all earlier ones")
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, vfs.OSError("node run", d.path, err)
	}
	n++
	return n, writeFile(d.file(bootName), strconv.AppendUint(nil, n, 10), 0o600)
}

// run is run.json: how to reach a running node.
type run struct {
	Listen string       `json:"listen"`
	NBD    string       `json:"nbd"`
	ISCSI  string       `json:"iscsi"`
	HTTP   string       `json:"http"`
	PID    int          `json:"pid"`
	Node   ident.NodeID `json:"node"`
	Name   string       `json:"name"`
}

func (d *dir) saveRun(r run) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.file(runName), append(raw, '\n'), 0o644)
}

// writeFile replaces a file so that after a power cut there is the old or the
// new one, whole.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return vfs.OSError("write", path, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return vfs.OSError("write", path, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// listen opens a TCP listener. With port 0 it takes the port of the last run
// again if it is free, so that peers and clients find the node where it was.
func listen(what, addr, last string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		return listenUnix(what, path)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "node run", "--"+what+" "+addr, "not host:port; for example 127.0.0.1:0")
	}
	if port == "0" && last != "" {
		if _, lastPort, err := net.SplitHostPort(last); err == nil {
			if l, err := net.Listen("tcp", net.JoinHostPort(host, lastPort)); err == nil {
				return l, nil
			}
		}
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fault.Newf(fault.Busy, "node run", "--"+what+" "+addr, "the port is in use; choose another or 0 for any")
	}
	if err != nil {
		return nil, vfs.OSError("node run", "--"+what+" "+addr, err)
	}
	return l, nil
}

// advertised is the address that others reach the mesh at: its own, or for one
// that listens everywhere the first address of this machine that is not
// loopback.
func advertised(m *link.Mesh) string {
	a, err := net.ResolveTCPAddr("tcp", m.Addr())
	if err != nil || !a.IP.IsUnspecified() {
		return m.Addr()
	}
	ip := net.IPv4(127, 0, 0, 1)
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, x := range addrs {
			if n, ok := x.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback() {
				ip = n.IP
				break
			}
		}
	}
	return (&net.TCPAddr{IP: ip, Port: a.Port}).String()
}

// stateFile keeps the pool's state in DIR/pool.json.
type stateFile struct{ path string }

func (d *dir) stateFile() stateFile { return stateFile{d.file(stateName)} }

// Load implements pool.File.
func (f stateFile) Load() ([]byte, error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, vfs.OSError("node run", f.path, err)
	}
	return b, nil
}

// Save implements pool.File.
func (f stateFile) Save(b []byte) error { return writeFile(f.path, b, 0o600) }
