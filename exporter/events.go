package exporter

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// durationBuckets are the upper bounds, in seconds, of all latency histograms:
// 25 µs to about 13 s, each twice the one before.
var durationBuckets = prometheus.ExponentialBuckets(25e-6, 2, 20)

// commandNames are the NBD commands that have an answer to time, as their labels
// have them.
var commandNames = [...]string{"read", "write", "flush", "trim", "write_zeroes", "cache", "block_status"}

// NBD counts the requests of NBD clients.
type NBD struct {
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	errors   *prometheus.CounterVec
	// children by command and kind, looked up once: a request costs no map.
	durationOf [len(commandNames)]prometheus.Observer
	bytesOf    [len(commandNames)]prometheus.Counter
	errorsOf   []prometheus.Counter
}

func newNBD() *NBD {
	n := &NBD{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "gabion_nbd_request_duration_seconds",
			Help:    "Time from the last byte of an NBD request to its answer, by command.",
			Buckets: durationBuckets,
		}, []string{"command"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gabion_nbd_bytes_total",
			Help: "Bytes that successful NBD requests named, by command.",
		}, []string{"command"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gabion_nbd_errors_total",
			Help: "NBD requests that were answered with an error, by kind of failure.",
		}, []string{"kind"}),
	}
	for i, name := range commandNames {
		n.durationOf[i] = n.duration.WithLabelValues(name)
		n.bytesOf[i] = n.bytes.WithLabelValues(name)
	}
	for _, k := range fault.Kinds() {
		n.errorsOf = append(n.errorsOf, n.errors.WithLabelValues(k.String()))
	}
	return n
}

// Observe counts one answered request: its command as nbd.Config.Observe names
// it, the bytes that it named, the time to its answer and its error. It does not
// allocate. Commands it does not know are not counted.
func (n *NBD) Observe(command string, bytes int, took time.Duration, err error) {
	i := 0
	for commandNames[i] != command {
		if i++; i == len(commandNames) {
			return
		}
	}
	n.durationOf[i].Observe(took.Seconds())
	if err != nil {
		n.errorsOf[fault.KindOf(err)].Inc()
		return
	}
	n.bytesOf[i].Add(float64(bytes))
}

// syncs times fdatasync by brick.
type syncs struct {
	duration *prometheus.HistogramVec

	mu    sync.Mutex
	known map[ident.BrickID]bool
}

func newSyncs() *syncs {
	return &syncs{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "gabion_brick_sync_duration_seconds",
			Help:    "Time of one fdatasync of a brick.",
			Buckets: durationBuckets,
		}, []string{"brick"}),
		known: map[ident.BrickID]bool{},
	}
}

// SyncObserver returns what a brick calls after each fdatasync. Call it once
// for each brick.
func (e *Exporter) SyncObserver(id ident.BrickID) func(time.Duration) {
	s := e.syncs
	s.mu.Lock()
	label := id.Short()
	if !s.known[id] && len(s.known) >= BricksMax {
		label = "other"
	} else {
		s.known[id] = true
	}
	s.mu.Unlock()
	child := s.duration.WithLabelValues(label)
	return func(d time.Duration) { child.Observe(d.Seconds()) }
}
