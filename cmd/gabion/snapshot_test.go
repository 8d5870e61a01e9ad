package main

import (
	"context"

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
