package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
)

func (p *fixedPool) Snapshots(_ context.Context, volume string) ([]control.Snapshot, error) {
	return []control.Snapshot{
		{Volume: volume, Name: "monday", SizeBytes: 10 << 30, CreatedUnixSeconds: 1_700_000_000, OwnBytes: 200 << 20},
		{Volume: volume, Name: "tuesday", SizeBytes: 10 << 30, CreatedUnixSeconds: 1_700_086_400, OwnBytes: -1},
	}, nil
}

func (p *fixedPool) CreateSnapshot(_ context.Context, volume, name string) (*control.Snapshot, error) {
	if name == "monday" {
		return nil, fault.Newf(fault.Exists, "snapshot create", volume, "it has a snapshot %q already; choose another name or delete it first", name)
	}
	return &control.Snapshot{Volume: volume, Name: name, SizeBytes: 10 << 30, CreatedUnixSeconds: 1_700_172_800}, nil
}

func (p *fixedPool) DeleteSnapshot(context.Context, string, string) error { return nil }

// TestPitfallGroupSnapshotOfSeveralMoments: snapshots of several volumes that are taken one
// after the other are not consistent with each other. So nobody who asks for a group gets
// that: the command line is refused before any node is asked, and the help says why.
func TestPitfallGroupSnapshotOfSeveralMoments(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		say  string
	}{
		{"volume snapshot create data wal monday", exitUsage, `unexpected argument "monday"`},
		{"volume snapshot create --group data wal", exitUsage, "unknown flag: --group"},
		{"volume snapshot create --help", exitOK, "no snapshot of several volumes at one moment"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), strings.Fields(c.args), nil, &out, &out); code != c.code || !strings.Contains(out.String(), c.say) {
			t.Errorf("gabion %s: exit code %d, %s", c.args, code, out.String())
		}
	}
}
