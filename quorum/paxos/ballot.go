package paxos

import (
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// NextBallot is what a node claims a group with: above the highest ballot it has
// heard of, and never one that it, or an earlier process of it, has used. boot
// counts the processes; used is the highest epoch that this one has used for the
// group.
func NextBallot(highest Ballot, used uint64, node ident.NodeID, boot uint64) Ballot {
	if mutant.On("reuse-ballot") && highest.Node == node && highest.Epoch > used {
		return highest
	}
	return Ballot{Epoch: max(highest.Epoch, used) + 1, Node: node, Boot: boot}
}
