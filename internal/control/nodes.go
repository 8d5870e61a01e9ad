package control

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Nodes is what a node can be asked about the life of the pool's nodes:
//
//	POST /v1/nodes/NAME/drain     Node
//	POST /v1/nodes/NAME/undrain   Node
//	POST /v1/nodes/NAME/lost      Node
//	POST /v1/nodes/NAME/remove
//	GET  /v1/policy               Policy
//	POST /v1/policy               PolicyChange -> Policy
//
// Errors as for Daemon; Conflict: the node's standing does not allow it, and the
// text says what does.
type Nodes interface {
	// DrainNode makes a node let go of what it serves and of what it stores. It
	// returns once that is decided; Node.SafeToRemove tells when it is done.
	DrainNode(ctx context.Context, name string) (*Node, error)
	// UndrainNode makes a drained node a member again.
	UndrainNode(ctx context.Context, name string) (*Node, error)
	// LoseNode declares a node that is down lost for good: what it held is made
	// anew elsewhere, and it is not let in again.
	LoseNode(ctx context.Context, name string) (*Node, error)
	// RemoveNode forgets a drained or lost node that holds nothing any more.
	RemoveNode(ctx context.Context, name string) error
	Policy(ctx context.Context) (*Policy, error)
	// SetPolicy changes what is set in the change and leaves the rest.
	SetPolicy(ctx context.Context, c PolicyChange) (*Policy, error)
}

// Leaving tells how far a node is from holding nothing.
type Leaving struct {
	// Standing is "", draining, evicted or lost, since SinceUnixSeconds.
	Standing         string `json:"standing"`
	SinceUnixSeconds int64  `json:"since_unix_seconds,omitempty"`
	// Votes counts the volumes on whose map blocks the node votes, and the pool
	// block; Lanes the lanes that its bricks hold; DataBytes what is stored on them.
	Votes     int   `json:"votes"`
	Lanes     int   `json:"lanes"`
	DataBytes int64 `json:"data_bytes"`
	// SafeToRemove: it is leaving and holds nothing.
	SafeToRemove bool `json:"safe_to_remove"`
	// Blocked says why it will not get there as things are; "" if nothing is in
	// the way.
	Blocked string `json:"blocked,omitempty"`
}

// Policy is what the operator decides for the whole pool.
type Policy struct {
	// EvictAfterSeconds is how long a node is down before it is evicted; -1: never.
	EvictAfterSeconds int64 `json:"evict_after_seconds"`
	RepairPaused      bool  `json:"repair_paused"`
	// RepairBytesPerSecond bounds what each holder copies; 0: only foreground
	// latency does.
	RepairBytesPerSecond int64 `json:"repair_bytes_per_second"`
}

// PolicyChange sets what is not nil.
type PolicyChange struct {
	EvictAfterSeconds    *int64 `json:"evict_after_seconds,omitempty"`
	RepairPaused         *bool  `json:"repair_paused,omitempty"`
	RepairBytesPerSecond *int64 `json:"repair_bytes_per_second,omitempty"`
}

func handleNodes(mux *http.ServeMux, log *slog.Logger, d Nodes) {
	for verb, f := range map[string]func(context.Context, string) (*Node, error){
		"drain": d.DrainNode, "undrain": d.UndrainNode, "lost": d.LoseNode,
	} {
		handle(mux, log, "POST /v1/nodes/{name}/"+verb, func(r *http.Request, _ *none) (any, error) {
			n, err := f(r.Context(), r.PathValue("name"))
			return tidied(n, err)
		})
	}
	handle(mux, log, "POST /v1/nodes/{name}/remove", func(r *http.Request, _ *none) (any, error) {
		return none{}, d.RemoveNode(r.Context(), r.PathValue("name"))
	})
	handle(mux, log, "GET /v1/policy", func(r *http.Request, _ *none) (any, error) { return d.Policy(r.Context()) })
	handle(mux, log, "POST /v1/policy", func(r *http.Request, q *PolicyChange) (any, error) {
		return d.SetPolicy(r.Context(), *q)
	})
}

func (c *Client) DrainNode(ctx context.Context, name string) (*Node, error) {
	return c.node(ctx, name, "drain")
}

func (c *Client) UndrainNode(ctx context.Context, name string) (*Node, error) {
	return c.node(ctx, name, "undrain")
}

func (c *Client) LoseNode(ctx context.Context, name string) (*Node, error) {
	return c.node(ctx, name, "lost")
}

func (c *Client) RemoveNode(ctx context.Context, name string) error {
	_, err := c.node(ctx, name, "remove")
	return err
}

func (c *Client) Policy(ctx context.Context) (*Policy, error) {
	return get[Policy](ctx, c, "/v1/policy")
}

func (c *Client) SetPolicy(ctx context.Context, q PolicyChange) (*Policy, error) {
	return post[Policy](ctx, c, "/v1/policy", q)
}

func (c *Client) node(ctx context.Context, name, verb string) (*Node, error) {
	if name == "" || name == "." || name == ".." {
		return nil, fault.Newf(fault.Invalid, "node", name, "%q cannot be the name of a node", name)
	}
	return post[Node](ctx, c, "/v1/nodes/"+url.PathEscape(name)+"/"+verb, nil)
}
