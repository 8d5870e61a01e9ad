package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

const (
	// rootDir is the directory of a node that runs as root.
	rootDir = "/var/lib/gabion"
	// answerTimeout is how long a command waits for its node: longer than a
	// node takes to end any request.
	answerTimeout = control.RequestTimeout + 5*time.Second
)

// app is one run of the program: its streams and global flags.
type app struct {
	in       io.Reader
	out, err io.Writer
	dir      string
	json     bool
}

func (a *app) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "gabion",
		Short: "Replicated block devices from the local disks of many machines",
		Long: `gabion turns the local disks of many machines into one pool, and exports
replicated, thin volumes from it as network block devices.

  gabion node run                                 start a pool on this machine
  gabion volume create pg --size 10G              make a volume in it
  gabion attach pg                                use it: /dev/gabion/pg

The other commands ask the node that runs on this machine, through the socket
in its directory (--dir). Exit codes: 0 done, 1 failed, 2 wrong command line.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
	}
	root.PersistentFlags().StringVar(&a.dir, "dir", "",
		"`DIR` of the node (default $GABION_DIR, else "+rootDir+
			" for root, else $HOME/.local/state/gabion)")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print facts as JSON")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%v", err) })
	// A group has no action of its own to show.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(),
		"{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.AddCommand(a.nodeCmd(), a.poolCmd(), a.volumeCmd(), a.brickCmd(), a.scrubCmd(), a.statusCmd(), a.versionCmd(),
		a.attachCmd(), a.detachCmd())
	return root
}

// group is the action of a command that only has verbs below it.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 && !c.HasParent() {
		return c.Help()
	}
	var verbs []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() && s.Name() != "help" && s.Name() != "completion" {
			verbs = append(verbs, s.Name())
		}
	}
	list := strings.Join(verbs, ", ")
	if len(args) == 0 {
		return usagef("say which: %s", list)
	}
	return usagef("there is no %q; there are: %s", args[0], list)
}

// exactly demands one argument for each name.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// stateDir is the node's directory: --dir, $GABION_DIR, /var/lib/gabion for
// root, and the user's state directory for anybody else.
func (a *app) stateDir() string {
	if a.dir != "" {
		return a.dir
	}
	if d := os.Getenv("GABION_DIR"); d != "" {
		return d
	}
	if os.Getuid() == 0 {
		return rootDir
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "gabion")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "gabion")
	}
	return "gabion-data"
}

// ask runs f with a client of the local node and a bounded context.
func (a *app) ask(c *cobra.Command, f func(ctx context.Context, d control.Daemon) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), answerTimeout)
	defer cancel()
	client := control.NewClient(a.stateDir())
	defer client.Close()
	return f(ctx, client)
}

// showStatus asks the local node how the pool is and prints what of it facts picks.
func (a *app) showStatus(c *cobra.Command, facts func(*control.Status) any, human func(io.Writer, *control.Status) error) error {
	return a.ask(c, func(ctx context.Context, d control.Daemon) error {
		s, err := d.Status(ctx)
		if err != nil {
			return err
		}
		return a.show(facts(s), func(w io.Writer) error { return human(w, s) })
	})
}

// show prints v as JSON if --json was given, else what human writes.
func (a *app) show(v any, human func(w io.Writer) error) error {
	if !a.json {
		return human(a.out)
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
