package control

import (
	"context"
	"log/slog"
	"net/http"
)

// Secret is a CHAP name and secret. Both empty: there is none.
type Secret struct {
	User   string `json:"user"`
	Secret string `json:"secret"`
}

// SetExport changes how a volume may be used over iSCSI, or who may discover.
// What is nil stays as it is.
type SetExport struct {
	// Clear forgets everything first.
	Clear bool `json:"clear,omitempty"`
	// Initiators may log in; empty lets all.
	Initiators []string `json:"initiators"`
	// CHAP is what an initiator must prove, Mutual what the target proves to it.
	CHAP   *Secret `json:"chap,omitempty"`
	Mutual *Secret `json:"mutual,omitempty"`
}

// Export is how a volume may be used over iSCSI. It never has secrets.
type Export struct {
	Volume     string   `json:"volume"` // empty: discovery
	Target     string   `json:"target"` // iSCSI name
	Portals    []string `json:"portals"`
	Initiators []string `json:"initiators"`
	CHAPUser   string   `json:"chap_user"` // empty: without authentication
	MutualUser string   `json:"mutual_user"`
}

func (e *Export) tidy() {
	if e.Portals == nil {
		e.Portals = []string{}
	}
	if e.Initiators == nil {
		e.Initiators = []string{}
	}
}

// Exporter is the part of Daemon that is about iSCSI. The empty name means what
// discovery demands.
type Exporter interface {
	// Export tells how a volume may be used. NotFound: no such volume.
	Export(ctx context.Context, name string) (*Export, error)
	// SetExport returns when the change is durable and known to this node. Sessions
	// that are open stay. Invalid: a rule of names or secrets; Conflict: changed at
	// the same time.
	SetExport(ctx context.Context, name string, req SetExport) (*Export, error)
}

func handleExports(mux *http.ServeMux, log *slog.Logger, d Exporter) {
	get := func(r *http.Request, _ *none) (any, error) {
		e, err := d.Export(r.Context(), r.PathValue("name"))
		return tidied(e, err)
	}
	set := func(r *http.Request, q *SetExport) (any, error) {
		e, err := d.SetExport(r.Context(), r.PathValue("name"), *q)
		return tidied(e, err)
	}
	handle(mux, log, "GET /v1/volumes/{name}/export", get)
	handle(mux, log, "POST /v1/volumes/{name}/export", set)
	handle(mux, log, "GET /v1/pool/discovery", get)
	handle(mux, log, "POST /v1/pool/discovery", set)
}

// Export implements Daemon.
func (c *Client) Export(ctx context.Context, name string) (*Export, error) {
	path, err := exportPath(name)
	if err != nil {
		return nil, err
	}
	return get[Export](ctx, c, path)
}

// SetExport implements Daemon.
func (c *Client) SetExport(ctx context.Context, name string, req SetExport) (*Export, error) {
	path, err := exportPath(name)
	if err != nil {
		return nil, err
	}
	return post[Export](ctx, c, path, req)
}

func exportPath(name string) (string, error) {
	if name == "" {
		return "/v1/pool/discovery", nil
	}
	path, err := volumePath(name)
	return path + "/export", err
}
