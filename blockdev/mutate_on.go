//go:build mutate

package blockdev

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have. A test that still passes with one of them proves nothing.
var mutations = []string{
	"ack-before-received",   // plain writes are answered at once
	"dirty-read",            // reads show writes that can still be lost
	"dirty-without-tail",    // what changed since a snapshot leaves out the log's tail
	"forget-tail",           // reconciliation takes extents that only the log names for garbage
	"free-before-commit",    // dead extents are deleted before the checkpoint is chosen
	"free-snapshot-block",   // what is overwritten is freed though a snapshot names it
	"lease-ignored",         // reads are answered without a lease
	"lose-zero",             // zeroing is not applied on replay
	"no-relief",             // a tail that does not fit is not folded in parts
	"reuse-extent-number",   // numbers of replayed extents are drawn again
	"skip-crc",              // wrong checksums are accepted
	"snapshot-without-tail", // a snapshot is made of the map before its tail was folded
	"spend-reserve",         // every extent may use what full bricks keep in reserve
	"stale-map",             // readers are not told that the map changed
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("blockdev: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
