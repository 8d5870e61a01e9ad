package paxos

// mutationID names a known defect that the simulation must find: the test of
// the test.
type mutationID uint8

const (
	mutateNone mutationID = iota
	mutateIgnoreBallot
	mutateAckAtOne
	mutateForgetPromise
	mutateSkipSync
	mutateCarryStale
	mutateCountLearner
	mutateRemovedVotes
	mutateTwoChanges
	mutateWitnessQuorum
	mutateWitnessSource
	mutateReuseBallot
	mutateForgetTomb
	mutateRetireLate
	mutateCarrySlot
	mutateOneCopy
	mutationCount
)

var mutationNames = [mutationCount]string{"", "ignore-ballot", "ack-at-one", "forget-promise",
	"skip-sync", "carry-stale", "count-learner", "removed-votes", "two-changes", "witness-quorum",
	"witness-source", "reuse-ballot", "forget-tomb", "retire-late", "carry-slot", "one-copy"}

// MutationNames lists the defects that a build with the tag mutate can have.
func MutationNames() []string { return append([]string(nil), mutationNames[1:]...) }

// MutatedTwoChanges tells the simulation that a second change may be tried
// while one waits.
func MutatedTwoChanges() bool { return mutation == mutateTwoChanges }
