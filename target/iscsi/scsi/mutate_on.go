//go:build mutate

package scsi

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects that a build with the tag mutate can
// have. A test that still passes with one of them proves nothing.
var mutations = []string{
	"compare-not-atomic",     // a write may come between the halves of COMPARE AND WRITE
	"exclusive-access-reads", // exclusive access lets others read
	"preempt-without-drain",  // PREEMPT ends before writes that it fences off
	"sync-nothing",           // SYNCHRONIZE CACHE does not flush
	"attention-lost",         // a unit attention replaces the one before
}

// chosen are those named in GABION_MUTATE (comma separated). A name of another
// package's defect is none here.
var chosen = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	if !slices.Contains(mutations, name) {
		panic("scsi: no mutation is called " + name)
	}
	return slices.Contains(chosen, name)
}
