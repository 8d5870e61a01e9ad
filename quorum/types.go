package quorum

import (
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// The nouns of the core, under the names that other packages use.
type (
	Role       = paxos.Role
	Member     = paxos.Member
	Config     = paxos.Config
	Ballot     = paxos.Ballot
	EntryKind  = paxos.EntryKind
	Entry      = paxos.Entry
	Checkpoint = paxos.Checkpoint
)

const (
	Voter   = paxos.Voter
	Learner = paxos.Learner
	Witness = paxos.Witness

	EntryData       = paxos.EntryData
	EntryConfig     = paxos.EntryConfig
	EntryCheckpoint = paxos.EntryCheckpoint
	EntryOpen       = paxos.EntryOpen

	// BodyMax bounds one entry's body, in bytes.
	BodyMax = paxos.BodyMax
	// ValueMax bounds a checkpoint's value, in bytes.
	ValueMax = paxos.ValueMax
	// MembersMax bounds the members of one group.
	MembersMax = paxos.MembersMax
	// WindowBytesMax bounds the unanswered bytes sent to one member.
	WindowBytesMax = paxos.WindowBytesMax
	// FetchBytesMax bounds one answer with recovered bodies.
	FetchBytesMax = paxos.FetchBytesMax
	// GroupsMax bounds the groups on one brick.
	GroupsMax = 4096
)
