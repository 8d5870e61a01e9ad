package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/attach"
)

// attachFlags are the flags of attach.
type attachFlags struct {
	list, foreground, takeover bool
	iscsi                      bool
	nodes                      []string
	kind, tls                  string
	connections                int
	ioTimeout                  time.Duration
	// Hidden.
	root, nameOf string
	readyFD      int
}

func (a *app) attachCmd() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "attach VOLUME | --list",
		Short: "Make a volume a block device of this machine that outlives its node",
		Long: `Makes a volume a block device, /dev/gabion/VOLUME, that outlives the nodes that
serve it: when the serving node dies, hangs or is drained, I/O waits some
seconds until another node has taken the volume over, and goes on. It uses the
kernel's nbd driver, or FUSE and a loop device where there is none, and says so.

The nodes are those that the local node knows (--dir), or those that --node
names; they are remembered. A process in the background serves the device;
'gabion detach VOLUME' ends it. This is not 'gabion volume attach', which makes
the local node the holder of a volume and no device.`,
		Args: func(c *cobra.Command, args []string) error {
			if f.list || f.nameOf != "" {
				return exactly()(c, args)
			}
			return exactly("VOLUME")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.nameOf != "":
				name, err := attach.NameOf(f.dirs(), f.nameOf)
				if err == nil {
					_, err = fmt.Fprintln(a.out, name)
				}
				return err
			case f.list:
				return a.listAttached(f.dirs())
			}
			if f.iscsi {
				return a.attachISCSI(c.Context(), args[0])
			}
			return a.attachVolume(c.Context(), args[0], &f)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.list, "list", false, "list what is attached on this machine")
	fl.BoolVar(&f.iscsi, "iscsi", false, "have open-iscsi (iscsiadm) log in to every node instead; no process is left behind")
	fl.StringSliceVar(&f.nodes, "node", nil, "`HOST:PORT` or unix:/PATH of a node's NBD server; may be repeated (default: ask the local node)")
	fl.StringVar(&f.tls, "tls", "", "`DIR` of 'gabion node nbd-client', for nodes with --nbd-tls")
	fl.StringVar(&f.kind, "kind", "", "`KIND` of device: nbd or fuse (default: nbd if the kernel has it)")
	fl.IntVar(&f.connections, "connections", 1, "`N` sockets between the kernel and the process, with nbd; if the process dies, a device of several waits for --io-timeout")
	fl.DurationVar(&f.ioTimeout, "io-timeout", 5*time.Minute, "`TIME` after which a request fails while no node serves the volume; negative: never")
	fl.BoolVar(&f.takeover, "takeover", false, "put out another client that has the volume attached")
	fl.BoolVar(&f.foreground, "foreground", false, "stay, and log to stderr")
	f.hidden(c)
	fl.StringVar(&f.nameOf, "name-of", "", "")
	fl.IntVar(&f.readyFD, "ready-fd", -1, "")
	_ = fl.MarkHidden("name-of")
	_ = fl.MarkHidden("ready-fd")
	return c
}

// hidden adds what tests need: a place of their own for all files.
func (f *attachFlags) hidden(c *cobra.Command) {
	c.Flags().StringVar(&f.root, "root", os.Getenv("GABION_ATTACH_ROOT"), "")
	_ = c.Flags().MarkHidden("root")
}

func (f *attachFlags) dirs() attach.Dirs {
	if f.root == "" {
		return attach.DefaultDirs()
	}
	return attach.Dirs{Run: filepath.Join(f.root, "run"), State: filepath.Join(f.root, "state"), Link: filepath.Join(f.root, "dev")}
}

// check refuses flags that cannot work.
func (f *attachFlags) check() error {
	for _, n := range f.nodes {
		if _, _, err := net.SplitHostPort(n); err != nil && !strings.HasPrefix(n, "unix:/") {
			return usagef("--node is %q; it must be host:port or unix:/PATH", n)
		}
	}
	if f.kind != "" && f.kind != attach.KindNBD && f.kind != attach.KindFUSE {
		return usagef("--kind is %q; it must be nbd or fuse", f.kind)
	}
	if f.connections < 1 || f.connections > 16 {
		return usagef("--connections is %d; it must be 1 to 16", f.connections)
	}
	if f.ioTimeout == 0 || f.ioTimeout > 0 && f.ioTimeout < time.Second {
		return usagef("--io-timeout is %v; it must be a second at least, or negative for none", f.ioTimeout)
	}
	return nil
}

