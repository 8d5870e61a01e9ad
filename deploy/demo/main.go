// Command demo runs a pool of three nodes on this machine, with a volume that
// has three copies, until it is interrupted. Started again it goes on with the
// same data.
//
// usage: demo GABION DIR
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

const (
	nodes   = 3
	volume  = "demo"
	refresh = 2 * time.Second
	// A node that somebody killed stays away for so long: time to look at what
	// the others do without it.
	absence = 15 * time.Second
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo GABION DIR")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, gabion, dir string) (err error) {
	gabion, err1 := filepath.Abs(gabion)
	dir, err2 := filepath.Abs(dir)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	c := &cluster.Cluster{Dir: dir, Binary: gabion}
	defer func() {
		fmt.Println("\nstopping the nodes")
		if e := c.Stop(); e != nil {
			err = errors.Join(err, e)
		} else {
			fmt.Println("stopped; 'make demo' goes on with the same data, 'rm -r demo' forgets it")
		}
	}()
	if err := start(ctx, c); err != nil {
		return err
	}
	if err := makeVolume(c.Nodes[0]); err != nil {
		return err
	}
	return show(ctx, c)
}

// lock keeps two demos out of one directory.
func lock(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another demo runs in %s", dir)
	}
	return func() { f.Close() }, nil
}

// addresses keeps where the nodes listened: a pool finds its members there
// again, and so do the clients of its volumes.
type addresses []cluster.RunInfo

func start(ctx context.Context, c *cluster.Cluster) error {
	file := filepath.Join(c.Dir, "addresses.json")
	var known addresses
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &known); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for i := range nodes {
		n := c.Add()
		if i < len(known) {
			// The pool exists: all members start at once, in no order.
			n.Info = known[i]
			if err := n.Begin(); err != nil {
				return err
			}
			continue
		}
		if i == len(known) {
			if err := ready(ctx, c.Nodes[:i]); err != nil {
				return err
			}
		}
		fmt.Printf("making node %s\n", n.Name)
		if err := join(ctx, c, n); err != nil {
			return err
		}
		known = append(known, n.Info)
		if b, err = json.Marshal(known); err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
	}
	return ready(ctx, c.Nodes)
}

// join starts a new node; the first makes the pool. What an interrupted demo
// left of a node that had not come up is taken away first.
func join(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error {
	if err := os.RemoveAll(n.Dir); err != nil {
		return err
	}
	if n != c.Nodes[0] {
		if err := n.JoinVia(c.Nodes[0]); err != nil {
			return err
		}
	}
	if err := n.Begin(); err != nil {
		return err
	}
	return ready(ctx, []*cluster.Node{n})
}

func ready(ctx context.Context, ns []*cluster.Node) error {
	ctx, cancel := context.WithTimeout(ctx, cluster.StartTimeout)
	defer cancel()
	for _, n := range ns {
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func makeVolume(n *cluster.Node) error {
	ctl := n.Control()
	defer ctl.Close()
	// After a start of all nodes the pool needs a moment to find itself.
	_, err := n.Await(cluster.StartTimeout, cluster.Members(nodes))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cluster.CallTimeout)
	defer cancel()
	vs, err := ctl.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if v.Name == volume {
			return nil
		}
	}
	_, err = ctl.CreateVolume(ctx, control.CreateVolume{Name: volume, SizeBytes: 10 << 30, Replicas: 3})
	return err
}

func help(c *cluster.Cluster) string {
	n := c.Nodes[0]
	host, port, _ := strings.Cut(n.Info.NBD, ":")
	uri := "nbd://" + n.Info.NBD + "/" + volume
	var b strings.Builder
	fmt.Fprintf(&b, `Three nodes run, volume %[3]q (10 GiB, 3 copies) waits. Use it, as root, through any node:

  as a block device:             %[1]s --dir %[2]s attach %[3]s
                                 mkfs.ext4 /dev/gabion/%[3]s && mount /dev/gabion/%[3]s /mnt
                                 (kill -9 the node that serves it; end with umount and detach %[3]s)
  with nbd-client:               nbd-client %[4]s %[5]s /dev/nbd0 -N %[3]s -b 4096
  a virtual machine:             qemu-system-x86_64 … -drive file=%[6]s,format=raw,if=virtio

`, n.Binary, n.Dir, volume, host, port, uri)
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "  %s  nbd://%s/%s  http://%s/metrics  pid %d  log %s\n", n.Name, n.Info.NBD, volume, n.Info.HTTP, n.PID(), n.LogFile())
	}
	fmt.Fprintf(&b, "\nAsk: %s --dir %s status. Try: kill -9 of a node; it is started again after %v.\n"+
		"Ctrl-C ends the demo, the data stays.\n", n.Binary, n.Dir, absence)
	return b.String()
}

// show prints the status: on a terminal again and again in place, otherwise
// once and whenever the state of a node or volume changes.
func show(ctx context.Context, c *cluster.Cluster) error {
	_, notTTY := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	tty := notTTY == nil
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	last := ""
	gone := map[*cluster.Node]time.Time{}
	for {
		if err := revive(c, gone); err != nil {
			return err
		}
		text, state := status(c)
		switch {
		case tty:
			fmt.Printf("\x1b[H\x1b[2J%s\n%s", help(c), text)
		case last == "":
			fmt.Printf("%s\n%s", help(c), text)
		case state != last:
			fmt.Printf("\n%s\n%s", time.Now().Format(time.TimeOnly), text)
		}
		last = state
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// revive starts nodes that have been dead for long enough; gone keeps since
// when.
func revive(c *cluster.Cluster, gone map[*cluster.Node]time.Time) error {
	for _, n := range c.Nodes {
		since, dead := gone[n]
		switch {
		case n.Alive():
			delete(gone, n)
		case !dead:
			gone[n] = time.Now()
		case time.Since(since) > absence:
			if err := n.Begin(); err != nil {
				return err
			}
		}
	}
	return nil
}

// status asks the first node that answers; state is what of it is worth a new
// print.
func status(c *cluster.Cluster) (text, state string) {
	for _, n := range c.Nodes {
		s, err := n.Status()
		if err != nil {
			continue
		}
		out, err := n.Do("status")
		if err != nil {
			continue
		}
		var b strings.Builder
		for _, x := range s.Nodes {
			fmt.Fprintln(&b, x.Name, x.State)
		}
		for _, v := range s.Volumes {
			fmt.Fprintln(&b, v.Name, v.HealthText(), v.Holder, v.Clients)
		}
		return out + "\n", b.String()
	}
	return "no node answers\n", "no node answers"
}
