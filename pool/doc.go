// Package pool is the state of the pool: which nodes and bricks there are,
// which bricks hold which lane, which volumes exist and which were deleted. It
// is the state machine of one mutable block, the pool block.
//
// State, Command and Apply are pure and deterministic: the same commands give
// the same state on every node. Pool is the shell around them. One node, the
// leader, holds the pool block and proposes commands; every node can submit one
// and keeps a copy of the newest chosen state, in memory and in a file, so that a
// node started alone still knows its peers. Nothing here is on the path of a
// read or a write, and an idle pool sends nothing.
package pool