func (a *app) attachVolume(ctx context.Context, volume string, f *attachFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if !f.foreground {
		return a.attachInBackground(ctx, volume, f)
	}
	attach.BecomeFlusher()
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(stop)
	dir, err := filepath.Abs(a.stateDir())
	if err != nil {
		return err
	}
	report := newReport(f.readyFD)
	defer report.close()
	err = attach.Run(attach.Config{
		Volume: volume, Dirs: f.dirs(), NodeDir: dir, Nodes: f.nodes, TLS: f.tls, Kind: f.kind, Connections: f.connections,
		Takeover: f.takeover, RequestTimeout: f.ioTimeout, Log: slog.New(slog.NewTextHandler(a.err, nil)), Stop: stop,
		Ready: func(i attach.Info) {
			notifyManager("READY=1")
			if f.readyFD >= 0 {
				report.ready(i)
				return
			}
			_ = a.show(i, func(w io.Writer) error { return writeAttached(w, i) }) // nobody may listen
		},
	})
	report.failed(err)
	return err
}

func writeAttached(w io.Writer, i attach.Info) error {
	name := i.Link
	if name == "" {
		name = i.Device
	}
	how := "the kernel's nbd driver"
	if i.Kind == attach.KindFUSE {
		how = "FUSE and a loop device"
		if i.Reason != "" {
			how += ", because: " + i.Reason
		}
	}
	_, err := fmt.Fprintf(w, "%s is attached as %s (%s), served by %s\nthrough %s\nto undo: gabion detach %s\n",
		printable(i.Volume), printable(name), printable(i.Device), printable(i.State.Node.String()), printable(oneLine(how)), printable(i.Volume))
	return err
}

func (a *app) listAttached(d attach.Dirs) error {
	all, err := attach.List(d)
	if err != nil {
		return err
	}
	return a.show(all, func(w io.Writer) error {
		if len(all) == 0 {
			_, err := fmt.Fprintln(w, "nothing is attached; attach a volume with 'gabion attach VOLUME'")
			return err
		}
		t := newTable(w, "VOLUME", "DEVICE", "KIND", "SIZE", "NODE", "MOVES", "LONGEST PAUSE", "USED")
		for _, i := range all {
			t.row(i.Volume, i.Device, i.Kind, sizeText(i.SizeBytes), servedBy(i), fmt.Sprint(i.State.Moves),
				i.State.LongestPause.Round(time.Millisecond).String(), orDash(i.Used))
		}
		return t.flush()
	})
}

// servedBy is the node, or what is wrong.
func servedBy(i attach.Info) string {
	switch {
	case !i.Running:
		return "its process died; 'gabion attach " + i.Volume + "' again"
	case i.State.Node.Addr == "":
		return "none: " + oneLine(i.State.Cause)
	}
	return i.State.Node.String()
}

// detachTimeout bounds the wait for a process to end.
const detachTimeout = 90 * time.Second

func (a *app) detachCmd() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Take the block device of a volume away",
		Long: `Flushes and takes away what 'gabion attach VOLUME' made. It fails while the
device is mounted or otherwise in use, and works without any node.`,
		Args: exactly("VOLUME"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), detachTimeout)
			defer cancel()
			i, err := attach.Detach(ctx, f.dirs(), args[0])
			if err != nil {
				return err
			}
			return a.show(i, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s is detached, %s is gone\nto undo: gabion attach %s\n", printable(i.Volume), i.Device, printable(i.Volume))
				return err
			})
		},
	}
	f.hidden(c)
	return c
}

// notifyManager tells systemd, if it started this process and waits to be told.
func notifyManager(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state)) // nothing can be done about it
}
