package main

import (
	"context"
	"log/slog"

	"github.com/gabion-storage/gabion/internal/fault"
)

func runNode(_ context.Context, dir string, _ *nodeFlags, _ *slog.Logger) error {
	return fault.Newf(fault.Unavailable, "node run", dir, "this build has no node in it; use a release")
}
