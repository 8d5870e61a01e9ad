package node

import (
	"context"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
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

// CreateVolume implements control.Daemon.
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
	if err := n.Birth(ctx, d); err != nil {
		return nil, err
	}
	return n.Volume(ctx, d.Name)
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

// DeleteVolume implements control.Daemon.
func (n *Node) DeleteVolume(ctx context.Context, name string) error {
	d, err := n.record(name)
	if err != nil {
		return err
	}
	return n.Remove(ctx, d)
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
