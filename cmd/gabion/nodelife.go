package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

// drainPoll is how often a drain that is waited for is looked at.
const drainPoll = time.Second

// nodeVerb is a command that does one thing to a node and shows the node.
func (a *app) nodeVerb(use, short, long string, f func(ctx context.Context, d control.Daemon, name string) (*control.Node, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				n, err := f(ctx, d, args[0])
				if err != nil {
					return err
				}
				return a.showNode(n)
			})
		},
	}
}

func (a *app) showNode(n *control.Node) error {
	return a.show(n, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, leavingText(n))
		return err
	})
}

// leavingText tells in a line how far a node is from holding nothing.
func leavingText(n *control.Node) string {
	if n.Standing == "" {
		return n.Name + ": member of the pool"
	}
	s := fmt.Sprintf("%s: %s", n.Name, n.Standing)
	if n.SafeToRemove {
		return s + ", safe to remove: gabion node remove " + n.Name
	}
	s += fmt.Sprintf(", %d votes, %d lanes, %s on it", n.Votes, n.Lanes, sizeText(n.DataBytes))
	if n.Blocked != "" {
		s += "; it stays: " + n.Blocked
	}
	return s
}

func (a *app) nodeDrainCmd() *cobra.Command {
	var noWait bool
	c := &cobra.Command{
		Use:   "drain NAME",
		Short: "Take a node out of use and empty it",
		Long: `Makes a node let go of everything: it ends its clients' sessions, which go on at
other nodes, and serves nobody; its votes and data move to the other nodes. The
command waits until that is done and says so: "safe to remove". It may be ended
with Ctrl-C and given again; the drain goes on.

Where the other nodes cannot take all copies, votes and data stay, and the
command says so and ends. The node can be restarted or worked on then as well: its
clients are elsewhere. 'gabion node undrain' makes it a member again.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			var n *control.Node
			if err := a.ask(c, func(ctx context.Context, d control.Daemon) (err error) {
				n, err = d.DrainNode(ctx, args[0])
				return err
			}); err != nil {
				return err
			}
			if noWait {
				return a.showNode(n)
			}
			return a.waitDrained(c, n)
		},
	}
	c.Flags().BoolVar(&noWait, "no-wait", false, "only begin it")
	return c
}

// waitDrained shows the progress of a drain until it is done or cannot go on.
func (a *app) waitDrained(c *cobra.Command, n *control.Node) error {
	said := ""
	for !n.SafeToRemove && n.Blocked == "" {
		if now := leavingText(n); !a.json && now != said {
			fmt.Fprintln(a.err, now)
			said = now
		}
		select {
		case <-c.Context().Done():
			return c.Context().Err()
		case <-time.After(drainPoll):
		}
		name := n.Name
		if err := a.ask(c, func(ctx context.Context, d control.Daemon) error {
			s, err := d.Status(ctx)
			if err != nil {
				return err
			}
			for i := range s.Nodes {
				if s.Nodes[i].Name == name {
					n = &s.Nodes[i]
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if n.Standing != "draining" {
			return fmt.Errorf("%s is no longer being drained", name)
		}
	}
	return a.showNode(n)
}

func (a *app) nodeLifeCmds() []*cobra.Command {
	return []*cobra.Command{
		a.nodeDrainCmd(),
		a.nodeVerb("undrain NAME", "Make a drained node a member again",
			`Ends a drain: the node serves and stores again.`,
			func(ctx context.Context, d control.Daemon, name string) (*control.Node, error) {
				return d.UndrainNode(ctx, name)
			}),
		a.nodeVerb("lost NAME", "Declare a node that is down gone for good",
			`Declares that a node will never come back: its disks are broken, stolen or
wiped. What it held is made anew on other nodes at once, and the node is not let in
again as the one it was. A node that merely sleeps needs no command: it is
evicted after a while and taken back when it returns.`,
			func(ctx context.Context, d control.Daemon, name string) (*control.Node, error) {
				return d.LoseNode(ctx, name)
			}),
		{
			Use:   "remove NAME",
			Short: "Forget a node that was drained or lost",
			Long: `Takes a node out of the pool's records. It must hold nothing any more: drain it
first, or declare it lost. A removed node can join again as a new one, with an
empty directory.`,
			Args: exactly("NAME"),
			RunE: func(c *cobra.Command, args []string) error {
				return a.ask(c, func(ctx context.Context, d control.Daemon) error {
					if err := d.RemoveNode(ctx, args[0]); err != nil {
						return err
					}
					facts := struct {
						Removed string `json:"removed"`
					}{args[0]}
					return a.show(facts, func(w io.Writer) error {
						_, err := fmt.Fprintf(w, "%s is no longer in the pool\n", args[0])
						return err
					})
				})
			},
		},
	}
}
