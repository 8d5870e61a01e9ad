package lint

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// pitfalls are the ways in which block stores of this kind have lost data or stopped,
// and the tests that stand for each here, at least one of which has its name from it. A
// defect of package mutant shows that they see the pitfall; without is why there is none.
var pitfalls = []struct{ what, tests, without string }{
	// of replicated block devices
	{"torn records and torn maps", "TestPitfallTornMap TestPitfallTornWrite TestTornTailCut TestTornMiddleRefused TestPowerCuts TestCrashTearsSectorsWhenAsked", ""},
	{"a voter that lost its log votes", "TestHazardForgottenPromiseOfADeadOpening TestHazardWipedDiskVotes TestHazardForgottenPromise TestPitfallFlippedBitInTheJournal TestPitfallFlippedBitInStableState", ""},
	{"a map that names extents with too few copies", "TestPitfallMapNamesExtentsWithTooFewCopies TestWholePools", ""},
	{"a put that races with a sweep of the same content", "TestEqualDataOfOtherAttemptsHasOtherAddresses TestPitfallPutRacesWithASweep", ""},
	{"stale late writes, trims and compactions", "TestPitfallCompactionInTheWay TestPartialWriteKeepsWhatCameMeanwhile TestReadLooksAgainWhenItsExtentIsFreed TestVolumeMatchesFlatArray", ""},
	{"a block that flips back after a takeover", "TestPitfallBlockFlipsBackAfterATakeover TestHistoriesAreLinearizable TestReadsShowNoWriteThatCanBeLost", ""},
	{"a stale holder that goes on", "TestPitfallStaleHolderReads TestTakeoverFromAnIsolatedHolder TestFencedHolderCannotCommit TestOldEpochIsFenced TestReadsNeedALease TestLeaseIsInvalidInTheFirstInstructionAfterAStop", ""},
	{"requests of a dead connection that land late", "TestPitfallLateRequestsOfADeadConnection TestStragglersOfTheSameNodeDoNotLand", ""},
	{"a flush that covers one connection only", "TestPitfallFlushCoversAllConnections TestFlushWaitsForAllBeforeIt", ""},
	{"a snapshot of what can still be lost", "TestPitfallSnapshotOfWhatCanBeLost TestSnapshotOfATailOnly TestSnapshotsMatchArrays TestSnapshotsUnderLoad", ""},
	{"a group snapshot of several moments", "TestPitfallGroupSnapshotOfSeveralMoments", "there is no group snapshot: asking for one is refused"},
	{"a full disk that deletes cannot empty", "TestFullDisk TestTrimMakesRoomOnFullBricks TestHazardFullDiskBlocksTheGroup TestSnapshotIsDeletedOnFullBricks", ""},
	{"one sick member in the way of all", "TestPitfallSickMemberIsNotInTheWay TestHazardHungDiskIsOneVoteLess TestSlowDiskIsNotWaitedFor TestHedgedReadsAreFew", ""},
	{"garbage collection that forgets a root", "TestPitfallCollectionForgetsTheLog TestNothingIsFreedBeforeTheCheckpointIsChosen TestDeadlistsKeepWhatSnapshotsHave", ""},
	{"a cold start that needs a person, or an order", "TestColdStart TestPitfallColdStartInAnyOrder", ""},
	{"a new member that counts too early", "TestPitfallNewMemberCountsTooEarly TestReplaceUnderLoad TestConfigurationStopsWhatFollows TestGrowthWithACrashInTheMiddle", ""},
	{"compaction in the way of writes, or without end", "TestPitfallCompactionInTheWay TestOverwritingStaysWithinItsSpace TestPacerYieldsToTheForeground", ""},
	{"allocation and strong hashes before the answer", "TestPitfallAllocationBeforeTheAnswer TestRequestsAllocateNothing TestSteadyStateAllocatesNothing", ""},
	{"a lease shorter than what a busy machine stands still", "TestPitfallLeaseOnABusyMachine TestLeaseAndPatienceNeverContradict TestDelayedPingsLeaveAGap TestFreshStartPromisesAndTrustsNothing", ""},
	{"bits that rot unseen", "TestBitsFlipInEachKindOfFile TestPitfallFlippedBitInAnExtent TestPitfallFlippedBitInAMapPage TestPitfallFlippedBitInTheIndex TestPitfallLyingDisk TestScrubFindsRotAnywhere TestDamagedDirectory", ""},
	{"repair that keeps a surplus", "TestPitfallSurplusWhileLanesMove TestWholePools", ""},
	// of quorums for each block
	{"waiting for all instead of a majority", "TestPutsPassAHungDisk TestPitfallSickMemberIsNotInTheWay TestPutDoesNotHangWithTheLocalDisk TestRequestsEndWithoutAnyNode", ""},
	{"no sync anywhere", "TestPowerCuts TestPowerCut TestPowerCutSeesSkippedFsync TestHazardNoSyncAnywhere", ""},
	{"acknowledging with one copy", "TestHazardAcknowledgeWithOneCopy TestHazardOneCopyAndAWitness TestPutSurvivesMinorityDown", ""},
	{"two names born apart", "TestHazardSplitBirth TestBirthIsIdempotentAndDropIsForEver", ""},
	{"a ghost write", "TestHazardGhostWrite TestGhostIsKnownByAnOlderCut", ""},
	{"shrinking and growing again", "TestHazardShrinkThenGrow TestHazardRemovedMemberVotes TestHazardLateWordToLeave", ""},
	{"a lost quorum without a way out", "TestHazardLossOfQuorumIsNotTheEnd TestForcedConfigurationOutlivesItsRivals TestForcedRecoveryGoesOnFromItsSurvivor TestHazardWhatWasGivenUpComesBack TestHazardGivenUpCheckpointIsNotTakenForOurs", ""},
	{"maintenance by all at once", "TestHazardDuellingMaintenance TestDuellingOpenersEnd TestStrayPromiseOfALateMember TestStrayPromiseOfTheOwnMember", ""},
	{"absence taken for deletion, deletion for absence", "TestPitfallAbsentNodeResurrectsNothing TestTombstoneGoesWhenAllNodesSwept TestLostNodesHoldNoTombstones TestEviction", ""},
	{"bookkeeping by block", "TestFewFilesOpen TestIdlePool TestHazardBookkeepingByBlock", "what is measured is a bound: messages, files and bytes"},
	{"strangers in the pool", "TestHazardStrangersInThePool TestBannedNodesAreCutOff TestVerifyRefusesForeignCertificates", ""},
}

