package blockdev

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
	"github.com/gabion-storage/gabion/target"
)

// TypeSnapshot is the call by which a node has the holder of a volume make,
// delete or describe snapshots. Request and answer are JSON: snapshotRequest,
// snapshotAnswer.
const TypeSnapshot link.Type = 0x5b

// snapshotTries is how often a change of the snapshots looks for the holder
// anew, when it moved meanwhile.
const snapshotTries = 5

// exportName is how clients name a snapshot.
func exportName(volume, snapshot string) string { return volume + "@" + snapshot }

// isSnapshot tells whether an export's name is a snapshot's; a volume's name has
// no @.
func isSnapshot(name string) bool { return strings.Contains(name, "@") }

// snapshotExports are the exports of a volume's snapshots.
func snapshotExports(d pool.Volume) (out []target.Export) {
	for _, s := range d.Snapshots {
		e := exportOf(d)
		e.Name, e.Size, e.ReadOnly = exportName(d.Name, s.Name), s.Size, true
		e.Description += " as of " + time.Unix(s.Created, 0).UTC().Format(time.RFC3339)
		out = append(out, e)
	}
	return out
}

// findSnapshot finds the volume and the snapshot of an export's name in the
// catalog.
func (m *Manager) findSnapshot(name string) (pool.Volume, string, error) {
	volume, snap, _ := strings.Cut(name, "@")
	d, err := m.find(volume)
	if err != nil {
		return d, "", err
	}
	if _, ok := d.SnapshotNamed(snap); !ok {
		return d, "", fault.Newf(fault.NotFound, "snapshot", name, "no such snapshot; gabion volume snapshot list %s shows what there is", d.Name)
	}
	return d, snap, nil
}

func (m *Manager) statSnapshot(name string) (target.Export, error) {
	d, _, err := m.findSnapshot(name)
	if err != nil {
		return target.Export{}, err
	}
	for _, e := range snapshotExports(d) {
		if e.Name == name {
			return e, nil
		}
	}
	return target.Export{}, fault.Newf(fault.NotFound, "snapshot", name, "no such snapshot")
}

// openSnapshot begins a read-only session at the volume's holder, which this
// node becomes if nobody uses the volume elsewhere.
func (m *Manager) openSnapshot(ctx context.Context, name, peer string) (target.Session, <-chan struct{}, error) {
	d, snap, err := m.findSnapshot(name)
	if err != nil {
		return nil, nil, err
	}
	v, leave, err := m.use(ctx, d, peer)
	if err != nil {
		return nil, nil, err
	}
	s, err := v.openSnapshot(ctx, snap)
	if err != nil {
		leave()
		return nil, nil, err
	}
	return &snapshotSession{v: v, s: s, close: leave}, s.gone, nil
}

// Operations of a snapshotRequest.
const (
	snapshotCreate = "create"
	snapshotDelete = "delete"
	snapshotList   = "list"
)

type snapshotRequest struct {
	Volume ident.VolumeID `json:"volume"`
	Op     string         `json:"op"`
	Name   string         `json:"name,omitempty"`
}

// snapshotAnswer is what there is after the operation, if the node that answers
// holds the volume.
type snapshotAnswer struct {
	Held     bool           `json:"held"`
	Revision uint64         `json:"revision,omitempty"`
	List     []SnapshotInfo `json:"list,omitempty"`
}

// CreateSnapshot makes a snapshot of a volume, at its holder, and returns when it
// is chosen and this node's catalog shows it. Kinds: as Volume.CreateSnapshot;
// Busy; Indeterminate (it is made, but the catalog could not be told yet).
func (m *Manager) CreateSnapshot(ctx context.Context, volume, name string) (SnapshotInfo, error) {
	if err := pool.CheckName("snapshot create", name); err != nil {
		return SnapshotInfo{}, err
	}
	list, err := m.snapshotAtHolder(ctx, volume, snapshotRequest{Op: snapshotCreate, Name: name})
	if err != nil {
		return SnapshotInfo{}, err
	}
	for _, s := range list {
		if s.Name == name {
			return s, nil
		}
	}
	return SnapshotInfo{}, fault.Newf(fault.Conflict, "snapshot create", exportName(volume, name), "it was made, and deleted by somebody else")
}

// DeleteSnapshot deletes a snapshot of a volume, at its holder. Kinds: as
// Volume.DeleteSnapshot; Busy; Indeterminate as CreateSnapshot.
func (m *Manager) DeleteSnapshot(ctx context.Context, volume, name string) error {
	_, err := m.snapshotAtHolder(ctx, volume, snapshotRequest{Op: snapshotDelete, Name: name})
	return err
}

// Snapshots describes the snapshots of a volume: as the holder knows them, or
// from the catalog, with OwnBytes -1, while nobody holds it.
func (m *Manager) Snapshots(ctx context.Context, volume string) ([]SnapshotInfo, error) {
	d, err := m.find(volume)
	if err != nil {
		return nil, err
	}
	if a, err := m.askHolder(ctx, d, snapshotRequest{Volume: d.ID, Op: snapshotList}); err == nil && a.Held {
		return a.List, nil
	}
	var out []SnapshotInfo
	for _, s := range d.Snapshots {
		out = append(out, SnapshotInfo{Name: s.Name, Size: s.Size, Created: time.Unix(s.Created, 0), OwnBytes: -1})
	}
	return out, nil
}

