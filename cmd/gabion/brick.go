package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) brickCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "brick",
		Short: "List bricks, decide about those that are set aside",
		Long: `A brick whose disk fails, stalls or returns other bytes than were written is set
aside: it is not used any more, also after a restart, and what it held is made
anew on other bricks. To use its disk again, replace it or empty the directory
and start the node: that is a new brick. 'readmit' takes the old one back as it
is, 'forget' strikes it off the pool's list.`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	c.AddCommand(a.brickListCmd(), a.brickForgetCmd(), a.brickReadmitCmd())
	return c
}

func (a *app) brickListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the bricks of the pool, and why some are set aside",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.showStatus(c, func(s *control.Status) any { return s.Bricks }, writeBricks)
		},
	}
}

func writeBricks(w io.Writer, s *control.Status) error {
	t := newTable(w, "BRICK", "NODE", "STATE", "USED", "FREE", "TOTAL", "SCRUB", "PATH")
	for _, b := range s.Bricks {
		t.row(b.ID.String(), b.Node, b.State, sizeText(b.UsedBytes), sizeText(b.FreeBytes), sizeText(b.TotalBytes), scrubText(b.Scrub), b.Path)
	}
	if err := t.flush(); err != nil {
		return err
	}
	return writeAside(w, s.Bricks)
}

// writeAside says why bricks are set aside.
func writeAside(w io.Writer, bs []control.Brick) error {
	for _, b := range bs {
		if b.Reason == "" {
			continue
		}
		since := ""
		if b.SinceUnixSeconds > 0 {
			since = " since " + time.Unix(b.SinceUnixSeconds, 0).UTC().Format(time.RFC3339)
		}
		if _, err := fmt.Fprintf(w, "\nbrick %s of %s is set aside%s: %s\n", b.ID.Short(), printable(b.Node), since, oneLine(b.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// scrubText is how a scrub stands in few words.
func scrubText(s *control.Scrub) string {
	text := "-"
	switch {
	case s == nil:
		return text
	case s.Running:
		text = "running"
	case s.LastUnixSeconds > 0:
		text = time.Unix(s.LastUnixSeconds, 0).UTC().Format("2006-01-02")
	}
	switch lost := s.Damaged - s.Repaired; {
	case lost > 0:
		text += fmt.Sprintf(", %d not repaired", lost)
	case s.Damaged > 0:
		text += fmt.Sprintf(", %d repaired", s.Damaged)
	}
	return text
}

func (a *app) brickForgetCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "forget BRICK",
		Short: "Strike a brick that is set aside off the pool's list",
		Long: `Strikes a brick of this node that is set aside off the pool's list. BRICK is its
id, at least the first four characters of it, or its path. Its directory is not
touched; it is not opened again either until it holds a new brick: empty it, and
start the node. What only this brick had is lost.`,
		Args: exactly("BRICK"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.ForgetBrick(ctx, args[0]); err != nil {
					return err
				}
				return a.done("brick %s is forgotten; empty its directory and start the node again to use the disk as a new brick", args[0])
			})
		},
	}
}

func (a *app) brickReadmitCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "readmit BRICK",
		Short: "Use a brick that was set aside again",
		Long: `Opens a brick of this node that was set aside and uses it again. BRICK is its id,
at least the first four characters of it, or its path. It is verified as it is opened,
and stays aside if it is damaged or its disk does not answer. Do this when the cause
was outside of the disk (a cable, a controller), and 'gabion scrub start' afterwards;
or when the disk was replaced and the directory is empty: then it is a new brick.`,
		Args: exactly("BRICK"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.ReadmitBrick(ctx, args[0]); err != nil {
					return err
				}
				return a.done("brick %s is readmitted and used again; let it be verified with: gabion scrub start", args[0])
			})
		},
	}
}

// done says what was done, in words or as JSON.
func (a *app) done(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return a.show(struct {
		Done string `json:"done"`
	}{text}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, text)
		return err
	})
}
