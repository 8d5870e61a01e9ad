package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) volumeExplainCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "explain NAME",
		Short: "Say what a volume lacks, since when, and what would help",
		Long: `Looks at every copy of a volume and says what is wrong with it: which members do
not answer and since when, whether I/O waits, which copies are missing, and for each
what would help.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				e, err := d.ExplainVolume(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(e, func(w io.Writer) error { return writeExplanation(w, e) })
			})
		},
	}
}

func writeExplanation(w io.Writer, e *control.Explanation) error {
	fmt.Fprintf(w, "volume %s: %s, held by %s\n\n", e.Volume.Name, e.Volume.HealthText(), orDash(e.Volume.Holder))
	if err := writeCopies(w, e.Members); err != nil {
		return err
	}
	if len(e.Findings) == 0 {
		_, err := fmt.Fprintln(w, "\nnothing is wrong with it")
		return err
	}
	for _, f := range e.Findings {
		since := ""
		if f.SinceUnixSeconds > 0 {
			since = " since " + time.Unix(f.SinceUnixSeconds, 0).Format(time.DateTime)
		}
		if _, err := fmt.Fprintf(w, "\n* %s%s\n  %s\n", f.What, since, f.Help); err != nil {
			return err
		}
	}
	return nil
}

func writeCopies(w io.Writer, cs []control.Copy) error {
	t := newTable(w, "MEMBER", "ROLE", "STATE", "EPOCH", "DURABLE", "LAST")
	for _, c := range cs {
		if !c.Answers {
			t.row(c.Node, c.Role, c.State+", no answer", "-", "-", "-")
			continue
		}
		t.row(c.Node, c.Role, c.State, fmt.Sprint(c.Epoch), fmt.Sprint(c.Durable), fmt.Sprint(c.Last))
	}
	return t.flush()
}

const recoverLong = `Only if a majority of the members is gone for good. Gives %s a new quorum out of
the copies that still answer. What only the lost members had is lost, even if it
was flushed. Shows the survivors and what may be lost, and asks for the name of %s;
--yes-i-may-lose-data NAME answers that beforehand. A record of it stays: see
'gabion pool audit'.`

// recoverCmd is the command that forces a recovery of what do does.
func (a *app) recoverCmd(use, short, what string, names []string,
	do func(ctx context.Context, d control.Daemon, args []string, q control.RecoverVolume) (*control.Recovered, error)) *cobra.Command {
	var q control.RecoverVolume
	var dry bool
	c := &cobra.Command{
		Use: use, Short: short, Long: fmt.Sprintf(recoverLong, what, what),
		Args: exactly(names...),
		RunE: func(c *cobra.Command, args []string) error {
			plan := q
			plan.DryRun = true
			if err := a.ask(c, func(ctx context.Context, d control.Daemon) error {
				r, err := do(ctx, d, args, plan)
				if err != nil {
					return err
				}
				if dry {
					return a.show(r, func(w io.Writer) error { return writeRecovered(w, r) })
				}
				return writeRecovered(a.err, r)
			}); err != nil || dry {
				return err
			}
			if q.Confirm == "" {
				var err error
				if q.Confirm, err = a.typed(fmt.Sprintf("Type the name of %s to go on: ", what)); err != nil {
					return err
				}
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				r, err := do(ctx, d, args, q)
				if err != nil {
					return err
				}
				return a.show(r, func(w io.Writer) error { return writeRecovered(w, r) })
			})
		},
	}
	c.Flags().StringVar(&q.From, "from", "", "`NODE` whose copy to go on from (default: the one that has most)")
	c.Flags().StringVar(&q.Confirm, "yes-i-may-lose-data", "", "`NAME`, instead of being asked for it")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show the survivors and what may be lost")
	return c
}

func writeRecovered(w io.Writer, r *control.Recovered) error {
	if err := writeCopies(w, r.Survivors); err != nil {
		return err
	}
	verb := "would be"
	if r.Done {
		verb = "is"
	}
	_, err := fmt.Fprintf(w, "\nit %s continued from %s, with the voters %v\nmay be lost: %s\n", verb, r.From, r.Voters, r.MayBeLost)
	return err
}

func (a *app) volumeRecoverCmd() *cobra.Command {
	return a.recoverCmd("recover NAME", "Force a volume whose quorum is gone for good", "the volume", []string{"NAME"},
		func(ctx context.Context, d control.Daemon, args []string, q control.RecoverVolume) (*control.Recovered, error) {
			return d.RecoverVolume(ctx, args[0], q)
		})
}

func (a *app) poolRecoverCmd() *cobra.Command {
	return a.recoverCmd("recover", "Force a pool whose own quorum is gone for good", "the pool", nil,
		func(ctx context.Context, d control.Daemon, _ []string, q control.RecoverVolume) (*control.Recovered, error) {
			return d.RecoverPool(ctx, q)
		})
}

func (a *app) poolAuditCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "audit",
		Short: "Show what was forced, by whom and when",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				rs, err := d.Audit(ctx)
				if err != nil {
					return err
				}
				return a.show(rs, func(w io.Writer) error {
					t := newTable(w, "WHEN", "NODE", "WHAT", "OF", "DETAIL")
					for _, r := range rs {
						t.row(time.Unix(r.UnixSeconds, 0).Format(time.DateTime), r.Node, r.What, r.Subject, r.Detail)
					}
					return t.flush()
				})
			})
		},
	}
}

// typed asks for a line on standard input.
func (a *app) typed(question string) (string, error) {
	fmt.Fprintln(a.err, question)
	line, err := bufio.NewReader(io.LimitReader(a.in, confirmLineMax)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("no answer: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}
