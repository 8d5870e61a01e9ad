//go:build mutate

package client

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have. A test that still passes with one of them proves nothing.
var mutations = []string{
	"forget-answered", // changes that were answered are not repeated
	"impatient",       // reads and flushes do not wait until changes are repeated
	"overlap",         // overlapping changes are under way together
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("client: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
