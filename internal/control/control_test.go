package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// recorder is a Daemon that notes what it was asked and answers with err or a
// volume.
type recorder struct {
	asked []string
	err   error
	wait  bool // until the context ends
}

func (d *recorder) note(ctx context.Context, format string, args ...any) error {
	d.asked = append(d.asked, fmt.Sprintf(format, args...))
	if d.wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return d.err
}

func sampleVolume() *Volume {
	return &Volume{ID: ident.VolumeID{1, 2}, Name: "pg", SizeBytes: 10 << 30, UsedBytes: 4096, BlockSize: 4096,
		WriteCache: "quorum", ReplicasWanted: 3, ReplicasPresent: 1, Holder: "n1",
		Clients: []string{"127.0.0.1:5"}, Epoch: 7, Health: HealthDegraded, HealthDetail: "1 of 3",
		LogBytes: 12, CheckpointAgeSeconds: 1.5, CreatedUnixSeconds: 99}
}

func sampleStatus() *Status {
	return &Status{
		Pool: Pool{ID: ident.PoolID{9}, Name: "pool", Version: 3, Leader: "n1", Lanes: 100},
		Nodes: []Node{{ID: ident.NodeID{1}, Name: "n1", Addr: "a:1", NBD: "b:2", HTTP: "c:3", State: "alive",
			Boot: 2, Labels: map[string]string{"zone": "z"}, Version: "v", FreeBytes: 5}},
		Bricks: []Brick{{Node: "n1", ID: ident.BrickID{3}, Path: "/d", UsedBytes: 1, FreeBytes: 2, TotalBytes: 3,
			JournalBytes: 4, State: "ok"}},
		Volumes:     []Volume{*sampleVolume()},
		Unreachable: []Unreachable{{Node: "n2", Error: "no route"}},
	}
}

func (d *recorder) Status(ctx context.Context) (*Status, error) {
	if err := d.note(ctx, "status"); err != nil {
		return nil, err
	}
	return sampleStatus(), nil
}

func (d *recorder) LocalStatus(ctx context.Context) (*NodeStatus, error) {
	s := sampleStatus()
	return &NodeStatus{Node: s.Nodes[0], Bricks: s.Bricks, Volumes: s.Volumes}, d.note(ctx, "local")
}

func (d *recorder) PoolToken(ctx context.Context, ttl time.Duration) (string, error) {
	return "token", d.note(ctx, "token %v", ttl)
}

func (d *recorder) CreateVolume(ctx context.Context, q CreateVolume) (*Volume, error) {
	return sampleVolume(), d.note(ctx, "create %+v", q)
}

func (d *recorder) Volumes(ctx context.Context) ([]Volume, error) { return nil, d.note(ctx, "volumes") }

func (d *recorder) Volume(ctx context.Context, name string) (*Volume, error) {
	return sampleVolume(), d.note(ctx, "volume %s", name)
}

func (d *recorder) ResizeVolume(ctx context.Context, name string, n int64) (*Volume, error) {
	return sampleVolume(), d.note(ctx, "resize %s %d", name, n)
}

func (d *recorder) DeleteVolume(ctx context.Context, name string) error {
	return d.note(ctx, "delete %s", name)
}

func (d *recorder) AttachVolume(ctx context.Context, name string, takeover bool) (*Volume, error) {
	return sampleVolume(), d.note(ctx, "attach %s %t", name, takeover)
}

func (d *recorder) Export(ctx context.Context, name string) (*Export, error) {
	return sampleExport(), d.note(ctx, "export %s", name)
}

func (d *recorder) SetExport(ctx context.Context, name string, q SetExport) (*Export, error) {
	return sampleExport(), d.note(ctx, "set export %s %+v", name, q.Initiators)
}

func sampleExport() *Export {
	return &Export{Volume: "pg", Target: "iqn.x:pg", Portals: []string{"a:3260"}, Initiators: []string{"iqn.y"}, CHAPUser: "u", MutualUser: "m"}
}

func (d *recorder) StartScrub(ctx context.Context, q StartScrub) error {
	return d.note(ctx, "scrub %+v", q)
}

func (d *recorder) ScrubSettings(ctx context.Context, q ScrubSettings) error {
	return d.note(ctx, "scrub set %+v", q)
}

func (d *recorder) ForgetBrick(ctx context.Context, brick string) error {
	return d.note(ctx, "forget %s", brick)
}

func (d *recorder) ReadmitBrick(ctx context.Context, brick string) error {
	return d.note(ctx, "readmit %s", brick)
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// serve runs d in dir until the test ends and returns its client.
func serve(t *testing.T, dir string, d Daemon) *Client {
	t.Helper()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: Handler(d, discard())}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	c := NewClient(dir)
	t.Cleanup(func() { c.Close(); _ = srv.Close(); <-done })
	return c
}

func TestEveryCallReachesTheDaemonAndComesBackWhole(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	ctx := t.Context()
	check := func(got, want any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	}
	s, err := c.Status(ctx)
	check(s, sampleStatus(), err)
	n, err := c.LocalStatus(ctx)
	check(n.Node, sampleStatus().Nodes[0], err)
	tok, err := c.PoolToken(ctx, time.Hour)
	check(tok, "token", err)
	v, err := c.CreateVolume(ctx, CreateVolume{Name: "pg", SizeBytes: 5, BlockSize: 512, Replicas: 2})
	check(v, sampleVolume(), err)
	vs, err := c.Volumes(ctx)
	check(vs, []Volume{}, err)
	v, err = c.Volume(ctx, "a b/ü%")
	check(v, sampleVolume(), err)
	v, err = c.ResizeVolume(ctx, "pg", 1<<50)
	check(v, sampleVolume(), err)
	check(nil, nil, c.DeleteVolume(ctx, "pg"))
	v, err = c.AttachVolume(ctx, "pg", true)
	check(v, sampleVolume(), err)
	check(d.asked, []string{"status", "local", "token 1h0m0s",
		"create {Name:pg SizeBytes:5 BlockSize:512 Replicas:2 WriteCache:}", "volumes", "volume a b/ü%",
		"resize pg 1125899906842624", "delete pg", "attach pg true"}, nil)
}

