package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func fullSources() Sources {
	return Sources{
		Version: "v1", Commit: "abc",
		Sessions:      func() int { return 2 },
		ISCSISessions: func() int { return 3 },
		Nodes:         func() map[string]int { return map[string]int{"alive": 2, "down": 1} },
		Volumes: func() []Volume {
			return []Volume{
				{Name: "pg", SizeBytes: 10, UsedBytes: 5, ReplicasWanted: 3, ReplicasPresent: 1, Held: true, Epoch: 4,
					LogBytes: 6, CheckpointAgeSeconds: 1.5, MembersLagging: 1},
				{Name: "else", SizeBytes: 7, ReplicasWanted: 1, ReplicasPresent: 1},
			}
		},
		Bricks: func() []Brick {
			return []Brick{{ID: ident.BrickID{0xb1}, Path: "/d\xff", UsedBytes: 1, FreeBytes: 2, TotalBytes: 3,
				JournalLiveBytes: 4, Broken: true, ScrubLastUnixSeconds: 5, ScrubDamaged: 6, ScrubRepaired: 7}}
		},
		Link: func() Link { return Link{SentBytes: 8, ReceivedBytes: 9, Peers: 2} },
		DHT: func() DHT {
			return DHT{Puts: 11, Gets: 12, Corrupt: 13, Hedged: 14, HedgesWon: 15, Probes: 16, Repaired: 17, RepairsFailed: 18, Missed: 19}
		},
	}
}

// TestNamesAreTheGoldenList: a name is a promise to dashboards and alerts.
func TestNamesAreTheGoldenList(t *testing.T) {
	e := New(fullSources())
	e.SyncObserver(ident.BrickID{1})(time.Millisecond)
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "gabion_") {
			names = append(names, f.GetName()+" "+strings.ToLower(f.GetType().String()))
		}
	}
	want, err := os.ReadFile("testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, "\n") + "\n"; got != string(want) {
		t.Errorf("testdata/names.txt is not what is exported:\n%s", got)
	}
	if problems, err := testutil.GatherAndLint(e.registry, bare(names)...); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	doc, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range bare(names) {
		if !strings.Contains(string(doc), "`"+n+"`") {
			t.Errorf("docs/OPERATIONS.md does not explain %s", n)
		}
	}
}

func bare(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, strings.Fields(n)[0])
	}
	return out
}

func TestSourcesBecomeMetrics(t *testing.T) {
	e := New(fullSources())
	const want = `
# HELP gabion_blockdev_replicas_present Copies in reach and up to date.
# TYPE gabion_blockdev_replicas_present gauge
gabion_blockdev_replicas_present{volume="else"} 1
gabion_blockdev_replicas_present{volume="pg"} 1
# HELP gabion_blockdev_log_bytes Log tail since the last checkpoint.
# TYPE gabion_blockdev_log_bytes gauge
gabion_blockdev_log_bytes{volume="pg"} 6
# HELP gabion_brick_broken 1 if the brick is set aside: its disk failed, stalled or lied.
# TYPE gabion_brick_broken gauge
gabion_brick_broken{brick="b1000000",path="/d?"} 1
# HELP gabion_link_bytes_total Bytes on the links between nodes.
# TYPE gabion_link_bytes_total counter
gabion_link_bytes_total{direction="received"} 9
gabion_link_bytes_total{direction="sent"} 8
# HELP gabion_dht_corrupt_total Copies that did not match their checksum or address.
# TYPE gabion_dht_corrupt_total counter
gabion_dht_corrupt_total 13
# HELP gabion_nbd_sessions NBD sessions that are open.
# TYPE gabion_nbd_sessions gauge
gabion_nbd_sessions 2
`
	if err := testutil.GatherAndCompare(e.registry, strings.NewReader(want), "gabion_blockdev_replicas_present",
		"gabion_blockdev_log_bytes", "gabion_brick_broken", "gabion_link_bytes_total", "gabion_dht_corrupt_total",
		"gabion_nbd_sessions"); err != nil {
		t.Error(err)
	}
}

func TestAbsentSourcesHaveNoMetrics(t *testing.T) {
	e := New(Sources{})
	n, err := testutil.GatherAndCount(e.registry, "gabion_link_bytes_total", "gabion_dht_puts_total", "gabion_nbd_sessions",
		"gabion_blockdev_held", "gabion_brick_broken", "gabion_overlay_nodes", "gabion_exporter_volumes_dropped")
	if err != nil || n != 0 {
		t.Errorf("%d series, %v", n, err)
	}
}

