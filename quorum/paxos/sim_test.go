package paxos_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/quorum/paxos/paxossim"
)

const simSeeds = 150

// simCorpus are further seeds that are always run: those that found a bug when they
// were first met, or find a mutation that few others do. A change of the
// simulation makes other runs of them.
var simCorpus = []uint64{
	167, 1057, 1636, // count-learner, reuse-ballot, two-changes
	1440, 2474, 12662, 15961, // a copy forgot the group that a configuration waited for
	2136, 14000, // what a member had acknowledged counted after it had left
	5990,  // a witness stood in for a member while another was missing
	10377, // members of a configuration that was just being replaced spoke for it
	17490, // nobody asked who alone knew of a configuration
	12487, // watermarks that rose when a member went away
}

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
	for _, seed := range simCorpus {
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
	t.Logf("%d seeds: %+v", int(seed-1)+len(simCorpus), total)
	if total.Opened < simSeeds || total.Chosen < 10*simSeeds || total.Received == 0 || total.Checkpoints == 0 ||
		total.Installs == 0 || total.Joins == 0 || total.Replaces == 0 || total.Removes == 0 ||
		total.Witnesses == 0 || total.Retired == 0 || total.Revived == 0 || total.Wiped == 0 || total.PowerCuts == 0 || total.Renewed == 0 {
		t.Fatalf("the simulation did too little: %+v", total)
	}
}
