// Package paxos is the pure core of gabion's mutable blocks: multi-Paxos over
// one contiguous log with a distinguished proposer. Messages and journal
// records go in, effects come out; there is no I/O, clock, goroutine or
// randomness in here. Package quorum is the shell around it, and sim_test.go
// drives the same code through seeded faults. DESIGN.md has the argument.
package paxos

import (
	"errors"
	"fmt"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// Named limits of one group.
const (
	// MembersMax bounds the members of one configuration.
	MembersMax = 9
	// BodyMax bounds one entry's body: 1 MiB of data and 4 KiB of its owner's
	// bookkeeping.
	BodyMax = 1<<20 + 4<<10
	// ValueMax bounds the value of a checkpoint.
	ValueMax = 64 << 10
	// RunsMax bounds the ballot runs of one log, and its cuts.
	RunsMax = 4096
	// WindowBytesMax bounds the bytes sent to one member and not yet answered.
	WindowBytesMax = 8 << 20
	// FetchBytesMax bounds the bodies in one answer to Fetch, except that one
	// entry always fits.
	FetchBytesMax = 1 << 20
)

// Role tells what a member does.
type Role uint8

const (
	// Voter counts towards majorities.
	Voter Role = iota
	// Learner is fed the log but never counted.
	Learner
	// Witness votes without keeping data: it has the places and ballots of all
	// entries, and the bodies of configurations and checkpoints alone.
	Witness
)

func (r Role) String() string {
	switch r {
	case Voter:
		return "voter"
	case Learner:
		return "learner"
	case Witness:
		return "witness"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Member is one copy of the log: a brick of a node. The brick is part of the
// identity: a wiped disk is another brick and never votes in the old one's name.
type Member struct {
	Node  ident.NodeID
	Brick ident.BrickID
	Role  Role
}

func (m Member) String() string {
	return fmt.Sprintf("%s/%s %v", m.Node.Short(), m.Brick.Short(), m.Role)
}

// Same tells whether m and o are one copy, whatever their roles.
func (m Member) Same(o Member) bool { return m.Node == o.Node && m.Brick == o.Brick }

// Config is the set of members from some slot on. Versions count up by one;
// the birth configuration is version 1.
type Config struct {
	Version uint64
	Members []Member // at most MembersMax; shared, read only
}

// Find returns the index of the member on the given brick, or -1.
func (c Config) Find(node ident.NodeID, brick ident.BrickID) int {
	for i, m := range c.Members {
		if m.Node == node && m.Brick == brick {
			return i
		}
	}
	return -1
}

// Voters counts the members that vote.
func (c Config) Voters() int {
	n := 0
	for _, m := range c.Members {
		if votes(m.Role) {
			n++
		}
	}
	return n
}

// Witnesses counts the members that vote without data.
func (c Config) Witnesses() int {
	n := 0
	for _, m := range c.Members {
		if m.Role == Witness {
			n++
		}
	}
	return n
}

// Equal tells whether two configurations are the same, order included.
func (c Config) Equal(o Config) bool {
	if c.Version != o.Version || len(c.Members) != len(o.Members) {
		return false
	}
	for i := range c.Members {
		if c.Members[i] != o.Members[i] {
			return false
		}
	}
	return true
}

func (c Config) String() string {
	s := fmt.Sprintf("%d:", c.Version)
	for _, m := range c.Members {
		s += " " + m.String()
	}
	return s
}

// Sound tells whether c may be in force: every majority has a member with data,
// so that witnesses never decide alone.
func (c Config) Sound() error {
	switch voters, witnesses := c.Voters(), c.Witnesses(); {
	case voters == 0:
		return errors.New("a configuration without a voter")
	case witnesses > voters/2 && !mutant.On("witness-quorum"):
		return fmt.Errorf("%d witnesses among %d voters could decide without data", witnesses, voters)
	}
	return nil
}

// follows tells whether next may be proposed after c: one member more, one less,
// or one in the place of another. A member does not change its role.
func (c Config) follows(next Config) error {
	if next.Version != c.Version+1 {
		return fmt.Errorf("configuration %d does not follow %d", next.Version, c.Version)
	}
	added, removed := 0, 0
	for _, m := range next.Members {
		switch i := c.Find(m.Node, m.Brick); {
		case i < 0:
			added++
		case c.Members[i].Role != m.Role:
			return fmt.Errorf("the %v on node %s cannot become a %v: it must leave first", c.Members[i].Role, m.Node.Short(), m.Role)
		}
	}
	for _, m := range c.Members {
		if next.Find(m.Node, m.Brick) < 0 {
			removed++
		}
	}
	if added > 1 || removed > 1 || added+removed == 0 {
		return fmt.Errorf("%d members join and %d leave at once", added, removed)
	}
	return next.Sound()
}

func votes(r Role) bool { return r == Voter || r == Witness }

// Ballot orders proposers. It is unique for each incarnation of a proposer:
// Boot is the node's boot counter, and one boot never uses an Epoch twice for
// one group. The zero ballot is below all others.
type Ballot struct {
	Epoch uint64
	Node  ident.NodeID
	Boot  uint64
}

// Compare orders ballots by epoch, then node, then boot.
func (b Ballot) Compare(o Ballot) int {
	switch {
	case b.Epoch != o.Epoch:
		return cmp(b.Epoch, o.Epoch)
	case b.Node != o.Node:
		return b.Node.Compare(o.Node)
	}
	return cmp(b.Boot, o.Boot)
}

func cmp(a, b uint64) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

// Less tells whether b is below o.
func (b Ballot) Less(o Ballot) bool { return b.Compare(o) < 0 }

// IsZero tells whether b is nobody's.
func (b Ballot) IsZero() bool { return b == Ballot{} }

func (b Ballot) String() string {
	return fmt.Sprintf("%d.%s.%d", b.Epoch, b.Node.Short(), b.Boot)
}

// EntryKind says who reads an entry.
type EntryKind uint8

const (
	// EntryData is the owner's: a volume's write, a pool command.
	EntryData EntryKind = iota
	// EntryConfig changes the members; its body is an encoded Config.
	EntryConfig
	// EntryCheckpoint lets the log up to a slot go; its body is an encoded
	// {UpTo, Value}.
	EntryCheckpoint
	// EntryOpen is empty. Every proposer's first own entry is one: it records
	// the opening of its ballot at a majority even when nothing was recovered.
	EntryOpen
	entryKindCount
)

func (k EntryKind) String() string {
	names := [...]string{"data", "config", "checkpoint", "open"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("entry kind %d", uint8(k))
}

// Entry is one slot of the log.
type Entry struct {
	Slot uint64 // from 1
	Kind EntryKind
	Body []byte // never modified once proposed
}

// Checkpoint is the state after slot UpTo: the owner's opaque value and the
// members at that point. UpTo 0 is the birth.
type Checkpoint struct {
	UpTo   uint64
	Value  []byte
	Config Config
}

// Run says that the slots From..To, both included, were accepted at Ballot.
type Run struct {
	From, To uint64
	Ballot   Ballot
}
