//go:build !mutate

package paxos

// mutation is the defect to build in: none, in every real build. The compiler
// removes what depends on it.
const mutation = mutateNone
