package control

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Paths about snapshots, beside those of the package comment:
//
//	GET    /v1/volumes/NAME/snapshots            list of Snapshot
//	POST   /v1/volumes/NAME/snapshots            snapshotRequest -> Snapshot
//	DELETE /v1/volumes/NAME/snapshots/SNAPSHOT

// Snapshots is what a node can be asked about snapshots; part of Daemon.
type Snapshots interface {
	// Snapshots lists the snapshots of a volume, oldest first.
	Snapshots(ctx context.Context, volume string) ([]Snapshot, error)
	// CreateSnapshot returns once the snapshot is durable and listed. All writes
	// that were answered before the call are in it.
	CreateSnapshot(ctx context.Context, volume, name string) (*Snapshot, error)
	// DeleteSnapshot returns once the deletion is durable.
	DeleteSnapshot(ctx context.Context, volume, name string) error
}

// Snapshot is what a volume held at one time. Clients open it for reading as
// VOLUME@NAME.
type Snapshot struct {
	Volume string `json:"volume"`
	Name   string `json:"name"`
	// SizeBytes is the size that the volume had.
	SizeBytes          int64 `json:"size_bytes"`
	CreatedUnixSeconds int64 `json:"created_unix_seconds"`
	// OwnBytes is about what deleting this one alone would give back of one
	// copy; -1 while no node holds the volume.
	OwnBytes int64 `json:"own_bytes"`
}

type snapshotRequest struct {
	Name string `json:"name"`
}

func handleSnapshots(mux *http.ServeMux, log *slog.Logger, d Snapshots) {
	handle(mux, log, "GET /v1/volumes/{name}/snapshots", func(r *http.Request, _ *none) (any, error) {
		list, err := d.Snapshots(r.Context(), r.PathValue("name"))
		return append([]Snapshot{}, list...), err // [] and not null
	})
	handle(mux, log, "POST /v1/volumes/{name}/snapshots", func(r *http.Request, q *snapshotRequest) (any, error) {
		return d.CreateSnapshot(r.Context(), r.PathValue("name"), q.Name)
	})
	handle(mux, log, "DELETE /v1/volumes/{name}/snapshots/{snapshot}", func(r *http.Request, _ *none) (any, error) {
		return none{}, d.DeleteSnapshot(r.Context(), r.PathValue("name"), r.PathValue("snapshot"))
	})
}

func (c *Client) Snapshots(ctx context.Context, volume string) ([]Snapshot, error) {
	path, err := volumePath(volume)
	if err != nil {
		return nil, err
	}
	list, err := get[[]Snapshot](ctx, c, path+"/snapshots")
	if err != nil {
		return nil, err
	}
	return *list, nil
}

func (c *Client) CreateSnapshot(ctx context.Context, volume, name string) (*Snapshot, error) {
	path, err := volumePath(volume)
	if err != nil {
		return nil, err
	}
	return post[Snapshot](ctx, c, path+"/snapshots", snapshotRequest{Name: name})
}

func (c *Client) DeleteSnapshot(ctx context.Context, volume, name string) error {
	path, err := volumePath(volume)
	if err != nil {
		return err
	}
	if name == "" || name == "." || name == ".." {
		return fault.Newf(fault.Invalid, "snapshot", name, "%q cannot be the name of a snapshot", name)
	}
	return c.do(ctx, http.MethodDelete, path+"/snapshots/"+url.PathEscape(name), nil, &none{})
}
