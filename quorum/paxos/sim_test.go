package paxos_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/quorum/paxos/paxossim"
)

const simSeeds = 300

// TestSimulation runs seeds 1..simSeeds; GABION_SIM_SEED runs that one with a
// trace, GABION_SIM_SECONDS goes on with further seeds for so long.
func TestSimulation(t *testing.T) {
	if s := os.Getenv("GABION_SIM_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := paxossim.Run(seed, paxossim.Options{Trace: t.Logf}); err != nil {
			t.Fatal(err)
		}
		return
	}
	var total paxossim.Stats
	run := func(seed uint64) {
		stats, err := paxossim.Run(seed, paxossim.Options{})
		if err != nil {
			t.Fatalf("%v\nmake sim SEED=%d  (GABION_SIM_SEED=%d go test -run TestSimulation -v ./quorum/paxos)", err, seed, seed)
		}
		total.Add(stats)
	}
	seed := uint64(1)
	for ; seed <= simSeeds; seed++ {
		run(seed)
	}
	if s := os.Getenv("GABION_SIM_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Duration(n) * time.Second); time.Now().Before(end); seed++ {
			run(seed)
		}
	}
	t.Logf("%d seeds: %+v", seed-1, total)
	if total.Opened < simSeeds || total.Chosen < 10*simSeeds || total.Received == 0 || total.Checkpoints == 0 ||
		total.Installs == 0 || total.Joins == 0 || total.Replaces == 0 || total.Removes == 0 ||
		total.Witnesses == 0 || total.Retired == 0 || total.Revived == 0 || total.Wiped == 0 || total.PowerCuts == 0 || total.Renewed == 0 {
		t.Fatalf("the simulation did too little: %+v", total)
	}
}