// TestEveryPitfallHasItsTest: none of the tests that stand for a known pitfall goes
// away unnoticed.
func TestEveryPitfallHasItsTest(t *testing.T) {
	decl := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
	have := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range decl.FindAllSubmatch(b, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pitfalls {
		named := false
		for _, name := range strings.Fields(p.tests) {
			if !have[name] {
				t.Errorf("%s: there is no %s", p.what, name)
			}
			named = named || strings.HasPrefix(name, "TestPitfall") || strings.HasPrefix(name, "TestHazard")
		}
		if !named {
			t.Errorf("%s: no test is called TestPitfall... or TestHazard... after it", p.what)
		}
		if n := len(defectsFor(p.tests)); (n == 0) != (p.without != "") {
			t.Errorf("%s: %d defects of package mutant must be found by its tests, and why there are none: %q", p.what, n, p.without)
		}
	}
}

// defectsFor lists the defects that one of the tests must find.
func defectsFor(tests string) (names []string) {
	for _, m := range mutant.All {
		if slices.ContainsFunc(m.Tests, func(at string) bool {
			return slices.Contains(strings.Fields(tests), at[strings.LastIndexByte(at, '.')+1:])
		}) {
			names = append(names, m.Name)
		}
	}
	return names
}

// TestPitfallsAreDocumented: docs/PITFALLS.md is the table. GABION_WRITE=1 writes it.
func TestPitfallsAreDocumented(t *testing.T) {
	const page = root + "/docs/PITFALLS.md"
	var want strings.Builder
	want.WriteString(`# Known pitfalls

The ways in which replicated block stores have lost data or stopped, and the tests that stand for each here. The defects are those of
[TESTING.md](TESTING.md): with any of them built in, one of the row's tests fails. This page is written by ` + "`GABION_WRITE=1 go test ./internal/lint`" + `.

| pitfall | tests | fails with |
|---|---|---|
`)
	for _, p := range pitfalls {
		with := strings.Join(defectsFor(p.tests), ", ")
		if p.without != "" {
			with = "(" + p.without + ")"
		}
		fmt.Fprintf(&want, "| %s | %s | %s |\n", p.what, strings.Join(strings.Fields(p.tests), ", "), with)
	}
	if old, err := os.ReadFile(page); err == nil && string(old) == want.String() {
		return
	}
	if os.Getenv("GABION_WRITE") == "" {
		t.Fatal("docs/PITFALLS.md is not the table of pitfalls: GABION_WRITE=1 go test ./internal/lint")
	}
	if err := os.WriteFile(page, []byte(want.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
