package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// typeStatus asks a node for its control.NodeStatus, in JSON.
const typeStatus link.Type = 0x5d

// statusTimeout bounds the wait for one node's part of a status.
const statusTimeout = 2 * time.Second

// LocalStatus implements control.Daemon.
func (n *Node) LocalStatus(context.Context) (*control.NodeStatus, error) {
	st := &control.NodeStatus{Node: n.describe(n.Self)}
	st.Bricks = n.describeBricks()
	for _, b := range st.Bricks {
		st.Node.FreeBytes += b.FreeBytes
	}
	for v, sessions := range n.Manager.Attached() {
		st.Volumes = append(st.Volumes, n.held(v, sessions))
	}
	return st, nil
}

// describe tells about a node of the pool as this node sees it.
func (n *Node) describe(id ident.NodeID) control.Node {
	out := control.Node{ID: id, Name: id.Short(), State: overlay.Down.String()}
	for _, r := range n.Pool.State().Nodes {
		if r.ID == id {
			out.Name, out.Addr, out.Labels = r.Name, r.Addr, maps.Clone(r.Labels)
			out.Witness = r.Witness
			out.ISCSI = r.Labels[labelISCSI]
			delete(out.Labels, labelISCSI)
		}
	}
	if v, ok := n.View.Node(id); ok {
		out.State, out.Boot = v.State.String(), v.Boot
	}
	if id == n.Self {
		out.State, out.Boot, out.Version = overlay.Alive.String(), n.boot, n.cfg.Version
		out.NBD, out.HTTP = n.run.NBD, n.run.HTTP
	}
	return out
}

// held describes a volume that this node holds.
func (n *Node) held(v *blockdev.Volume, sessions int) control.Volume {
	s := v.Status()
	out := control.Volume{
		ID: s.ID, Name: s.Name, SizeBytes: v.Size(), BlockSize: v.BlockSize(), UsedBytes: s.StoredBytes,
		ReplicasWanted: s.Replicas, ReplicasPresent: s.Present, Holder: n.name, Epoch: s.Epoch,
		LogBytes: s.TailBytes, CheckpointAgeSeconds: s.CheckpointAge.Seconds(),
		Clients: n.Manager.Clients(s.ID), Snapshots: s.Snapshots, SnapshotBytes: s.SnapshotBytes,
	}
	if d, ok := n.Pool.State().Volume(s.ID); ok {
		out.SizeBytes, out.WriteCache, out.CreatedUnixSeconds = d.Size, d.WriteCache, d.Created
	}
	setHealth(&out, s.Present, s.Replicas, s.Quorum)
	if !s.Sure && out.HealthDetail != "" {
		out.HealthDetail += " found so far"
	}
	if s.Repairing > 0 {
		r := &control.Repair{Extents: s.Repairing, Bytes: s.RepairBytes, BytesPerSecond: s.RepairRate, ETASeconds: -1, Paused: s.RepairPaused}
		left := "paused"
		if r.BytesPerSecond > 0 && !r.Paused {
			r.ETASeconds = float64(r.Bytes) / float64(r.BytesPerSecond)
			left = time.Duration(r.ETASeconds*float64(time.Second)).Round(time.Second).String() + " left"
		} else if !r.Paused {
			left = "just begun"
		}
		out.Repair = r
		if out.HealthDetail != "" {
			out.HealthDetail += ", "
		}
		out.HealthDetail += fmt.Sprintf("%d extents (%d MiB) to copy, %s", r.Extents, r.Bytes>>20, left)
	}
	return out
}

// setHealth puts the health in words.
func setHealth(v *control.Volume, present, wanted int, quorum bool) {
	switch {
	case !quorum:
		v.Health, v.HealthDetail = control.HealthUnavailable, fmt.Sprintf("%d of %d", present, wanted)
	case present < wanted:
		v.Health, v.HealthDetail = control.HealthDegraded, fmt.Sprintf("%d of %d", present, wanted)
	default:
		v.Health = control.HealthOK
	}
}

