package node

import (
	"context"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// tokenMax bounds the life of a join token.
const tokenMax = 30 * 24 * time.Hour

// PoolToken implements control.Daemon.
func (n *Node) PoolToken(_ context.Context, ttl time.Duration) (string, error) {
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	if ttl <= 0 || ttl > tokenMax {
		return "", fault.Newf(fault.Invalid, "pool token", ttl.String(), "a token can live up to %s", tokenMax)
	}
	return n.id.CA.Mint(time.Now(), ttl).String(), nil
}

// Volumes implements control.Daemon.
func (n *Node) Volumes(ctx context.Context) ([]control.Volume, error) {
	st, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	return st.Volumes, nil
}

// Volume implements control.Daemon.
func (n *Node) Volume(ctx context.Context, name string) (*control.Volume, error) {
	vs, err := n.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	for i := range vs {
		if vs[i].Name == name {
			return &vs[i], nil
		}
	}
	return nil, fault.Newf(fault.NotFound, "volume show", name, "no such volume; gabion volume list shows what there is")
}

func (n *Node) record(name string) (pool.Volume, error) {
	for _, d := range n.Pool.State().Volumes {
		if d.Name == name {
			return d, nil
		}
	}
	return pool.Volume{}, fault.Newf(fault.NotFound, "volume", name, "no such volume; gabion volume list shows what there is")
}

// CreateVolume implements control.Daemon: the birth of the map block at its
// first voters, then the record that makes it a volume. A birth whose record
// fails leaves empty groups behind that nothing names, of some 200 bytes each.
func (n *Node) CreateVolume(ctx context.Context, req control.CreateVolume) (*control.Volume, error) {
	d := pool.Volume{
		ID: ident.NewVolume(), Name: req.Name, Size: req.SizeBytes, BlockSize: req.BlockSize,
		Replicas: req.Replicas, WriteCache: req.WriteCache, Created: time.Now().Unix(),
	}
	if d.BlockSize == 0 {
		d.BlockSize = 512
	}
	if d.Replicas == 0 {
		d.Replicas = 3
	}
	if d.WriteCache == "" {
		d.WriteCache = "quorum"
	}
	d.Voters = n.firstVoters(d)
	if len(d.Voters) == 0 {
		return nil, fault.Newf(fault.Unavailable, "volume create", req.Name, "no node with a brick is in reach")
	}
	if err := n.Pool.Check(pool.CreateVolume(d)); err != nil {
		return nil, err
	}
	cfg := quorum.Config{Version: 1, Members: d.Voters}
	value := blockdev.Birth(d.Size)
	for _, m := range d.Voters {
		if err := quorum.CreateOn(ctx, n.mesh, m.Node, ident.MapBlock(d.ID), cfg, value); err != nil {
			return nil, err
		}
	}
	if err := n.Pool.Submit(ctx, pool.CreateVolume(d)); err != nil {
		return nil, err
	}
	return n.Volume(ctx, d.Name)
}

// firstVoters chooses the members of a new map block: this node if it has a
// brick, then the live nodes that rank highest for the volume.
func (n *Node) firstVoters(d pool.Volume) []quorum.Member {
	var live []overlay.Node
	for _, x := range n.View.Nodes() {
		if x.State == overlay.Alive && len(x.Bricks) > 0 {
			live = append(live, x)
		}
	}
	var out []quorum.Member
	for _, x := range blockdev.RankNodes(d.ID, n.Self, live) {
		if len(out) == d.Replicas {
			break
		}
		out = append(out, quorum.Member{Node: x.ID, Brick: x.Bricks[0].ID, Role: quorum.Voter})
	}
	return out
}

// ResizeVolume implements control.Daemon.
func (n *Node) ResizeVolume(ctx context.Context, name string, size int64) (*control.Volume, error) {
	d, err := n.record(name)
	if err != nil {
		return nil, err
	}
	if err := n.Pool.Submit(ctx, pool.ResizeVolume(d.ID, size)); err != nil {
		return nil, err
	}
	v, err := n.Volume(ctx, name)
	if err == nil {
		v.SizeBytes = max(v.SizeBytes, size) // the holder learns of it with the state
	}
	return v, err
}

// DeleteVolume implements control.Daemon. This node must get the volume first:
// only its holder knows for sure that nobody uses it.
func (n *Node) DeleteVolume(ctx context.Context, name string) error {
	d, err := n.record(name)
	if err != nil {
		return err
	}
	if _, err := n.Manager.Attach(ctx, name, false); err != nil {
		return err
	}
	if !n.Manager.Idle(d.ID) {
		return fault.Newf(fault.Busy, "volume delete", name, "in use by %d client(s) on this node; disconnect them first", len(n.Manager.Clients(d.ID)))
	}
	return n.Pool.Submit(ctx, pool.DeleteVolume(d.ID))
}

// AttachVolume implements control.Daemon.
func (n *Node) AttachVolume(ctx context.Context, name string, takeover bool) (*control.Volume, error) {
	v, err := n.Manager.Attach(ctx, name, takeover)
	if err != nil {
		return nil, err
	}
	out := n.held(v, 0)
	return &out, nil
}
