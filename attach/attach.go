// Package attach makes a volume a block device of this machine that outlives
// the nodes that serve it: an engine of package client under the kernel's nbd
// driver, or under FUSE and a loop device where there is none.
//
// Each volume has one process, which keeps a file that says what it does, so
// that volumes are listed and detached without any node.
package attach

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// Where things are unless Dirs says otherwise.
const (
	// RunDir has a file for each attached volume; it need not survive a boot.
	RunDir = "/run/gabion/attach"
	// StateDir has what this machine remembers of each volume: it must, or a
	// client cannot prove that it is the one that comes back.
	StateDir = "/var/lib/gabion-attach"
	// LinkDir has the devices by the names of their volumes.
	LinkDir = "/dev/gabion"
)

// Dirs are the directories that attachments of this machine use.
type Dirs struct{ Run, State, Link string }

// DefaultDirs are those of the whole machine.
func DefaultDirs() Dirs { return Dirs{RunDir, StateDir, LinkDir} }

// Kinds of block device.
const (
	KindNBD  = "nbd"
	KindFUSE = "fuse"
)

// Info says what there is to know of one attached volume. It is the content of
// the run file.
type Info struct {
	Volume    string        `json:"volume"`
	Kind      string        `json:"kind"`
	Device    string        `json:"device"`
	Link      string        `json:"link"`
	SizeBytes int64         `json:"size_bytes"`
	ReadOnly  bool          `json:"read_only"`
	Reason    string        `json:"reason"` // for the kind, if it was not asked for
	PID       int           `json:"pid"`
	Since     time.Time     `json:"since"`
	Nodes     []client.Node `json:"nodes"`
	State     client.State  `json:"state"`
	// Running is not in the file: whether the process is there.
	Running bool `json:"running"`
	// Used says what uses the device: a place where it is mounted, or "in use". In
	// the file it is why the process did not heed the last request to end.
	Used string `json:"used"`
}

// memory is the content of the state file.
type memory struct {
	// ID names this machine as a client of the volume; Starts counts the
	// processes that used it.
	ID     []byte        `json:"id"`
	Starts uint32        `json:"starts"`
	Nodes  []client.Node `json:"nodes"`
}

const op = "attach"

// checkName refuses what could not be a file's name. Volumes are named more
// strictly than that.
func checkName(volume string) error {
	if volume == "" || volume[0] == '.' || len(volume) > 200 || strings.ContainsAny(volume, "/\x00\n") {
		return fault.Newf(fault.Invalid, op, volume, "that is not the name of a volume")
	}
	return nil
}

func (d Dirs) runFile(volume string) string  { return filepath.Join(d.Run, volume+".json") }
func (d Dirs) lockFile(volume string) string { return filepath.Join(d.Run, volume+".lock") }
func (d Dirs) fuseDir(volume string) string  { return filepath.Join(d.Run, volume+".fuse") }
func (d Dirs) stateFile(volume string) string {
	return filepath.Join(d.State, volume+".json")
}

// LogFile is where a process in the background writes its log.
func (d Dirs) LogFile(volume string) string { return filepath.Join(d.Run, volume+".log") }

const lockMax = 200 * time.Millisecond

// lock makes the calling process the volume's (LOCK_EX), or looks whether there
// is one (LOCK_SH); Busy if another is.
func (d Dirs) lock(volume string, how int) (*os.File, error) {
	f, err := os.OpenFile(d.lockFile(volume), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, vfs.OSError(op, d.lockFile(volume), err)
	}
	// Those who only look hold the lock for a moment: that is not another process.
	for end := time.Now().Add(lockMax); ; time.Sleep(lockMax / 20) {
		if err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err == nil || how == unix.LOCK_SH || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fault.Newf(fault.Busy, op, volume, "it is attached on this machine already; 'gabion attach --list' shows where")
	}
	return f, nil
}

// save replaces a file so that a reader finds the old or the new one, whole;
// sync makes it survive a power cut too.
func save(path string, v any, sync bool) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return vfs.OSError(op, path, err)
	}
	_, err = f.Write(append(raw, '\n'))
	if err == nil && sync {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil && sync {
		var dir *os.File
		if dir, err = os.Open(filepath.Dir(path)); err == nil {
			err = dir.Sync()
			dir.Close()
		}
	}
	if err != nil {
		return vfs.OSError(op, path, err)
	}
	return nil
}

// load reads a file of save; NotFound and Corrupt.
func load(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return vfs.OSError(op, path, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fault.Newf(fault.Corrupt, op, path, "the file is damaged: %w", err)
	}
	return nil
}
