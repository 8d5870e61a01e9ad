//go:build mutate

package brick

import (
	"os"
	"strings"
)

// mutations are the deliberate defects named in GABION_MUTATE (comma
// separated). A rig that still passes with one of them proves nothing.
var mutations = strings.Split(os.Getenv("GABION_MUTATE"), ",")

func mutated(name string) bool {
	for _, m := range mutations {
		if m == name {
			return true
		}
	}
	return false
}

// skipFsync reports whether Journal.Sync and PutExtents claim durability
// without having synced ("skip-fsync").
func skipFsync() bool { return mutated("skip-fsync") }
