// Package control is how an operator talks to a node: JSON over HTTP on a unix
// socket in the node's directory. It declares what a node can be asked
// (Daemon), the facts it answers with, the server that puts a Daemon on the
// socket and the Client, which is a Daemon again.
//
//	GET    /v1/status                 Status of the pool as this node sees it
//	GET    /v1/status/local           NodeStatus of this node alone
//	POST   /v1/pool/token             tokenRequest -> tokenAnswer
//	GET    /v1/volumes                list of Volume
//	POST   /v1/volumes                CreateVolume -> Volume
//	GET    /v1/volumes/NAME           Volume
//	DELETE /v1/volumes/NAME
//	POST   /v1/volumes/NAME/resize    resizeRequest -> Volume
//	POST   /v1/volumes/NAME/attach    attachRequest -> Volume
//	...    /v1/volumes/NAME/snapshots see Snapshots
//	GET    /v1/volumes/NAME/export    Export
//	POST   /v1/volumes/NAME/export    SetExport -> Export
//	GET    /v1/pool/discovery         Export
//	POST   /v1/pool/discovery         SetExport -> Export
//	…      /v1/nodes/NAME/…           see Nodes
//	…      /v1/policy                 see Nodes
//
// A request with an unknown field, or longer than RequestMax, is refused. An
// error is answered with the HTTP status of its kind (statusOf) and the body
// {kind, op, subject, message}, from which the client rebuilds the same
// fault.Error.
//
// The socket has mode 0600: who can open it may do everything.
package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
)

const (
	// SocketName is the name of the socket inside a node's directory.
	SocketName = "gabion.sock"
	// RequestMax bounds the body of a request, in bytes.
	RequestMax = 64 << 10
	// AnswerMax bounds the body of an answer that a client reads, in bytes.
	AnswerMax = 64 << 20
	// RequestTimeout ends a request that the node could not finish.
	RequestTimeout = 60 * time.Second
)

// Daemon is what a node can be asked. All methods may be called concurrently;
// each ends when ctx does, with kind Timeout. Errors are fault.Errors: Invalid
// (the request breaks a rule; the text says which), NotFound and Exists (by
// name), Busy (held by the node that Subject or the text names), NoSpace,
// Unavailable (no quorum answered).
type Daemon interface {
	// Status asks every node of the pool and merges the answers; nodes that do
	// not answer in time are listed in Unreachable. It does not fail because
	// of them.
	Status(ctx context.Context) (*Status, error)
	// LocalStatus tells about this node alone and asks nobody.
	LocalStatus(ctx context.Context) (*NodeStatus, error)
	// PoolToken mints a join token that is valid for ttl; 0 means 24 hours.
	PoolToken(ctx context.Context, ttl time.Duration) (string, error)
	// CreateVolume returns once the volume is recorded durably and can be attached.
	CreateVolume(ctx context.Context, req CreateVolume) (*Volume, error)
	// Volumes lists all volumes of the pool, sorted by name.
	Volumes(ctx context.Context) ([]Volume, error)
	Volume(ctx context.Context, name string) (*Volume, error)
	// ResizeVolume grows a volume to sizeBytes; shrinking is Invalid.
	ResizeVolume(ctx context.Context, name string, sizeBytes int64) (*Volume, error)
	// DeleteVolume returns once the deletion is recorded durably. Space is
	// given back afterwards, in the background.
	DeleteVolume(ctx context.Context, name string) error
	Snapshots
	// AttachVolume makes this node the holder of the volume. While another
	// node holds it, takeover decides between Busy and fencing that node.
	AttachVolume(ctx context.Context, name string, takeover bool) (*Volume, error)
	Exporter
	Bricks
	Nodes
	Doctor
}

// Status is the state of a pool as one node sees it. Lists are sorted by name
// (bricks by node, then id), so that equal states print equally.
type Status struct {
	Pool        Pool          `json:"pool"`
	Nodes       []Node        `json:"nodes"`
	Bricks      []Brick       `json:"bricks"`
	Volumes     []Volume      `json:"volumes"`
	Unreachable []Unreachable `json:"unreachable"`
}