// unheld describes a volume that no node holds, from what is recorded and who
// is in reach.
func (n *Node) unheld(d pool.Volume) control.Volume {
	out := control.Volume{
		ID: d.ID, Name: d.Name, SizeBytes: d.Size, BlockSize: d.BlockSize, ReplicasWanted: d.Replicas,
		WriteCache: d.WriteCache, CheckpointAgeSeconds: -1, CreatedUnixSeconds: d.Created, Snapshots: len(d.Snapshots),
	}
	members := d.Voters
	if g, ok := n.Acceptors.Group(ident.MapBlock(d.ID)); ok {
		members, out.Epoch = g.Config.Members, g.Promised.Epoch
	}
	votes, present := 0, 0
	for _, m := range members {
		if m.Role == quorum.Learner {
			continue
		}
		votes++
		if n.View.State(m.Node) == overlay.Alive {
			present++
			if m.Role == quorum.Voter { // a witness has no copy
				out.ReplicasPresent++
			}
		}
	}
	setHealth(&out, out.ReplicasPresent, d.Replicas, present*2 > votes && out.ReplicasPresent > 0)
	return out
}

// Status implements control.Daemon: it asks every node and names those that do
// not answer.
func (n *Node) Status(ctx context.Context) (*control.Status, error) {
	st := n.Pool.State()
	out := &control.Status{Pool: control.Pool{ID: n.poolID, Name: st.Name, Version: st.Version, Lanes: n.View.LaneCount(), Leader: n.leaderName()}}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	parts := make([]*control.NodeStatus, len(st.Nodes))
	errs := make([]error, len(st.Nodes))
	var wg sync.WaitGroup
	for i, r := range st.Nodes {
		wg.Go(func() { parts[i], errs[i] = n.askStatus(ctx, r.ID) })
	}
	wg.Wait()
	held := map[ident.VolumeID]control.Volume{}
	for i, r := range st.Nodes {
		if errs[i] != nil {
			out.Unreachable = append(out.Unreachable, control.Unreachable{Node: r.Name, Error: errs[i].Error()})
			me := n.describe(r.ID)
			me.Leaving = n.leaving(st, r, 0)
			out.Nodes = append(out.Nodes, me)
			continue
		}
		me := n.describe(r.ID)
		me.Leaving = n.leaving(st, r, storedBy(parts[i]))
		p := parts[i].Node
		me.Version, me.Boot, me.FreeBytes, me.NBD, me.HTTP = p.Version, p.Boot, p.FreeBytes, p.NBD, p.HTTP
		out.Nodes = append(out.Nodes, me)
		out.Bricks = append(out.Bricks, parts[i].Bricks...)
		for _, v := range parts[i].Volumes {
			if h, ok := held[v.ID]; !ok || v.Epoch > h.Epoch {
				held[v.ID] = v
			}
		}
	}
	for _, d := range st.Volumes {
		v, ok := held[d.ID]
		if !ok {
			v = n.unheld(d)
		}
		v.CreatedUnixSeconds = d.Created
		out.Volumes = append(out.Volumes, v)
	}
	return out, nil
}

func (n *Node) leaderName() string {
	if id := n.Pool.Leader(); !id.IsZero() {
		return n.describe(id).Name
	}
	return ""
}

// silence says for how long a node was not heard.
func silence(heard time.Duration) string {
	if heard == overlay.Never {
		return "not heard since this node was started"
	}
	return fmt.Sprintf("no answer for %s", heard.Round(time.Second))
}

func (n *Node) askStatus(ctx context.Context, id ident.NodeID) (*control.NodeStatus, error) {
	if id == n.Self {
		return n.LocalStatus(ctx)
	}
	if n.View.State(id) != overlay.Alive {
		return nil, fault.Newf(fault.Unavailable, "status", "", "%s", silence(n.View.Heard(id)))
	}
	raw, err := n.mesh.Call(ctx, id, typeStatus, nil)
	if err != nil {
		return nil, err
	}
	st := new(control.NodeStatus)
	if err := json.Unmarshal(raw, st); err != nil {
		return nil, fault.New(fault.Internal, "status", id.Short(), err)
	}
	return st, nil
}

func (n *Node) handleStatus(ctx context.Context, _ ident.NodeID, _ []byte) ([]byte, error) {
	st, err := n.LocalStatus(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(st)
}
