package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pitfalls are the ways in which block stores of this kind have lost data or stopped,
// and the tests that stand for each here.
var pitfalls = map[string]string{
	// of replicated block devices
	"torn records and torn maps":                            "TestPitfallTornWrite TestTornTailCut TestTornMiddleRefused TestPowerCuts TestCrashTearsSectorsWhenAsked",
	"a voter that lost its log votes":                       "TestHazardForgottenPromiseOfADeadOpening TestHazardWipedDiskVotes TestHazardForgottenPromise TestPitfallFlippedBitInTheJournal TestPitfallFlippedBitInStableState",
	"a map that names extents with too few copies":          "TestPitfallMapNamesExtentsWithTooFewCopies TestWholePools",
	"a put that races with a sweep of the same content":     "TestEqualDataOfOtherAttemptsHasOtherAddresses TestSealWaitsForOldPuts",
	"stale late writes, trims and compactions":              "TestPitfallCompactionInTheWay TestPartialWriteKeepsWhatCameMeanwhile TestReadLooksAgainWhenItsExtentIsFreed TestVolumeMatchesFlatArray",
	"a block that flips back after a takeover":              "TestTakeoverChoosesWhatWasReceived TestHistoriesAreLinearizable TestReadsShowNoWriteThatCanBeLost",
	"a stale holder that goes on":                           "TestPitfallStaleHolderReads TestTakeoverFromAnIsolatedHolder TestFencedHolderCannotCommit TestOldEpochIsFenced TestReadsNeedALease TestLeaseIsInvalidInTheFirstInstructionAfterAStop",
	"requests of a dead connection that land late":          "TestResumeWaitsForTheLastOperation TestStragglersOfTheSameNodeDoNotLand",
	"a flush that covers one connection only":               "TestPitfallFlushCoversAllConnections TestFlushWaitsForAllBeforeIt",
	"a snapshot of what can still be lost":                  "TestPitfallSnapshotOfWhatCanBeLost TestSnapshotOfATailOnly TestSnapshotsMatchArrays TestSnapshotsUnderLoad",
	"a full disk that deletes cannot empty":                 "TestFullDisk TestTrimMakesRoomOnFullBricks TestHazardFullDiskBlocksTheGroup TestSnapshotIsDeletedOnFullBricks",
	"one sick member in the way of all":                     "TestPitfallSickMemberIsNotInTheWay TestHazardHungDiskIsOneVoteLess TestSlowDiskIsNotWaitedFor TestHedgedReadsAreFew",
	"garbage collection that forgets a root":                "TestExtentsOfTheLogSurviveTheirHolder TestNothingIsFreedBeforeTheCheckpointIsChosen TestDeadlistsKeepWhatSnapshotsHave",
	"a cold start that needs a person, or an order":         "TestColdStart TestRestartOfAllInAnyOrder",
	"a new member that counts too early":                    "TestChangeWaitsUntilItCanBeChosen TestReplaceUnderLoad TestConfigurationStopsWhatFollows TestGrowthWithACrashInTheMiddle",
	"compaction in the way of writes, or without end":       "TestPitfallCompactionInTheWay TestOverwritingStaysWithinItsSpace TestPacerYieldsToTheForeground",
	"allocation and strong hashes before the answer":        "TestPitfallAllocationBeforeTheAnswer TestRequestsAllocateNothing TestSteadyStateAllocatesNothing",
	"a lease shorter than what a busy machine stands still": "TestLeaseAndPatienceNeverContradict TestDelayedPingsLeaveAGap TestFreshStartPromisesAndTrustsNothing",
	"bits that rot unseen":                                  "TestBitsFlipInEachKindOfFile TestPitfallFlippedBitInAnExtent TestPitfallFlippedBitInAMapPage TestPitfallFlippedBitInTheIndex TestPitfallLyingDisk TestScrubFindsRotAnywhere TestDamagedDirectory",
	"repair that keeps a surplus":                           "TestStatusWhileLanesMove TestWholePools",
	// of quorums for each block
	"waiting for all instead of a majority":            "TestPitfallSickMemberIsNotInTheWay TestPutDoesNotHangWithTheLocalDisk TestRequestsEndWithoutAnyNode",
	"no sync anywhere":                                 "TestPowerCut TestPowerCutSeesSkippedFsync TestDurableSurvivesAPowerCutOfEveryNode",
	"acknowledging with one copy":                      "TestHazardAcknowledgeWithOneCopy TestHazardOneCopyAndAWitness TestPutSurvivesMinorityDown",
	"two names born apart":                             "TestHazardSplitBirth TestBirthIsIdempotentAndDropIsForEver",
	"a ghost write":                                    "TestHazardGhostWrite TestGhostIsKnownByAnOlderCut",
	"shrinking and growing again":                      "TestHazardShrinkThenGrow TestHazardRemovedMemberVotes TestHazardLateWordToLeave",
	"a lost quorum without a way out":                  "TestHazardLossOfQuorumIsNotTheEnd TestForcedConfigurationOutlivesItsRivals",
	"maintenance by all at once":                       "TestHazardDuellingMaintenance TestDuellingOpenersEnd",
	"absence taken for deletion, deletion for absence": "TestPitfallAbsentNodeResurrectsNothing TestTombstoneGoesWhenAllNodesSwept TestLostNodesHoldNoTombstones TestEviction",
	"bookkeeping by block":                             "TestFewFilesOpen TestIdlePool TestTableMemory",
	"strangers in the pool":                            "TestHandshakeRefusesStrangers TestBannedNodesAreCutOff TestVerifyRefusesForeignCertificates",
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
	for pitfall, tests := range pitfalls {
		for _, name := range strings.Fields(tests) {
			if !have[name] {
				t.Errorf("%s: there is no %s", pitfall, name)
			}
		}
	}
}
