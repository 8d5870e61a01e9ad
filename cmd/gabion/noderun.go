package main

import (
	"context"
	"log/slog"

	"github.com/gabion-storage/gabion/internal/node"
)

// runNode runs a node in dir until ctx ends.
func runNode(ctx context.Context, dir string, f *nodeFlags, log *slog.Logger) error {
	return node.Run(ctx, node.Config{
		Dir:    dir,
		Listen: f.listen,
		NBD:    orOff(f.nbd),
		ISCSI:  orOff(f.iscsi),
		HTTP:   orOff(f.http),

		NBDSecurity: f.nbdSecurity,

		Name:    f.name,
		Bricks:  f.bricks,
		Zone:    f.zone,
		Witness: f.witness,
		Rack:    f.rack,
		Join:    f.join,
		Token:   f.token,
		Log:     log,
		Version: thisVersion().Version,
	})
}
