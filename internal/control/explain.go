package control

import (
	"context"
	"log/slog"
	"net/http"
)

// Doctor is what a node can be asked when a volume is not well:
//
//	GET  /v1/volumes/NAME/explain    Explanation
//	POST /v1/volumes/NAME/recover    RecoverVolume -> Recovered
//	POST /v1/pool/recover            RecoverVolume -> Recovered
//	GET  /v1/audit                   list of AuditRecord, oldest first
type Doctor interface {
	// ExplainVolume says what a volume lacks, since when, and what would help.
	ExplainVolume(ctx context.Context, name string) (*Explanation, error)
	// RecoverVolume gives a volume whose quorum is gone for good a new one out of the
	// survivors. What only the lost members had is lost. Invalid: Confirm is not
	// the volume's name. Conflict: the quorum is there.
	RecoverVolume(ctx context.Context, name string, q RecoverVolume) (*Recovered, error)
	// RecoverPool does the same for the pool block; Confirm is the pool's name.
	RecoverPool(ctx context.Context, q RecoverVolume) (*Recovered, error)
	Audit(ctx context.Context) ([]AuditRecord, error)
}

// Explanation is a volume as a doctor sees it.
type Explanation struct {
	Volume Volume `json:"volume"`
	// Waits: I/O waits, because no majority of the voters is in reach.
	Waits    bool      `json:"waits"`
	Members  []Copy    `json:"members"`
	Findings []Finding `json:"findings"`
}

// Copy is one member of a volume's map block, or a survivor that is none any more.
type Copy struct {
	Node string `json:"node"`
	// Role is voter, witness or learner; learner also for a copy that the newest
	// configuration does not name.
	Role string `json:"role"`
	// State is alive, suspect or down; DownSeconds for how long it was not heard, -1
	// if never.
	State       string  `json:"state"`
	DownSeconds float64 `json:"down_seconds,omitempty"`
	// Answers: what follows is known.
	Answers bool `json:"answers"`
	// Epoch of the last attachment that it met; Durable is the last slot of the
	// log that it has on disk, Last the last that it has received.
	Epoch   uint64 `json:"epoch,omitempty"`
	Durable uint64 `json:"durable,omitempty"`
	Last    uint64 `json:"last,omitempty"`
}

// Finding is one thing that is wrong.
type Finding struct {
	What string `json:"what"`
	// SinceUnixSeconds is 0 where nobody knows.
	SinceUnixSeconds int64  `json:"since_unix_seconds,omitempty"`
	Help             string `json:"help"`
}

// RecoverVolume asks for a forced recovery.
type RecoverVolume struct {
	Confirm string `json:"confirm"`
	// From names the node of the survivor to go on from; "" for the one that has most.
	From string `json:"from,omitempty"`
	// DryRun only tells what would be done.
	DryRun bool `json:"dry_run,omitempty"`
}

// Recovered is what a forced recovery has done, or would do.
type Recovered struct {
	From   string   `json:"from"`
	Voters []string `json:"voters"`
	// Survivors are all copies that answered.
	Survivors []Copy `json:"survivors"`
	// Kept is the last slot that is kept. Another survivor has seen Seen; members
	// that did not answer may have had more.
	Kept uint64 `json:"kept"`
	Seen uint64 `json:"seen"`
	// MayBeLost says in words what may be gone.
	MayBeLost string `json:"may_be_lost"`
	Done      bool   `json:"done"`
}

// AuditRecord is something that an operator forced.
type AuditRecord struct {
	UnixSeconds int64  `json:"unix_seconds"`
	Node        string `json:"node"`
	What        string `json:"what"`
	Subject     string `json:"subject"`
	Detail      string `json:"detail"`
}

func handleDoctor(mux *http.ServeMux, log *slog.Logger, d Doctor) {
	handle(mux, log, "GET /v1/volumes/{name}/explain", func(r *http.Request, _ *none) (any, error) {
		return d.ExplainVolume(r.Context(), r.PathValue("name"))
	})
	handle(mux, log, "POST /v1/volumes/{name}/recover", func(r *http.Request, q *RecoverVolume) (any, error) {
		return d.RecoverVolume(r.Context(), r.PathValue("name"), *q)
	})
	handle(mux, log, "POST /v1/pool/recover", func(r *http.Request, q *RecoverVolume) (any, error) {
		return d.RecoverPool(r.Context(), *q)
	})
	handle(mux, log, "GET /v1/audit", func(r *http.Request, _ *none) (any, error) {
		a, err := d.Audit(r.Context())
		return append([]AuditRecord{}, a...), err
	})
}

func (c *Client) ExplainVolume(ctx context.Context, name string) (*Explanation, error) {
	path, err := volumePath(name)
	if err != nil {
		return nil, err
	}
	return get[Explanation](ctx, c, path+"/explain")
}

func (c *Client) RecoverVolume(ctx context.Context, name string, q RecoverVolume) (*Recovered, error) {
	path, err := volumePath(name)
	if err != nil {
		return nil, err
	}
	return post[Recovered](ctx, c, path+"/recover", q)
}

func (c *Client) RecoverPool(ctx context.Context, q RecoverVolume) (*Recovered, error) {
	return post[Recovered](ctx, c, "/v1/pool/recover", q)
}

func (c *Client) Audit(ctx context.Context) ([]AuditRecord, error) {
	a, err := get[[]AuditRecord](ctx, c, "/v1/audit")
	if err != nil {
		return nil, err
	}
	return *a, nil
}
