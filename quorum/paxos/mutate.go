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
	mutationCount
)

var mutationNames = [mutationCount]string{"", "ignore-ballot", "ack-at-one", "forget-promise",
	"skip-sync", "carry-stale", "count-learner"}

// MutationNames lists the defects that a build with the tag mutate can have.
func MutationNames() []string { return append([]string(nil), mutationNames[1:]...) }
