package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) volumeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "volume",
		Short: "Create, list, show, resize, attach and delete volumes",
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	c.AddCommand(a.volumeCreateCmd(), a.volumeListCmd(), a.volumeShowCmd(), a.volumeResizeCmd(),
		a.volumeAttachCmd(), a.volumeDeleteCmd(), a.snapshotCmd(), a.volumeExplainCmd(), a.volumeRecoverCmd(),
		a.exportCmd("export", "Show or set who may use a volume over iSCSI", "NAME"))
	return c
}

func (a *app) volumeListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the volumes of the pool",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				vs, err := d.Volumes(ctx)
				if err != nil {
					return err
				}
				return a.show(vs, func(w io.Writer) error { return writeVolumes(w, vs) })
			})
		},
	}
}

func (a *app) volumeShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show one volume",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showVolume(d.Volume(ctx, args[0]))
			})
		},
	}
}

// showVolume prints the volume that a request answered with.
func (a *app) showVolume(v *control.Volume, err error) error {
	if err != nil {
		return err
	}
	return a.show(v, func(w io.Writer) error { return writeVolume(w, v) })
}

func writeVolume(w io.Writer, v *control.Volume) error {
	rows := [][2]string{
		{"name", v.Name},
		{"id", v.ID.String()},
		{"size", fmt.Sprintf("%s (%d bytes)", sizeText(v.SizeBytes), v.SizeBytes)},
		{"used", sizeText(v.UsedBytes)},
		{"block size", fmt.Sprint(v.BlockSize)},
		{"write cache", orDash(v.WriteCache)},
		{"replicas", fmt.Sprintf("%d of %d", v.ReplicasPresent, v.ReplicasWanted)},
		{"health", v.HealthText()},
		{"holder", orDash(v.Holder)},
		{"clients", orDash(strings.Join(v.Clients, ", "))},
		{"epoch", fmt.Sprint(v.Epoch)},
		{"snapshots", snapshotsText(v)},
		{"log", sizeText(v.LogBytes)},
		{"checkpoint", checkpointText(v.CheckpointAgeSeconds)},
		{"created", time.Unix(v.CreatedUnixSeconds, 0).UTC().Format(time.RFC3339)},
	}
	for _, r := range rows {
		if _, err := fmt.Fprintf(w, "%-12s %s\n", r[0], printable(r[1])); err != nil {
			return err
		}
	}
	return nil
}

func checkpointText(ageSeconds float64) string {
	if ageSeconds < 0 {
		return "-"
	}
	return ageText(ageSeconds) + " ago"
}

// labelsText is "rack=r1,zone=a" in the order of the names.
func labelsText(labels map[string]string) string {
	var parts []string
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return orDash(strings.Join(parts, ","))
}