// Pool describes the pool itself.
type Pool struct {
	ID   ident.PoolID `json:"id"`
	Name string       `json:"name"`
	// Version numbers the states of the pool block; it only grows.
	Version uint64 `json:"version"`
	// Leader names the node that writes the pool block; "" when unknown.
	Leader string `json:"leader"`
	// Lanes is the number of placement groups.
	Lanes int `json:"lanes"`
}

// Node is one member of the pool.
type Node struct {
	ID   ident.NodeID `json:"id"`
	Name string       `json:"name"`
	// Addr, NBD, ISCSI and HTTP are host:port of the links between nodes, of the
	// NBD exports, of the iSCSI portal and of metrics; all but Addr are "" when off
	// or not known.
	Addr  string `json:"addr"`
	NBD   string `json:"nbd"`
	ISCSI string `json:"iscsi"`
	HTTP  string `json:"http"`
	// State is alive, suspect or down, in the eyes of the node that answered.
	State string `json:"state"`
	// Boot counts the starts of the node.
	Boot    uint64            `json:"boot"`
	Labels  map[string]string `json:"labels"`
	Version string            `json:"version"`
	// FreeBytes is the sum over its bricks.
	FreeBytes int64 `json:"free_bytes"`
	// Witness: it votes and keeps no data.
	Witness bool `json:"witness,omitempty"`
	Leaving
}

// Brick is one disk of a node.
type Brick struct {
	Node string        `json:"node"` // name of its node
	ID   ident.BrickID `json:"id"`
	Path string        `json:"path"` // on that node
	// UsedBytes counts what gabion stores; FreeBytes and TotalBytes are those
	// of the file system that the brick lies on.
	UsedBytes  int64 `json:"used_bytes"`
	FreeBytes  int64 `json:"free_bytes"`
	TotalBytes int64 `json:"total_bytes"`
	// JournalBytes is the live part of the journal.
	JournalBytes int64 `json:"journal_bytes"`
	// State is ok, full or aside: broken, and not used until an operator says so.
	State string `json:"state"`
	// Reason and SinceUnixSeconds say why and since when it is aside.
	Reason           string `json:"reason,omitempty"`
	SinceUnixSeconds int64  `json:"since_unix_seconds,omitempty"`
	// Scrub is how its verification stands; absent for a brick that is aside.
	Scrub *Scrub `json:"scrub,omitempty"`
}

// Health says in one word what a volume's user can expect.
type Health string

const (
	// HealthOK: as many copies as wanted are in reach.
	HealthOK Health = "ok"
	// HealthDegraded: it works with fewer copies than wanted.
	HealthDegraded Health = "degraded"
	// HealthUnavailable: no quorum is in reach; I/O waits.
	HealthUnavailable Health = "unavailable"
	// HealthUnknown: the node that would know did not answer.
	HealthUnknown Health = "unknown"
)

// Volume is one volume of the pool.
type Volume struct {
	ID        ident.VolumeID `json:"id"`
	Name      string         `json:"name"`
	SizeBytes int64          `json:"size_bytes"`
	// UsedBytes is what one copy occupies after compression; 0 when not known.
	UsedBytes int64 `json:"used_bytes"`
	// BlockSize is the logical block size in bytes, 512 or 4096.
	BlockSize int `json:"block_size"`
	// WriteCache says when a plain write is answered; see CreateVolume.
	WriteCache string `json:"write_cache"`
	// ReplicasWanted is the volume's property; ReplicasPresent counts the
	// voters of its map block that are in reach and up to date.
	ReplicasWanted  int `json:"replicas_wanted"`
	ReplicasPresent int `json:"replicas_present"`
	// Holder is the name of the node that has it attached, "" when none has.
	Holder string `json:"holder"`
	// Clients are the addresses of the clients that use it, at its holder.
	Clients []string `json:"clients"`
	// Epoch counts attachments; the highest one may write.
	Epoch uint64 `json:"epoch"`
	// Health, and in words the rest: "1 of 3".
	Health       Health `json:"health"`
	HealthDetail string `json:"health_detail"`
	// Snapshots counts them. SnapshotBytes is about what deleting all of them
	// would give back of one copy: the blocks that only snapshots keep, at the mean
	// stored size of the volume's blocks; 0 when not known.
	Snapshots     int   `json:"snapshots"`
	SnapshotBytes int64 `json:"snapshot_bytes"`
	// LogBytes is the log tail since the last checkpoint.
	LogBytes int64 `json:"log_bytes"`
	// CheckpointAgeSeconds is -1 when not known (not attached).
	CheckpointAgeSeconds float64 `json:"checkpoint_age_seconds"`
	CreatedUnixSeconds   int64   `json:"created_unix_seconds"`
	// Repair is what is left to copy until all copies are complete; nil if
	// nothing is.
	Repair *Repair `json:"repair,omitempty"`
}

