// Package quorum is gabion's mutable block: a small replicated log (a group)
// under its own multi-Paxos quorum, and the state its owner checkpoints into it.
//
// Two halves meet over internal/link. Acceptors is the members' side, one for
// each node: it keeps the logs of all groups in the journals of the node's
// bricks and promises in their stable stores. Proposer is the holder's side, one for
// each open group: it holds the highest ballot, is the only one that proposes,
// and keeps the log's tail in memory until a checkpoint lets it go.
//
// Members answer with two watermarks. An entry is received when its journal
// record is in the page cache and survives the death of the process; durable
// when it was synced and survives a power cut. Only durable counts for Paxos: an
// entry is chosen once a majority of voters has it durable. A prepare makes the
// journal durable before it answers, so that the next holder learns, and
// chooses again, everything that was received, and nothing that it did not
// learn ever comes back.
//
// The pure state machines are in package paxos; the rest of this package
// persists, then sends, then reports.
package quorum
