package quorum

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
)

var errSoon = fault.New(fault.Internal, "quorum", "", errors.New("under construction"))

type AcceptorsConfig struct {
	Transport link.Transport
	// HolderMayLive tells whether a node was heard from within its lease: a
	// prepare that is not forced is refused (Busy) while the node that holds
	// the promise may live. nil: never.
	HolderMayLive func(ident.NodeID) bool
	Log           *slog.Logger
}

// Acceptors answers for all groups on this node's bricks.
type Acceptors struct{}

// NewAcceptors registers the message handlers (0x20-0x3f) on the transport,
// before its Start.
func NewAcceptors(cfg AcceptorsConfig) *Acceptors { return &Acceptors{} }

// AddBrick replays j and takes up the groups found in s. Everything replayed is
// durable on return. Corrupt: the journal lacks a slot of some group, or a record does
// not decode.
func (a *Acceptors) AddBrick(id ident.BrickID, j Journal, s Stable) error { return errSoon }

// Create is the birth of a group at this node, on the brick that cfg names for
// it; durable on return. Idempotent for an identical birth. Exists: another
// birth has that id. Conflict: the group was dropped. NotFound: cfg names no
// brick of this node. Invalid, NoSpace (GroupsMax).
func (a *Acceptors) Create(group ident.GroupID, cfg Config, value []byte) error { return errSoon }

// GroupInfo describes one group at this node.
type GroupInfo struct {
	Group    ident.GroupID
	Brick    ident.BrickID
	Promised Ballot
	UpTo     uint64 // of the checkpoint
	First    uint64 // first slot kept; Last+1 if none
	Last     uint64
	LogBytes int64
	Config   Config // newest known
}

// Groups lists all groups, sorted by id.
func (a *Acceptors) Groups() []GroupInfo { return nil }

// Drop forgets a group on all bricks of this node and leaves a durable mark, so
// that neither Create nor a late message brings it back. Absent is success (the
// mark is left).
func (a *Acceptors) Drop(group ident.GroupID) error { return errSoon }

// Run does the background work until ctx ends: truncation after chosen
// checkpoints, copy-forward of entries that pin old journal segments, lazy sync.
func (a *Acceptors) Run(ctx context.Context) { <-ctx.Done() }

type ProposerConfig struct {
	Group     ident.GroupID
	Transport link.Transport
	Local     *Acceptors // required; routes answers, and is called directly where this node is a member
	Self      ident.NodeID
	Boot      uint64 // this process's boot counter; never used by an earlier process of this node
	// Seeds are the nodes asked first for the group's members.
	Seeds []ident.NodeID
	// Force passes over the lease check: the previous holder consented, or a
	// person said so.
	Force bool
	// OnProgress is told the majority watermarks whenever one of them rises:
	// every slot <= received survives the death of processes, every slot <= durable
	// is chosen. Both only grow; calls never overlap and run without locks, on
	// whatever goroutine made the progress. It may call back into the Proposer.
	OnProgress func(received, durable uint64)
	// OnFenced is called once, when a higher ballot is met: this holder is over.
	OnFenced func(by Ballot)
	// OnMembers is called when the members or one's state changed.
	OnMembers func()
	Log       *slog.Logger
}

// Recovered is what Open found, all of it chosen.
type Recovered struct {
	Checkpoint Checkpoint
	// Entries are the slots Checkpoint.UpTo+1 .. Next()-1, all kinds, in order;
	// the last is this holder's own EntryOpen. Bodies are read only.
	Entries []Entry
	Config  Config
}

// Proposer is the holder's side of one group. All methods may be called
// concurrently.
type Proposer struct{}

// Open takes the group over: it asks the members, claims a higher ballot,
// learns the tail, proposes it again and returns once all of it is durable on a
// majority. It retries until ctx ends. Kinds: Busy (the holder may be alive;
// Subject is its node id), NotFound (every seed answered and none has the group),
// Unavailable (no majority answered in time), Fenced (another opener won).
func Open(ctx context.Context, cfg ProposerConfig) (*Proposer, *Recovered, error) {
	return nil, nil, errSoon
}

// Propose gives body the next slot. It never waits and sends nothing: call Kick.
// The proposer keeps body, which must never be modified again. Slots that the
// proposer uses itself (config, open) leave gaps between the caller's. Kinds:
// Invalid (size, kind), Fenced, Unavailable (closed).
func (p *Proposer) Propose(kind EntryKind, body []byte) (slot uint64, err error) {
	return 0, errSoon
}

// Sync asks all members to make everything up to slot durable. It sends
// nothing: call Kick. Propose, Sync, Kick travels as one message.
func (p *Proposer) Sync(slot uint64) {}

// SetEagerSync makes members start to sync with every entry, as if Sync had
// followed each Propose. A later Sync of such a slot costs nothing.
func (p *Proposer) SetEagerSync(on bool) {}

// Kick pushes out what was proposed and asked. It does not wait for answers: it
// writes the local journal to the page cache and sends. If another
// goroutine is pushing, that one takes it along.
func (p *Proposer) Kick() {}

// Checkpoint proposes that the state after slot upTo is value, syncs and kicks. It is
// chosen when the durable watermark reaches slot; then members let go of the
// log up to upTo, and the proposer of the bodies. Invalid: upTo is not durable yet.
func (p *Proposer) Checkpoint(upTo uint64, value []byte) (slot uint64, err error) {
	return 0, errSoon
}

// Received and Durable are the majority watermarks.
func (p *Proposer) Received() uint64 { return 0 }
func (p *Proposer) Durable() uint64  { return 0 }

// Next is the slot that the next Propose gets.
func (p *Proposer) Next() uint64 { return 0 }

// TailBytes counts the bodies kept in memory since the last chosen checkpoint.
func (p *Proposer) TailBytes() int64 { return 0 }

// MemberStatus is the holder's view of one member.
type MemberStatus struct {
	Member    Member
	Connected bool
	Received  uint64
	Durable   uint64
	Lagging   bool          // its window is full, or it is being caught up
	State     string        // "ok", "down", "probing", "installing", "no group", "no brick", "full", "broken"
	Silent    time.Duration // since its last answer, while one is owed
}

// Status lists the members, learners included, in configuration order.
func (p *Proposer) Status() []MemberStatus { return nil }

// Join makes m a voter: feeds it as a learner until it has caught up, then has
// the new configuration chosen. One at a time (Busy). A member already in is
// success. Indeterminate: ctx ended after the configuration was proposed.
func (p *Proposer) Join(ctx context.Context, m Member) error { return errSoon }

// Members is the newest chosen configuration.
func (p *Proposer) Members() Config { return Config{} }

// Ballot is this holder's.
func (p *Proposer) Ballot() Ballot { return Ballot{} }

// Close stops the proposer. Nothing is released: the ballot stays the highest until
// another holder opens.
func (p *Proposer) Close() {}

// Holder asks who holds the highest promise of a group: of the seeds, and of the
// members they name. It returns the best of what answered, and NotFound or
// Unavailable if nothing did.
func Holder(ctx context.Context, t link.Transport, seeds []ident.NodeID, group ident.GroupID) (Ballot, Config, error) {
	return Ballot{}, Config{}, errSoon
}

// CreateOn is Create at another node (or this one, directly).
func CreateOn(ctx context.Context, t link.Transport, node ident.NodeID, group ident.GroupID, cfg Config, value []byte) error {
	return errSoon
}