func TestEveryKindOfErrorComesBackTheSame(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	for _, k := range fault.Kinds() {
		for _, cause := range []error{nil, errors.New("the reason")} {
			d.err = fault.New(k, "volume show", "pg", cause)
			_, err := c.Volume(t.Context(), "pg")
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != k || f.Op != "volume show" || f.Subject != "pg" {
				t.Errorf("%v came back as %#v", k, err)
			}
			if err.Error() != d.err.Error() {
				t.Errorf("text %q came back as %q", d.err, err)
			}
		}
	}
	d.err = fmt.Errorf("around: %w", fault.New(fault.Busy, "inner", "x", nil))
	if _, err := c.Volume(t.Context(), "pg"); !fault.Is(err, fault.Busy) ||
		err.Error() != "GET /v1/volumes/{name}: around: inner x: busy" {
		t.Errorf("a wrapped error came back as %v", err)
	}
}

func TestEveryKindHasAnHTTPStatusAndAWayBack(t *testing.T) {
	for _, k := range fault.Kinds() {
		s, ok := kindStatus[k]
		if !ok || s < 400 {
			t.Errorf("kind %v has status %d", k, s)
		}
		if got := kindOf(s); got != k {
			t.Errorf("status %d of %v comes back as %v", s, k, got)
		}
	}
	err := decodeAnswer(http.StatusServiceUnavailable, []byte("<html>"), &none{})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("an answer that is not ours became %v", err)
	}
}

func TestServerRefusesUnknownFieldsTrailersAndLongBodies(t *testing.T) {
	d := &recorder{}
	h := Handler(d, discard())
	for name, body := range map[string]string{
		"unknown field": `{"name":"a","size_bytes":1,"colour":"red"}`,
		"two values":    `{"name":"a"}{}`,
		"not JSON":      `name=a`,
		"too long":      `{"name":"` + strings.Repeat("a", RequestMax) + `"}`,
		"overflow":      `{"size_bytes":9223372036854775808}`,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/v1/volumes", strings.NewReader(body)))
		var e errorBody
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != 400 || e.Kind != "invalid" {
			t.Errorf("%s: status %d, body %s", name, w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/v1/pool/token", strings.NewReader(`{"ttl_seconds":-1}`)))
	if w.Code != 400 || len(d.asked) != 0 {
		t.Errorf("negative ttl: status %d; the daemon was asked %v", w.Code, d.asked)
	}
}

func TestClientRefusesNamesThatAPathCannotCarry(t *testing.T) {
	c := NewClient(t.TempDir())
	for _, name := range []string{"", ".", ".."} {
		if _, err := c.Volume(t.Context(), name); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestClientTimesOutWithTheContext(t *testing.T) {
	c := serve(t, t.TempDir(), &recorder{wait: true})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !fault.Is(err, fault.Timeout) {
		t.Fatalf("got %v, want kind timeout", err)
	}
}

func TestClientSaysThatNoNodeRuns(t *testing.T) {
	dir := t.TempDir()
	want := "control.client " + filepath.Join(dir, SocketName) +
		": no gabion node runs here; start one with 'gabion node run', or name its directory with --dir"
	_, err := NewClient(dir).Status(t.Context())
	if !fault.Is(err, fault.Unavailable) || err.Error() != want {
		t.Fatalf("got  %v\nwant %v", err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(dir).Status(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("stale socket: %v", err)
	}
}

func TestSocketIsPrivateExclusiveReplacedWhenStaleAndRemoved(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("long", 30))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, SocketName)
		if err := os.WriteFile(path, []byte("stale"), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		l, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- Serve(ctx, dir, &recorder{}, discard()) }()
		await(t, func() bool { _, err := NewClient(dir).Status(ctx); return err == nil })
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != 0o600 || fi.Mode().Type() != os.ModeSocket {
			t.Fatalf("socket: %v %v", fi.Mode(), err)
		}
		if _, err := Listen(dir); !fault.Is(err, fault.Busy) {
			t.Fatalf("second listener: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Fatalf("the socket stayed: %v", err)
		}
	}
}

// await polls cond until it holds or 10 s have passed.
func await(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the condition never held")
		}
	}
}

func TestHealthTextSaysDegraded1Of3(t *testing.T) {
	if got := sampleVolume().HealthText(); got != "degraded: 1 of 3" {
		t.Errorf("got %q", got)
	}
	if got := (&Volume{Health: HealthOK}).HealthText(); got != "ok" {
		t.Errorf("got %q", got)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"name":"a","size_bytes":1}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q, again CreateVolume
		if decodeRequest(strings.NewReader(string(b)), &q) != nil {
			return
		}
		enc, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeRequest(strings.NewReader(string(enc)), &again); err != nil || again != q {
			t.Fatalf("%+v came back as %+v, %v", q, again, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, []byte(`{"id":"00"}`))
	f.Add(404, []byte(`{"kind":"not found","op":"x"}`))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		err := decodeAnswer(status, b, new(Status))
		if err == nil && status != 200 {
			t.Fatal("a failure was read as success")
		}
	})
}
