// Package failover has the rigs that take nodes away from under a mounted file
// system. docs/ATTACH.md has what they measured.
package failover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/attach"
	"github.com/gabion-storage/gabion/test/cluster"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// attached is a volume under 'gabion attach', mounted.
type attached struct {
	attach.Info
	Path string // where it is mounted

	c       *cluster.Cluster
	root    string
	fs      string // kind of file system
	mounted bool
}

// mountVolume attaches a volume through node n and mounts it, with a new ext4
// on it. All of it ends with the test.
func mountVolume(t *testing.T, c *cluster.Cluster, n *cluster.Node, volume string) *attached {
	t.Helper()
	return mountAs(t, c, n, volume, "ext4")
}

// mountAs is mountVolume with another file system.
func mountAs(t *testing.T, c *cluster.Cluster, n *cluster.Node, volume, fs string) *attached {
	t.Helper()
	a := &attached{c: c, fs: fs, root: filepath.Join(c.Dir, "attach"), Path: filepath.Join(c.Dir, "mnt")}
	if err := a.gabion(&a.Info, "attach", volume, "--dir", n.Dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("status at %s: %s", n.Name, n.CLI("status").Out)
			}
			// Where it stands is at the end of its log.
			if p, err := os.FindProcess(a.PID); err == nil && p.Signal(syscall.SIGQUIT) == nil {
				_, _ = p.Wait()
				time.Sleep(time.Second)
			}
			b, _ := os.ReadFile(filepath.Join(a.root, "run", volume+".log"))
			t.Logf("log of attach:\n%s", b)
		}
		a.drop(t)
	})
	t.Logf("%s is %s, through %s %s", a.Link, a.Device, a.Kind, a.Reason)
	if err := os.Mkdir(a.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+fs, "-q", a.Link)
	run(t, "mount", a.Link, a.Path)
	a.mounted = true
	return a
}

// gabion runs a command and decodes its JSON into v.
func (a *attached) gabion(v any, args ...string) error {
	r := cluster.Run(a.c.Binary, nil, append(args, "--root", a.root, "--json")...)
	if r.Code != 0 {
		return fmt.Errorf("gabion %s: exit %d: %s", strings.Join(args, " "), r.Code, r.Err)
	}
	return json.Unmarshal([]byte(r.Out), v)
}

// look reads what --list says.
func (a *attached) look() (attach.Info, error) {
	var all []attach.Info
	if err := a.gabion(&all, "attach", "--list"); err != nil {
		return attach.Info{}, err
	}
	if len(all) != 1 || !all[0].Running {
		return attach.Info{}, fmt.Errorf("attached: %+v", all)
	}
	return all[0], nil
}

// served is the node that serves now; it waits for one.
func (a *attached) served(t *testing.T) *cluster.Node {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		i, err := a.look()
		if err == nil {
			for _, n := range a.c.Nodes {
				if n.Info.NBD == i.State.Node.Addr {
					return n
				}
			}
			err = errors.New("nobody serves: " + i.State.Cause)
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// finish unmounts, checks the file system and detaches.
func (a *attached) finish(t *testing.T) {
	t.Helper()
	var i attach.Info
	if err := a.gabion(&i, "detach", a.Volume); err == nil {
		t.Error("a mounted volume was detached")
	}
	run(t, "umount", a.Path)
	a.mounted = false
	if a.fs == "xfs" {
		run(t, "xfs_repair", "-n", a.Device)
	} else {
		run(t, "e2fsck", "-f", "-n", a.Device)
	}
	if err := a.gabion(&i, "detach", a.Volume); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(a.Link); err == nil {
		t.Error("the name of the device is still there")
	}
}

// drop takes everything away, in whatever state it is.
func (a *attached) drop(t *testing.T) {
	if a.mounted {
		_ = exec.Command("umount", "-l", a.Path).Run()
	}
	var i attach.Info
	if err := a.gabion(&i, "detach", a.Volume); err != nil && t.Failed() {
		t.Log(err)
		if i, err := a.look(); err == nil && i.PID > 0 {
			if p, err := os.FindProcess(i.PID); err == nil {
				_ = p.Kill()
			}
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// gauge measures the longest time between two acknowledgements.
type gauge struct {
	mu    sync.Mutex
	cond  sync.Cond
	last  time.Time
	worst time.Duration
	count uint64
	over  error // why there will be no more
}

func (g *gauge) end(err error) {
	g.mu.Lock()
	g.over = err
	g.mu.Unlock()
	g.cond.Broadcast()
}

func newGauge() *gauge {
	g := &gauge{last: time.Now()}
	g.cond.L = &g.mu
	return g
}

func (g *gauge) tick() {
	g.mu.Lock()
	now := time.Now()
	g.worst = max(g.worst, now.Sub(g.last))
	g.last = now
	g.count++
	g.mu.Unlock()
	g.cond.Broadcast()
}

// reset forgets the worst.
func (g *gauge) reset() {
	g.mu.Lock()
	g.worst, g.last = 0, time.Now()
	g.mu.Unlock()
}

// more waits for n further acknowledgements and returns the longest time between
// two since reset.
func (g *gauge) more(t *testing.T, n uint64) time.Duration {
	t.Helper()
	late := time.AfterFunc(patience, g.cond.Broadcast)
	defer late.Stop()
	end := time.Now().Add(patience)
	g.mu.Lock()
	defer g.mu.Unlock()
	for goal := g.count + n; g.count < goal; g.cond.Wait() {
		if g.over != nil {
			t.Fatal("the load ended: ", g.over)
		}
		if time.Now().After(end) {
			t.Fatalf("no acknowledgement for %v", time.Since(g.last))
		}
	}
	return g.worst
}
