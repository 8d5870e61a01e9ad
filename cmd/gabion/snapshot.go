package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) snapshotCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "snapshot",
		Short: "Create, list and delete snapshots of a volume",
		Long: `A snapshot is what a volume held at one time. It costs nothing when it is made,
keeps the space of what is overwritten later, and is read by opening the export
VOLUME@SNAPSHOT.`,
		Args: cobra.ArbitraryArgs,
		RunE: group,
	}
	c.AddCommand(a.snapshotCreateCmd(), a.snapshotListCmd(), a.snapshotDeleteCmd())
	return c
}

func (a *app) snapshotCreateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "create VOLUME NAME",
		Short: "Create a snapshot",
		Long: `Creates a snapshot of a volume, in use or not. Every write that was answered
before is in it, and of later ones none or a first part, as after a power cut:
a database or file system on it recovers as from one. A volume has at most 64.

There is no snapshot of several volumes at one moment: what must be consistent
with each other belongs on one volume.`,
		Args: exactly("VOLUME", "NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				s, err := d.CreateSnapshot(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return a.show(s, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "snapshot %s@%s is made\n", printable(s.Volume), printable(s.Name))
					return err
				})
			})
		},
	}
}

func (a *app) snapshotListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list VOLUME",
		Short: "List the snapshots of a volume",
		Long: `Lists the snapshots of a volume, oldest first. OWN is about what deleting this
one alone would give back; what it shares with its neighbours does not count.`,
		Args: exactly("VOLUME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				list, err := d.Snapshots(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(list, func(w io.Writer) error { return writeSnapshots(w, list) })
			})
		},
	}
}

func (a *app) snapshotDeleteCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "delete VOLUME NAME",
		Short: "Delete a snapshot",
		Long: `Deletes a snapshot and gives back the space that only it kept. Clients that read
it are cut off.`,
		Args: exactly("VOLUME", "NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				if err := d.DeleteSnapshot(ctx, args[0], args[1]); err != nil {
					return err
				}
				facts := struct {
					Deleted string `json:"deleted"`
				}{args[0] + "@" + args[1]}
				return a.show(facts, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "snapshot %s is deleted\n", printable(facts.Deleted))
					return err
				})
			})
		},
	}
}

func writeSnapshots(w io.Writer, list []control.Snapshot) error {
	t := newTable(w, "SNAPSHOT", "SIZE", "OWN", "CREATED")
	for _, s := range list {
		own := "-"
		if s.OwnBytes >= 0 {
			own = sizeText(s.OwnBytes)
		}
		t.row(s.Name, sizeText(s.SizeBytes), own, time.Unix(s.CreatedUnixSeconds, 0).UTC().Format(time.RFC3339))
	}
	return t.flush()
}

// snapshotsText is the count of a volume's snapshots and what they keep.
func snapshotsText(v *control.Volume) string {
	if v.Snapshots == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%s)", v.Snapshots, sizeText(v.SnapshotBytes))
}
