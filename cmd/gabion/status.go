package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show nodes, bricks and volumes, and what is wrong with them",
		Long: `Shows the pool as the local node sees it: nodes, bricks, volumes, and the nodes
that did not answer. HEALTH of a volume is ok, degraded (fewer copies in reach
than wanted: "degraded: 1 of 3"), unavailable (no majority: I/O waits) or
unknown (the node that has it did not answer).`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.showStatus(c, func(s *control.Status) any { return s }, writeStatus)
		},
	}
}

func writeStatus(w io.Writer, s *control.Status) error {
	if err := writePool(w, s); err != nil {
		return err
	}
	if len(s.Volumes) == 0 {
		_, err := fmt.Fprintln(w, "\nno volumes; make one with 'gabion volume create NAME --size SIZE'")
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeVolumes(w, s.Volumes)
}

// writePool prints a line for the pool and a table each of nodes, bricks and
// unreachable nodes.
func writePool(w io.Writer, s *control.Status) error {
	if _, err := fmt.Fprintf(w, "pool %s, leader %s\n\n", poolName(s.Pool), orDash(s.Pool.Leader)); err != nil {
		return err
	}
	t := newTable(w, "NODE", "STATE", "ADDRESS", "NBD", "ISCSI", "HTTP", "FREE", "LABELS", "VERSION")
	for _, n := range s.Nodes {
		t.row(n.Name, nodeState(n), orDash(n.Addr), orDash(n.NBD), orDash(n.ISCSI), orDash(n.HTTP), sizeText(n.FreeBytes),
			labelsText(n.Labels), orDash(n.Version))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(s.Bricks) > 0 {
		t = newTable(w, "", "BRICK", "NODE", "STATE", "USED", "FREE", "TOTAL", "JOURNAL", "SCRUB", "PATH")
		for _, b := range s.Bricks {
			t.row(b.ID.Short(), b.Node, b.State, sizeText(b.UsedBytes), sizeText(b.FreeBytes), sizeText(b.TotalBytes),
				sizeText(b.JournalBytes), scrubText(b.Scrub), b.Path)
		}
		if err := t.flush(); err != nil {
			return err
		}
		if err := writeAside(w, s.Bricks); err != nil {
			return err
		}
	}
	if len(s.Unreachable) > 0 {
		t = newTable(w, "", "UNREACHABLE", "ERROR")
		for _, u := range s.Unreachable {
			t.row(u.Node, oneLine(u.Error))
		}
		return t.flush()
	}
	return nil
}

// nodeState is what the node does, and where it stands if it is leaving.
func nodeState(n control.Node) string {
	s := n.State
	if n.Witness {
		s += ", witness"
	}
	switch {
	case n.SafeToRemove:
		s += ", " + n.Standing + ": safe to remove"
	case n.Standing != "":
		s += ", " + n.Standing
	}
	return s
}

func writeVolumes(w io.Writer, vs []control.Volume) error {
	t := newTable(w, "VOLUME", "SIZE", "USED", "HEALTH", "HOLDER", "CLIENTS", "SNAPSHOTS", "LOG", "CHECKPOINT")
	for _, v := range vs {
		t.row(v.Name, sizeText(v.SizeBytes), sizeText(v.UsedBytes), v.HealthText(), orDash(v.Holder),
			fmt.Sprint(len(v.Clients)), snapshotsText(&v), sizeText(v.LogBytes), ageText(v.CheckpointAgeSeconds))
	}
	return t.flush()
}

func poolName(p control.Pool) string {
	if p.Name == "" {
		return p.ID.Short()
	}
	return p.Name + " (" + p.ID.Short() + ")"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// table aligns columns. Lines carry no trailing blanks. A first heading of ""
// puts an empty line before the table.
type table struct {
	w   io.Writer
	buf strings.Builder
	tw  *tabwriter.Writer
}

func newTable(w io.Writer, headings ...string) *table {
	t := &table{w: w}
	if headings[0] == "" {
		t.buf.WriteByte('\n')
		headings = headings[1:]
	}
	t.tw = tabwriter.NewWriter(&t.buf, 0, 0, 2, ' ', 0)
	t.row(headings...)
	return t
}

// row writes into memory, which cannot fail.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = printable(c)
	}
	_, _ = fmt.Fprintln(t.tw, strings.Join(cells, "\t"))
}

func (t *table) flush() error {
	_ = t.tw.Flush() // into memory
	_, err := io.WriteString(t.w, t.buf.String())
	return err
}

// printable keeps control characters of names that came from elsewhere off the
// terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