// snapshotAtHolder has the holder do what req says; while there is none, this
// node becomes it.
func (m *Manager) snapshotAtHolder(ctx context.Context, volume string, req snapshotRequest) ([]SnapshotInfo, error) {
	d, err := m.find(volume)
	if err != nil {
		return nil, err
	}
	req.Volume = d.ID
	for try := 1; ; try++ {
		a, err := m.askHolder(ctx, d, req)
		if err == nil && !a.Held {
			_, err = m.attached(ctx, d, claim{})
			if err == nil || fault.Is(err, fault.Busy) && try < snapshotTries {
				continue // it is here now, or somebody else was quicker
			}
		}
		if err == nil {
			// So that whoever asked here finds here what was answered.
			err = m.publish(ctx, d.ID, a.List, a.Revision)
		}
		return a.List, err
	}
}

// askHolder has req done by the volume's holder: here, or at the node that the
// members name, if it is alive.
func (m *Manager) askHolder(ctx context.Context, d pool.Volume, req snapshotRequest) (a snapshotAnswer, err error) {
	if a, err = m.snapshotHere(ctx, req); err != nil || a.Held {
		return a, err
	}
	ballot, _, err := quorum.Holder(ctx, m.cfg.Transport, m.seeds(d), ident.MapBlock(d.ID))
	if err != nil || ballot.IsZero() || ballot.Node == m.cfg.Self ||
		m.cfg.View.State(ballot.Node) != overlay.Alive || !m.cfg.Transport.Connected(ballot.Node) {
		return a, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return a, fault.New(fault.Internal, "snapshot", d.Name, err)
	}
	raw, err := m.cfg.Transport.Call(ctx, ballot.Node, TypeSnapshot, body)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return a, fault.New(fault.Internal, "snapshot", d.Name, err)
	}
	return a, nil
}

func (m *Manager) handleSnapshot(ctx context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	var req snapshotRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, fault.New(fault.Invalid, "snapshot", "", err)
	}
	a, err := m.snapshotHere(ctx, req)
	if err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

// snapshotHere does what req says if this node holds the volume.
func (m *Manager) snapshotHere(ctx context.Context, req snapshotRequest) (snapshotAnswer, error) {
	m.mu.Lock()
	at := m.vols[req.Volume]
	m.mu.Unlock()
	if at == nil {
		return snapshotAnswer{}, nil
	}
	select {
	case <-at.ready:
	case <-ctx.Done():
		return snapshotAnswer{}, fault.New(fault.Timeout, "snapshot", req.Name, ctx.Err())
	}
	v := at.vol
	if at.err != nil || v.Err() != nil {
		return snapshotAnswer{}, nil
	}
	m.change(at, 1) // so that it is not given away in between
	defer m.change(at, -1)
	var err error
	switch req.Op {
	case snapshotCreate:
		err = v.createPublished(ctx, req.Name)
	case snapshotDelete:
		if err = v.DeleteSnapshot(ctx, req.Name); err == nil {
			err = v.published(ctx)
		}
	case snapshotList:
	default:
		err = fault.Newf(fault.Invalid, "snapshot", v.cfg.Name, "%q is no operation", req.Op)
	}
	a := snapshotAnswer{Held: true}
	a.List, a.Revision = v.SnapshotInfos()
	return a, err
}

func (m *Manager) change(at *attached, by int) {
	m.mu.Lock()
	at.changing += by
	m.mu.Unlock()
}

// createPublished makes a snapshot and has the catalog show it, or takes it back
// if the catalog has no room for it.
func (v *Volume) createPublished(ctx context.Context, name string) error {
	if err := v.CreateSnapshot(ctx, name); err != nil {
		return err
	}
	err := v.published(ctx)
	if fault.Is(err, fault.NoSpace) {
		if back := v.DeleteSnapshot(ctx, name); back != nil {
			v.cfg.Log.Warn("a snapshot that the catalog has no room for stays", "volume", v.cfg.Name, "snapshot", name, "error", back)
		}
	}
	return err
}

// published is publishSnapshots after a change. Any failure but NoSpace means
// that the change is made and will be published later.
func (v *Volume) published(ctx context.Context) error {
	err := v.publishSnapshots(ctx)
	if err == nil || fault.Is(err, fault.NoSpace) {
		return err
	}
	return fault.Newf(fault.Indeterminate, "snapshot", v.cfg.Name, "it is done, but the pool's catalog cannot be told yet, and follows: %w", err)
}

// publish has the catalog show a volume's snapshots, unless it shows that
// revision or a newer one, or the volume is gone.
func (m *Manager) publish(ctx context.Context, id ident.VolumeID, list []SnapshotInfo, revision uint64) error {
	d, ok := m.cfg.Catalog().Volume(id)
	if m.cfg.Publish == nil || !ok || d.SnapshotRevision >= revision {
		return nil
	}
	out := make([]pool.Snapshot, 0, len(list))
	for _, s := range list {
		out = append(out, pool.Snapshot{Name: s.Name, Size: s.Size, Created: s.Created.Unix()})
	}
	return m.cfg.Publish(ctx, pool.SetSnapshots(id, revision, out))
}
