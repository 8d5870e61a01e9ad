// Package exporter shows a node to monitoring: Prometheus metrics on /metrics
// and a yes or no on /healthz. It is the only package that knows Prometheus.
// What is counted as it happens (requests, syncs) is reported through cheap
// methods; what can be asked is asked at each scrape through Sources.
//
// Metrics are named gabion_<package>_<noun>_<unit>, with _total for counters.
// Labels are bounded: commands and kinds are closed lists, bricks and volumes
// have named limits.
package exporter

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// VolumesMax bounds the volumes that have series of their own. Those above
	// it, by name, are counted in gabion_exporter_volumes_dropped.
	VolumesMax = 1024
	// BricksMax bounds the bricks that have a sync histogram of their own;
	// further ones share the brick label "other".
	BricksMax = 64
	// scrapesMax and scrapeTimeout bound concurrent scrapes.
	scrapesMax    = 4
	scrapeTimeout = 10 * time.Second
	// headerTimeout ends a connection whose request does not arrive;
	// drainTimeout is how long Serve waits for answers under way.
	headerTimeout = 10 * time.Second
	drainTimeout  = 2 * time.Second
)

// Exporter holds the metrics of one node. All methods may be called
// concurrently.
type Exporter struct {
	registry *prometheus.Registry
	sources  Sources
	nbd      *NBD
	iscsi    *ISCSI
	syncs    *syncs
}

// New makes an exporter that asks src at each scrape.
func New(src Sources) *Exporter {
	e := &Exporter{registry: prometheus.NewRegistry(), sources: src, nbd: newNBD(), iscsi: newISCSI(), syncs: newSyncs()}
	e.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		e.nbd.duration, e.nbd.bytes, e.nbd.errors, e.syncs.duration,
		e.iscsi.duration, e.iscsi.bytes, e.iscsi.statuses,
		newCollector(src),
	)
	return e
}

// NBD takes what the NBD server reports.
func (e *Exporter) NBD() *NBD { return e.nbd }

// ISCSI takes what the iSCSI server reports.
func (e *Exporter) ISCSI() *ISCSI { return e.iscsi }

// Registry is where further metrics of this node may be registered.
func (e *Exporter) Registry() prometheus.Registerer { return e.registry }

// Handler serves /metrics, /healthz and, on /, a line that names them.
func (e *Exporter) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(e.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesMax,
		Timeout:             scrapeTimeout,
	}))
	mux.HandleFunc("GET /healthz", e.healthz)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "gabion: /metrics /healthz\n") // a client that left needs no answer
	})
	return mux
}

// healthBody is the answer of /healthz.
type healthBody struct {
	Status  string   `json:"status"` // ok or failing
	Reasons []string `json:"reasons,omitempty"`
}

func (e *Exporter) healthz(w http.ResponseWriter, _ *http.Request) {
	b := healthBody{Status: "ok"}
	status := http.StatusOK
	if e.sources.Health != nil {
		b.Reasons = e.sources.Health()
	}
	if len(b.Reasons) > 0 {
		b.Status, status = "failing", http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(b) // a client that left needs no answer
}

// Serve answers on l until ctx ends, and closes it.
func (e *Exporter) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: e.Handler(), ReadHeaderTimeout: headerTimeout}
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			_ = srv.Close() // answers that outlast the drain are cut off
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-drained
		return nil
	}
	_ = srv.Close()
	return err
}
