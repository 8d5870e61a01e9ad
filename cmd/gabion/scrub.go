package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) scrubCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "scrub",
		Short: "Verify the bricks of this node, and see what was found",
		Long: `Every brick reads all that it holds now and then and compares it with its
checksums, past the page cache. Damaged extents are replaced from other bricks,
damaged records of the journal from other members; a brick that has forgotten
what it promised is set aside.`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	c.AddCommand(a.scrubStartCmd(), a.scrubSetCmd(), a.scrubStatusCmd())
	return c
}

// rate reads "20M" as bytes each second; "" is 0.
func rate(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := parseSize(text)
	if err != nil || n <= 0 {
		return 0, usagef("--rate is %q; it must be bytes each second, such as 20M", text)
	}
	return n, nil
}

func (a *app) scrubStartCmd() *cobra.Command {
	var req control.StartScrub
	var speed string
	c := &cobra.Command{
		Use:   "start",
		Short: "Begin to verify the bricks of this node now",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if req.RateBytes, err = rate(speed); err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.StartScrub(ctx, req); err != nil {
					return err
				}
				return a.done("the scrub has begun; gabion scrub status tells how it stands")
			})
		},
	}
	c.Flags().StringVar(&req.Brick, "brick", "", "id or path of one `BRICK` (default: all of this node)")
	c.Flags().StringVar(&speed, "rate", "", "`BYTES` each second for this pass: 20M, 1G (default: see scrub set)")
	return c
}

func (a *app) scrubSetCmd() *cobra.Command {
	var every time.Duration
	var speed string
	c := &cobra.Command{
		Use:   "set",
		Short: "Set how often and how fast this node verifies its bricks",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			var req control.ScrubSettings
			var err error
			if req.RateBytes, err = rate(speed); err != nil {
				return err
			}
			switch {
			case every < 0 || every > 0 && every < time.Hour:
				return usagef("--every is %v; it must be at least 1h, or 0 for only when asked", every)
			case c.Flags().Changed("every") && every == 0:
				req.EverySeconds = -1
			default:
				req.EverySeconds = int64(every / time.Second)
			}
			if req == (control.ScrubSettings{}) {
				return usagef("say what to set: --rate or --every")
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.ScrubSettings(ctx, req); err != nil {
					return err
				}
				return a.done("set")
			})
		},
	}
	c.Flags().StringVar(&speed, "rate", "", "`BYTES` each second: 20M, 1G (at first: 20M)")
	c.Flags().DurationVar(&every, "every", 0, "`TIME` between passes: 336h; 0: only when asked (at first: 336h)")
	return c
}

func (a *app) scrubStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the scrubs of all bricks have verified and found",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.showStatus(c, func(s *control.Status) any { return s.Bricks },
				func(w io.Writer, s *control.Status) error { return writeScrubs(w, s.Bricks) })
		},
	}
}

func writeScrubs(w io.Writer, bs []control.Brick) error {
	t := newTable(w, "BRICK", "NODE", "STATE", "LAST", "NEXT", "VERIFIED", "DAMAGED", "REPAIRED")
	for _, b := range bs {
		s := b.Scrub
		if s == nil {
			t.row(b.ID.Short(), b.Node, b.State, "-", "-", "-", "-", "-")
			continue
		}
		state := "waits"
		if s.Running {
			state = "running"
		}
		t.row(b.ID.Short(), b.Node, state, timeText(s.LastUnixSeconds), timeText(s.NextUnixSeconds), sizeText(s.VerifiedBytes),
			fmt.Sprint(s.Damaged), fmt.Sprint(s.Repaired))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, b := range bs {
		if b.Scrub == nil {
			continue
		}
		for _, name := range b.Scrub.Lost {
			if _, err := fmt.Fprintf(w, "\nnot repaired on brick %s: %s\n", b.ID.Short(), oneLine(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func timeText(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04")
}
