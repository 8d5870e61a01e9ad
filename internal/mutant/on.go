//go:build mutate

package mutant

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

var chosen = named(os.Getenv(Env))

func named(list string) (names []string) {
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		if !slices.ContainsFunc(All, func(m Mutation) bool { return m.Name == name }) {
			panic(fmt.Sprintf("mutant: %s=%s: no mutation has this name", Env, name))
		}
		names = append(names, name)
	}
	return names
}

// On tells whether the defect is built in.
func On(name string) bool {
	for _, c := range chosen {
		if c == name {
			return true
		}
	}
	return false
}

// None tells that no defect is built in.
func None() bool { return len(chosen) == 0 }

// Set chooses other defects for the tests of this process that follow.
func Set(list string) { chosen = named(list) }
