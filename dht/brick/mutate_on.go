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

// The other defects of a brick, each found by a test (catchers).
func acceptWrongSum() bool    { return mutated("stable-wrong-sum") }   // a stable value is not verified
func acceptWrongCRC() bool    { return mutated("frame-wrong-crc") }    // a frame is not verified
func indexBeforeData() bool   { return mutated("index-before-data") }  // the index is durable before the extents
func holeBeforeIndex() bool   { return mutated("hole-before-index") }  // a hole is punched before the deletion is durable
func punchWrongRange() bool   { return mutated("punch-wrong-range") }  // one block too far
func tornMiddle() bool        { return mutated("torn-middle") }        // damage in the middle is cut off as a torn tail
func putUnverified() bool     { return mutated("put-unverified") }     // bytes are not compared with their address
func scrubTrustsCache() bool  { return mutated("scrub-trusts-cache") } // a scrub reads the page cache, not the disk
func scrubSkipsJournal() bool { return mutated("scrub-skips-journal") }
