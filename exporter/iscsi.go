package exporter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// classNames are the classes of SCSI commands, as iscsi.Config.Observe names them.
var classNames = [...]string{"read", "write", "flush", "unmap", "write_same", "compare_and_write", "reserve", "other"}

// statusNames are the status codes of SAM-5 that an initiator can be sent.
var statusNames = map[byte]string{
	0x00: "good", 0x02: "check_condition", 0x04: "condition_met", 0x08: "busy", 0x18: "reservation_conflict",
	0x28: "task_set_full", 0x30: "aca_active", 0x40: "task_aborted",
}

// ISCSI counts the commands of iSCSI initiators.
type ISCSI struct {
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	statuses *prometheus.CounterVec
	// children by class and status, looked up once: a command costs no map of labels.
	durationOf [len(classNames)]prometheus.Observer
	bytesOf    [len(classNames)]prometheus.Counter
	statusOf   [256]prometheus.Counter
}

func newISCSI() *ISCSI {
	n := &ISCSI{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "gabion_iscsi_command_duration_seconds",
			Help:    "Time from the arrival of a SCSI command to its completion, by class of command.",
			Buckets: durationBuckets,
		}, []string{"command"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gabion_iscsi_bytes_total",
			Help: "Bytes that successful SCSI commands moved, by class of command.",
		}, []string{"command"}),
		statuses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gabion_iscsi_statuses_total",
			Help: "SCSI commands, by the status they ended with.",
		}, []string{"status"}),
	}
	for i, name := range classNames {
		n.durationOf[i] = n.duration.WithLabelValues(name)
		n.bytesOf[i] = n.bytes.WithLabelValues(name)
	}
	for code := range n.statusOf {
		name, ok := statusNames[byte(code)]
		if !ok {
			name = "other"
		}
		n.statusOf[code] = n.statuses.WithLabelValues(name)
	}
	return n
}

// Observe counts one completed command: its class as iscsi.Config.Observe names
// it, the bytes it moved, the time it took and its SCSI status. It does not
// allocate. Classes it does not know are not counted.
func (n *ISCSI) Observe(class string, bytes int, took time.Duration, status byte) {
	i := 0
	for classNames[i] != class {
		if i++; i == len(classNames) {
			return
		}
	}
	n.durationOf[i].Observe(took.Seconds())
	n.bytesOf[i].Add(float64(bytes))
	n.statusOf[status].Inc()
}
