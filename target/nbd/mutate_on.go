//go:build mutate

package nbd

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have. A test that still passes with one of them proves nothing.
var mutations = []string{
	"lose-fua",       // WRITE forgets FUA
	"shift-hole",     // a hole inside an answer is a block too far
	"ignore-one",     // REQ_ONE is not heeded
	"vague-error",    // a damaged READ does not say where
	"stale-contexts", // contexts of one export serve another
	"keep-style",     // STARTTLS forgets nothing
	"early-words",    // what came in plain text counts after STARTTLS
	"talkative",      // LIST is answered before TLS
	"write-anyway",   // a client that may read writes
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("nbd: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
