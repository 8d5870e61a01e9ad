package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) poolSetCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "set [KEY=VALUE ...]",
		Short: "Show or change how the pool heals itself",
		Long: `Without arguments shows the settings; with arguments changes them.

  evict-after=10m    how long a node is down before what it held is made anew
                     elsewhere; never for only on an operator's word
  repair=on          off pauses the copying of data until it is on again
  repair-rate=100M   most bytes per second that each holder copies; auto for as
                     many as foreground latency allows`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			var q control.PolicyChange
			for _, arg := range args {
				if err := policyArg(&q, arg); err != nil {
					return err
				}
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				p, err := d.Policy(ctx)
				if len(args) > 0 {
					p, err = d.SetPolicy(ctx, q)
				}
				if err != nil {
					return err
				}
				return a.show(p, func(w io.Writer) error { return writePolicy(w, p) })
			})
		},
	}
}

func policyArg(q *control.PolicyChange, arg string) error {
	key, value, ok := strings.Cut(arg, "=")
	if !ok {
		return usagef("%q is not KEY=VALUE", arg)
	}
	switch key {
	case "evict-after":
		seconds := int64(-1)
		if value != "never" {
			d, err := time.ParseDuration(value)
			if err != nil || d <= 0 {
				return usagef("evict-after is %q; it must be a time such as 10m, or never", value)
			}
			seconds = int64(d / time.Second)
		}
		q.EvictAfterSeconds = &seconds
	case "repair":
		paused := value == "off"
		if !paused && value != "on" {
			return usagef("repair is %q; it must be on or off", value)
		}
		q.RepairPaused = &paused
	case "repair-rate":
		var rate int64
		if value != "auto" {
			var err error
			if rate, err = parseSize(value); err != nil {
				return usagef("repair-rate: %v, or auto", err)
			}
		}
		q.RepairBytesPerSecond = &rate
	default:
		return usagef("there is no setting %q; there are: evict-after, repair, repair-rate", key)
	}
	return nil
}

func writePolicy(w io.Writer, p *control.Policy) error {
	evict, repair, rate := "never", "on", "auto"
	if p.EvictAfterSeconds >= 0 {
		evict = (time.Duration(p.EvictAfterSeconds) * time.Second).String()
	}
	if p.RepairPaused {
		repair = "off"
	}
	if p.RepairBytesPerSecond > 0 {
		rate = sizeText(p.RepairBytesPerSecond)
	}
	_, err := fmt.Fprintf(w, "evict-after=%s\nrepair=%s\nrepair-rate=%s\n", evict, repair, rate)
	return err
}