func TestVolumesAboveTheLimitAreCountedNotShown(t *testing.T) {
	e := New(Sources{Volumes: func() []Volume {
		vs := make([]Volume, VolumesMax+3)
		for i := range vs {
			vs[i].Name = fmt.Sprintf("v%04d", len(vs)-i)
		}
		return vs
	}})
	n, err := testutil.GatherAndCount(e.registry, "gabion_blockdev_held")
	if err != nil || n != VolumesMax {
		t.Errorf("%d series, %v", n, err)
	}
	const want = `
# HELP gabion_exporter_volumes_dropped Volumes without series of their own, for there are too many.
# TYPE gabion_exporter_volumes_dropped gauge
gabion_exporter_volumes_dropped 3
`
	if err := testutil.GatherAndCompare(e.registry, strings.NewReader(want), "gabion_exporter_volumes_dropped"); err != nil {
		t.Error(err)
	}
}

func TestNBDObserveCountsAndDoesNotAllocate(t *testing.T) {
	n := New(Sources{}).NBD()
	n.Observe("write", 4096, time.Millisecond, nil)
	n.Observe("write", 4096, time.Millisecond, nil)
	n.Observe("read", 512, time.Millisecond, fault.New(fault.Corrupt, "read", "", nil))
	n.Observe("flush", 0, time.Millisecond, errors.New("unclassified"))
	n.Observe("disc", 9, 0, nil) // has no answer
	n.Observe("", 9, 0, nil)
	if got := testutil.ToFloat64(n.bytes.WithLabelValues("write")); got != 8192 {
		t.Errorf("write bytes %v", got)
	}
	if got := testutil.ToFloat64(n.bytes.WithLabelValues("read")); got != 0 {
		t.Errorf("a failed read counted %v bytes", got)
	}
	for _, k := range []fault.Kind{fault.Corrupt, fault.Internal} {
		if got := testutil.ToFloat64(n.errors.WithLabelValues(k.String())); got != 1 {
			t.Errorf("errors of kind %v: %v", k, got)
		}
	}
	if got := testutil.CollectAndCount(n.duration); got != len(commandNames) {
		t.Errorf("%d commands have a histogram", got)
	}
	if got := testing.AllocsPerRun(100, func() { n.Observe("write", 4096, time.Millisecond, nil) }); got != 0 {
		t.Errorf("%v allocations for each request", got)
	}
}

func TestSyncHistogramsAreBounded(t *testing.T) {
	e := New(Sources{})
	for i := range BricksMax + 5 {
		e.SyncObserver(ident.BrickID{1: byte(i), 2: 1})(time.Millisecond)
	}
	if got := testutil.CollectAndCount(e.syncs.duration); got != BricksMax+1 {
		t.Errorf("%d histograms, want %d", got, BricksMax+1)
	}
}

func TestHealthz(t *testing.T) {
	var reasons []string
	h := New(Sources{Health: func() []string { return reasons }}).Handler()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, body := get("/healthz"); code != 200 || body != `{"status":"ok"}` {
		t.Errorf("%d %s", code, body)
	}
	reasons = []string{"brick b1 is broken"}
	if code, body := get("/healthz"); code != 503 || body != `{"status":"failing","reasons":["brick b1 is broken"]}` {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "gabion_build_info{") {
		t.Errorf("/metrics: %d", code)
	}
	if code, _ := get("/other"); code != 404 {
		t.Errorf("/other: %d", code)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(Sources{}).Serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || string(body) != "gabion: /metrics /healthz\n" {
		t.Errorf("%q %v", body, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func TestCommandsAndBucketsAreSane(t *testing.T) {
	if !slices.IsSorted(durationBuckets) || durationBuckets[0] > 50e-6 || durationBuckets[len(durationBuckets)-1] < 10 {
		t.Errorf("buckets %v", durationBuckets)
	}
}

func BenchmarkNBDObserve(b *testing.B) {
	n := New(Sources{}).NBD()
	for b.Loop() {
		n.Observe("write", 4096, 300*time.Microsecond, nil)
	}
}