// Repair is the copying of extents that is under way.
type Repair struct {
	Extents int64 `json:"extents"`
	Bytes   int64 `json:"bytes"`
	// BytesPerSecond is the speed of late, ETASeconds what it makes of the rest;
	// -1 when not known.
	BytesPerSecond int64   `json:"bytes_per_second"`
	ETASeconds     float64 `json:"eta_seconds"`
	Paused         bool    `json:"paused"`
}

// HealthText is the health in one line: "ok", "degraded: 1 of 3".
func (v *Volume) HealthText() string {
	if v.HealthDetail == "" {
		return string(v.Health)
	}
	return string(v.Health) + ": " + v.HealthDetail
}

// tidy sorts the lists as documented and makes absent ones empty, so that JSON
// shows [] and not null.
func (s *Status) tidy() {
	s.Nodes = sorted(s.Nodes, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID))
	})
	for i := range s.Nodes {
		s.Nodes[i].tidy()
	}
	s.Bricks = tidyBricks(s.Bricks)
	s.Volumes = tidyVolumes(s.Volumes)
	s.Unreachable = sorted(s.Unreachable, func(a, b Unreachable) int { return cmp.Compare(a.Node, b.Node) })
}

func (n *Node) tidy() {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
}

func (s *NodeStatus) tidy() {
	s.Node.tidy()
	s.Bricks = tidyBricks(s.Bricks)
	s.Volumes = tidyVolumes(s.Volumes)
}

func tidyBricks(bs []Brick) []Brick {
	return sorted(bs, func(a, b Brick) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.ID.Compare(b.ID))
	})
}

func tidyVolumes(vs []Volume) []Volume {
	vs = sorted(vs, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	for i := range vs {
		vs[i].tidy()
	}
	return vs
}

func (v *Volume) tidy() { v.Clients = sorted(v.Clients, cmp.Compare[string]) }

// sorted returns a sorted copy: what a Daemon hands out may be shared.
func sorted[T any](in []T, compare func(a, b T) int) []T {
	out := append(make([]T, 0, len(in)), in...)
	slices.SortFunc(out, compare)
	return out
}

// Unreachable is a node that did not answer while a Status was collected.
type Unreachable struct {
	Node  string `json:"node"`
	Error string `json:"error"`
}

// NodeStatus is what one node knows about itself; Status merges those of all
// nodes. Volumes are those that this node holds.
type NodeStatus struct {
	Node    Node     `json:"node"`
	Bricks  []Brick  `json:"bricks"`
	Volumes []Volume `json:"volumes"`
}

// CreateVolume asks for a new volume. A zero field means its default.
type CreateVolume struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	// BlockSize is 512 (default) or 4096.
	BlockSize int `json:"block_size,omitempty"`
	// Replicas is 1 to 5, default 3.
	Replicas int `json:"replicas,omitempty"`
	// WriteCache says when a plain write is answered: "quorum" (default) when a
	// majority has it in memory, "none" when a majority has it on disk, "writer"
	// at once. A flush always waits for a majority's disks.
	WriteCache string `json:"write_cache,omitempty"`
}

type tokenRequest struct {
	TTLSeconds int64 `json:"ttl_seconds,omitempty"`
}

type tokenAnswer struct {
	Token string `json:"token"`
}

type resizeRequest struct {
	SizeBytes int64 `json:"size_bytes"`
}

type attachRequest struct {
	Takeover bool `json:"takeover,omitempty"`
}
