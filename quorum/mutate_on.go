//go:build mutate

package quorum

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have, beside those of package paxos.
var mutations = []string{
	"below-target",    // Remove does not count who remains
	"earlier-life",    // journal records of an earlier life are read
	"own-disk-inline", // the holder writes its own copy itself
	"stay-forever",    // a member that was not told to leave never asks
	"swap-early",      // a configuration is proposed before its members have caught up
	"timid-force",     // a forced configuration is only one version ahead
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("quorum: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
