//go:build mutate

package dht

import (
	"os"
	"slices"
	"strings"
)

// mutations are the deliberate defects named in GABION_MUTATE (comma separated).
var mutations = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool { return slices.Contains(mutations, name) }

// The defects of a store, each found by a test (catchers).
func acceptUnverified() bool { return mutated("accept-unverified") } // bytes of a damaged copy are handed out
func majorityOfOne() bool    { return mutated("majority-of-one") }   // a put is durable on the first holder
func hedgeForEver() bool     { return mutated("hedge-unbounded") }   // second holders are asked without a limit
func waitForSlow() bool      { return mutated("wait-for-slow") }     // every holder is waited for, however slow
