package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) volumeCreateCmd() *cobra.Command {
	var q control.CreateVolume
	var size string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume",
		Long: `Creates a thin volume: it occupies what is written to it. SIZE is a number of
bytes or a number with K, M, G, T or P (powers of 1024): 10G, 512M, 1T.

With fewer nodes than replicas the volume works at once and is degraded
("degraded: 1 of 3"); copies are completed when nodes join.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if q.Replicas < 1 {
				return usagef("--replicas is %d; it must be at least 1", q.Replicas)
			}
			var err error
			if q.SizeBytes, err = sizeFlag(size); err != nil {
				return err
			}
			q.Name = args[0]
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showVolume(d.CreateVolume(ctx, q))
			})
		},
	}
	c.Flags().StringVar(&size, "size", "", "`SIZE` of the volume: 10G (required)")
	c.Flags().IntVar(&q.Replicas, "replicas", 3, "`N` copies to keep, on as many nodes")
	c.Flags().StringVar(&q.WriteCache, "write-cache", "quorum",
		"`WHEN` a plain write is answered: quorum (a majority has it in memory), none (a majority has it on disk), "+
			"writer (at once)")
	c.Flags().IntVar(&q.BlockSize, "block-size", 512, "logical block size in `BYTES`: 512 or 4096")
	return c
}

// sizeFlag reads --size, which has no default.
func sizeFlag(size string) (int64, error) {
	if size == "" {
		return 0, usagef("--size is missing")
	}
	n, err := parseSize(size)
	if err != nil {
		return 0, usagef("--size: %v", err)
	}
	return n, nil
}

func (a *app) volumeResizeCmd() *cobra.Command {
	var size string
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Grow a volume",
		Long: `Grows a volume to SIZE. A volume cannot shrink. Clients see the new size when
they connect again; file systems are grown by their own tools.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := sizeFlag(size)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showVolume(d.ResizeVolume(ctx, args[0], n))
			})
		},
	}
	c.Flags().StringVar(&size, "size", "", "new `SIZE` of the volume: 20G (required)")
	return c
}

func (a *app) volumeAttachCmd() *cobra.Command {
	var takeover bool
	c := &cobra.Command{
		Use:   "attach NAME",
		Short: "Attach a volume to the local node before a client asks for it",
		Long: `Makes the local node the holder of a volume. A client that connects does the
same; this command is for moving a volume. While another node has it in use,
attaching fails and names that node; --takeover fences it: its clients get
errors from then on and nothing they write arrives any more.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showVolume(d.AttachVolume(ctx, args[0], takeover))
			})
		},
	}
	c.Flags().BoolVar(&takeover, "takeover", false, "fence the node that has the volume in use")
	return c
}

func (a *app) volumeDeleteCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a volume and its data",
		Long: `Deletes a volume and all its data, which cannot be undone. Asks for the name
again on standard input unless --yes is given.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			name := args[0]
			if !yes {
				if err := a.confirm(name); err != nil {
					return err
				}
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.DeleteVolume(ctx, name); err != nil {
					return err
				}
				facts := struct {
					Deleted string `json:"deleted"`
				}{name}
				return a.show(facts, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "volume %s is deleted\n", printable(name))
					return err
				})
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// confirmLineMax bounds what is read as the answer to a question, in bytes.
const confirmLineMax = 4096

// confirm demands the name of what will be destroyed.
func (a *app) confirm(name string) error {
	fmt.Fprintf(a.err, "This destroys all data of volume %s. Type its name to go on:\n", printable(name))
	line, err := bufio.NewReader(io.LimitReader(a.in, confirmLineMax)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("volume delete %s: no answer: %w", name, err)
	}
	if strings.TrimRight(line, "\r\n") != name {
		return fmt.Errorf("volume delete %s: the answer was not its name, nothing was deleted; "+
			"repeat, or give --yes", name)
	}
	return nil
}
