package kouncil

import (
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// Self implements overlay.View.
func (k *Kouncil) Self() ident.NodeID { return k.self }

// TableVersion implements overlay.View.
func (k *Kouncil) TableVersion() uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.tableVersion
}

// Nodes implements overlay.View.
func (k *Kouncil) Nodes() []overlay.Node {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := make([]overlay.Node, len(k.nodes))
	for i, n := range k.nodes {
		out[i] = k.fill(n)
	}
	return out
}

// fill adds to a node of the table what listening tells; the caller holds mu.
func (k *Kouncil) fill(n overlay.Node) overlay.Node {
	if n.ID == k.self {
		n.State, n.LastHeard, n.Boot = overlay.Alive, 0, k.cfg.Boot
		return n
	}
	p := k.peers[n.ID]
	n.State, n.LastHeard = k.stateOf(p), k.age(p)
	if p != nil {
		n.RTT, n.Boot = p.rtt, p.boot
	}
	return n
}

func (k *Kouncil) age(p *peer) time.Duration {
	if p == nil || p.heard == never {
		return overlay.Never
	}
	return k.cfg.Clock() - p.heard
}

// Node implements overlay.View.
func (k *Kouncil) Node(id ident.NodeID) (overlay.Node, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	i, ok := slices.BinarySearchFunc(k.nodes, id, func(n overlay.Node, id ident.NodeID) int { return n.ID.Compare(id) })
	if !ok {
		return overlay.Node{}, false
	}
	return k.fill(k.nodes[i]), true
}

// State implements overlay.View.
func (k *Kouncil) State(id ident.NodeID) overlay.State {
	if id == k.self {
		return overlay.Alive
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.stateOf(k.peers[id])
}

// LaneCount implements overlay.View.
func (k *Kouncil) LaneCount() int {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return len(k.lanes)
}

// Lane implements overlay.View.
func (k *Kouncil) Lane(i int) []overlay.BrickRef {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if i >= len(k.lanes) {
		return nil
	}
	return k.lanes[i]
}

// OnChange implements overlay.View.
func (k *Kouncil) OnChange(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed = append(slices.Clone(k.changed), f)
}

// Heard implements overlay.View.
func (k *Kouncil) Heard(id ident.NodeID) time.Duration {
	if id == k.self {
		return 0
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.age(k.peers[id])
}

// LeaseValid implements overlay.View.
func (k *Kouncil) LeaseValid(nodes []ident.NodeID) bool {
	_, ok := k.LeaseMark(nodes)
	return ok
}

// LeaseMark implements overlay.View.
func (k *Kouncil) LeaseMark(nodes []ident.NodeID) (mark uint64, valid bool) {
	now := k.cfg.Clock()
	fresh := 0
	lease := k.cfg.LeaseDuration
	if mutant.On("lease-of-one-ping") {
		lease = k.cfg.PingInterval * 3 / 2
	}
	k.mu.RLock()
	for _, id := range nodes {
		if id == k.self {
			fresh++
			continue
		}
		p := k.peers[id]
		if p == nil {
			continue
		}
		mark += p.gaps
		if p.ponged != never && now-p.ponged < lease {
			fresh++
		}
	}
	k.mu.RUnlock()
	return mark, fresh*2 > len(nodes)
}

// HolderMayLive is what acceptors ask before they promise against a holder: it
// is true while the holder may trust a lease that this node gave it. A node
// that has just started assumes that everybody spoke at that moment. Of this
// node it is false: an earlier process of it is dead.
func (k *Kouncil) HolderMayLive(id ident.NodeID) bool {
	if id == k.self {
		return false
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	last := k.start
	if mutant.On("fresh-start-lets-in") {
		last = never
	}
	if p := k.peers[id]; mutant.On("holder-for-ever") && (p == nil || p.heard == never) {
		return true
	}
	if p := k.peers[id]; p != nil && p.heard > last {
		last = p.heard
	}
	return k.cfg.Clock()-last < k.cfg.LeaseDuration+k.cfg.LeaseMargin
}

// Isolated tells whether more than a third of the nodes vanished within
// IsolationWindow of each other: then this node is rather the one that is cut
// off, and moves nothing. Nodes that were never heard vanished when this node
// started.
func (k *Kouncil) Isolated() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var lost []time.Duration // when each silent node was heard last
	for _, n := range k.nodes {
		if p := k.peers[n.ID]; n.ID != k.self && k.stateOf(p) != overlay.Alive {
			last := k.start
			if p != nil {
				last = max(last, p.heard)
			}
			lost = append(lost, last)
		}
	}
	slices.Sort(lost)
	first := 0
	for i := range lost {
		for lost[i]-lost[first] > IsolationWindow {
			first++
		}
		if (i-first+1)*3 > len(k.nodes) {
			return true
		}
	}
	return false
}
