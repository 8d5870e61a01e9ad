package node

import (
	"testing"
	"testing/synctest"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// Whoever forced a volume on died before the pool knew. It is asked for again: what was forced
// is recorded, once, and nothing is forced anew.
func TestForcedRecoveryIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := alone(t, brick.NewMemStable())
		d := pool.Volume{ID: ident.NewVolume(), Name: "v", Size: 1 << 20, BlockSize: 4096, Replicas: 1, WriteCache: "quorum", Created: 1}
		if err := c.Birth(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		d, _ = c.Pool.State().Volume(d.ID)
		const forced = 7 << 32
		found := func(versions ...uint64) (out []quorum.Survivor) {
			for _, v := range versions {
				m := quorum.Member{Node: ident.NodeID{1}}
				out = append(out, quorum.Survivor{Member: m, Config: quorum.Config{Version: v, Members: []quorum.Member{m}}})
			}
			return out
		}
		finish := func(want bool, versions ...uint64) {
			t.Helper()
			done, err := c.FinishForced(t.Context(), d, found(versions...))
			if err != nil || done != want {
				t.Fatalf("versions %d found: finished %v, %v", versions, done, err)
			}
			d, _ = c.Pool.State().Volume(d.ID)
		}
		usual := d.VotersVersion
		finish(false, usual, usual+3)
		if d.VotersVersion != usual {
			t.Fatalf("version %d was recorded, nobody forced anything", d.VotersVersion)
		}
		finish(true, usual, forced, forced-(1<<32))
		if d.VotersVersion != forced {
			t.Fatalf("version %#x is recorded, %#x was forced", d.VotersVersion, uint64(forced))
		}
		finish(false, usual, forced+2)
	})
}
