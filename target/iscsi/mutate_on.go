//go:build mutate

package iscsi

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have. A test that still passes with one of them proves nothing.
var mutations = []string{
	"reinstate-at-once", // a new session does not wait for what the old one had under way
	"window-open",       // commands outside of the window are carried out
	"any-sequence",      // Data-Out may come in any sequence
	"digest-blind",      // digests of data are not checked
	"memory-unbounded",  // commands are taken up without room for their data
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("iscsi: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
