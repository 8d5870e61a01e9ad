package control

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Bricks is the part of a Daemon that looks after the disks of its own node:
//
//	POST /v1/scrub/start              StartScrub
//	POST /v1/scrub/settings           ScrubSettings
//	POST /v1/bricks/BRICK/forget
//	POST /v1/bricks/BRICK/readmit
//
// A brick is named by its id, the beginning of it, or its path.
type Bricks interface {
	// StartScrub begins to verify bricks of this node now, or changes the rate of
	// what runs. It does not wait. Kinds: NotFound, Invalid.
	StartScrub(ctx context.Context, req StartScrub) error
	// ScrubSettings changes how often and how fast this node verifies its bricks,
	// durably.
	ScrubSettings(ctx context.Context, req ScrubSettings) error
	// ForgetBrick takes a brick that is set aside out of the pool for good. Kinds:
	// NotFound, Conflict (it works), Invalid (more than one has that name).
	ForgetBrick(ctx context.Context, brick string) error
	// ReadmitBrick opens a brick that was set aside and uses it again. Unavailable: it
	// stays aside. Other kinds as for ForgetBrick.
	ReadmitBrick(ctx context.Context, brick string) error
}

// Scrub is how the verification of one brick stands.
type Scrub struct {
	// Running: a pass is under way, since BeganUnixSeconds.
	Running          bool  `json:"running"`
	BeganUnixSeconds int64 `json:"began_unix_seconds,omitempty"`
	// LastUnixSeconds is when the last whole pass ended, 0 if there was none;
	// NextUnixSeconds when the next one begins.
	LastUnixSeconds int64 `json:"last_unix_seconds"`
	NextUnixSeconds int64 `json:"next_unix_seconds"`
	// What the pass that runs, or else the last one, has read and found.
	VerifiedBytes int64 `json:"verified_bytes"`
	Damaged       int64 `json:"damaged"`
	Repaired      int64 `json:"repaired"`
	// Lost names what could not be repaired; not more than 64 of them.
	Lost []string `json:"lost,omitempty"`
}

// StartScrub says what to verify. Zero fields mean all bricks and the usual rate.
type StartScrub struct {
	Brick     string `json:"brick,omitempty"`
	RateBytes int64  `json:"rate_bytes,omitempty"` // each second
}

// ScrubSettings says what to change; zero fields stay.
type ScrubSettings struct {
	RateBytes    int64 `json:"rate_bytes,omitempty"`    // each second
	EverySeconds int64 `json:"every_seconds,omitempty"` // between passes; -1: only when asked
}

func handleBricks(mux *http.ServeMux, log *slog.Logger, d Bricks) {
	handle(mux, log, "POST /v1/scrub/start", func(r *http.Request, q *StartScrub) (any, error) {
		return none{}, d.StartScrub(r.Context(), *q)
	})
	handle(mux, log, "POST /v1/scrub/settings", func(r *http.Request, q *ScrubSettings) (any, error) {
		return none{}, d.ScrubSettings(r.Context(), *q)
	})
	handle(mux, log, "POST /v1/bricks/{brick}/forget", func(r *http.Request, _ *none) (any, error) {
		return none{}, d.ForgetBrick(r.Context(), r.PathValue("brick"))
	})
	handle(mux, log, "POST /v1/bricks/{brick}/readmit", func(r *http.Request, _ *none) (any, error) {
		return none{}, d.ReadmitBrick(r.Context(), r.PathValue("brick"))
	})
}

// StartScrub implements Bricks.
func (c *Client) StartScrub(ctx context.Context, req StartScrub) error {
	return c.do(ctx, http.MethodPost, "/v1/scrub/start", req, &none{})
}

// ScrubSettings implements Bricks.
func (c *Client) ScrubSettings(ctx context.Context, req ScrubSettings) error {
	return c.do(ctx, http.MethodPost, "/v1/scrub/settings", req, &none{})
}

// ForgetBrick implements Bricks.
func (c *Client) ForgetBrick(ctx context.Context, brick string) error {
	return c.brick(ctx, brick, "forget")
}

// ReadmitBrick implements Bricks.
func (c *Client) ReadmitBrick(ctx context.Context, brick string) error {
	return c.brick(ctx, brick, "readmit")
}

func (c *Client) brick(ctx context.Context, brick, verb string) error {
	if brick == "" || brick == "." || brick == ".." {
		return fault.Newf(fault.Invalid, "brick "+verb, brick, "%q cannot be the id of a brick", brick)
	}
	return c.do(ctx, http.MethodPost, "/v1/bricks/"+url.PathEscape(brick)+"/"+verb, none{}, &none{})
}
