package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gabion": main})
}

// TestScripts runs the transcripts. Those that need answers get them from a
// fixed pool served on a real socket in $FIXED.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "awaits": awaits},
		Setup: func(e *testscript.Env) error {
			dir := filepath.Join(e.WorkDir, "fixed")
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			go func() { ended <- control.Serve(ctx, dir, &fixedPool{}, log) }()
			e.Defer(func() {
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("control server: %v", err)
				}
			})
			e.Setenv("FIXED", dir)
			return awaitSocket(dir)
		},
	})
}

// exits runs a program and demands an exit code: exits 2 gabion status --bad.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	code := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// awaits repeats a program until it succeeds and its output matches, for at
// most 20 s: awaits REGEXP gabion status.
func awaits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: awaits REGEXP PROGRAM ARG...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("it never said %q: %v", args[0], err)
		}
	}
}

// awaitSocket returns when the server of dir answers.
func awaitSocket(dir string) error {
	c := control.NewClient(dir)
	defer c.Close()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Volumes(context.Background())
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return err
		}
	}
}

// fixedPool is a pool of two nodes whose answers never change, so that a
// transcript can show every column.
type fixedPool struct{ control.Daemon }

func (*fixedPool) Status(context.Context) (*control.Status, error) {
	return &control.Status{
		Pool: control.Pool{ID: ident.PoolID{0xab, 0xcd}, Name: "demo", Version: 7, Leader: "n1", Lanes: 100},
		Nodes: []control.Node{
			{ID: ident.NodeID{1}, Name: "n1", Addr: "10.0.0.1:7400", NBD: "10.0.0.1:10809", HTTP: "127.0.0.1:7480",
				State: "alive", Boot: 3, Labels: map[string]string{"zone": "a", "rack": "r1"}, Version: "v0.1.0",
				FreeBytes: 3 << 40},
			{ID: ident.NodeID{2}, Name: "node-two", Addr: "10.0.0.2:7400", State: "down", Boot: 1},
		},
		Bricks: []control.Brick{{Node: "n1", ID: ident.BrickID{0xb1}, Path: "/disk/1", UsedBytes: 1536, FreeBytes: 3 << 40,
			TotalBytes: 4 << 40, JournalBytes: 8 << 20, State: "ok"}},
		Volumes:     fixedVolumes(),
		Unreachable: []control.Unreachable{{Node: "node-two", Error: "connection\nrefused"}},
	}, nil
}

func fixedVolumes() []control.Volume {
	return []control.Volume{
		{ID: ident.VolumeID{0x11}, Name: "pg", SizeBytes: 10 << 30, UsedBytes: 1 << 30, BlockSize: 4096,
			WriteCache: "quorum", ReplicasWanted: 3, ReplicasPresent: 1, Holder: "n1",
			Clients: []string{"127.0.0.1:4000"}, Epoch: 2, Health: control.HealthDegraded, HealthDetail: "1 of 3",
			Snapshots: 2, SnapshotBytes: 300 << 20, LogBytes: 12 << 20, CheckpointAgeSeconds: 61, CreatedUnixSeconds: 1_700_000_000},
		{ID: ident.VolumeID{0x22}, Name: "scratch\x1b[31m", SizeBytes: 512, BlockSize: 512, WriteCache: "quorum",
			ReplicasWanted: 1, ReplicasPresent: 1, Health: control.HealthOK, CheckpointAgeSeconds: -1},
	}
}

func (*fixedPool) Volumes(context.Context) ([]control.Volume, error) { return fixedVolumes(), nil }

func (p *fixedPool) Volume(_ context.Context, name string) (*control.Volume, error) {
	for _, v := range fixedVolumes() {
		if v.Name == name {
			return &v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "volume show", name, nil)
}

func (p *fixedPool) PoolToken(_ context.Context, ttl time.Duration) (string, error) {
	return "token-for-" + ttl.String(), nil
}

func (p *fixedPool) CreateVolume(_ context.Context, q control.CreateVolume) (*control.Volume, error) {
	if q.Name == "pg" {
		return nil, fault.Newf(fault.Exists, "volume create", q.Name, "there is a volume with this name; choose another")
	}
	return &control.Volume{ID: ident.VolumeID{0x33}, Name: q.Name, SizeBytes: q.SizeBytes, BlockSize: q.BlockSize,
		WriteCache: q.WriteCache, ReplicasWanted: q.Replicas, ReplicasPresent: 1, Health: control.HealthDegraded,
		HealthDetail: "1 of 3", CheckpointAgeSeconds: -1}, nil
}

func (p *fixedPool) ResizeVolume(_ context.Context, name string, n int64) (*control.Volume, error) {
	v := fixedVolumes()[0]
	v.SizeBytes = n
	return &v, nil
}

func (p *fixedPool) DeleteVolume(context.Context, string) error { return nil }

func (p *fixedPool) AttachVolume(_ context.Context, name string, takeover bool) (*control.Volume, error) {
	if !takeover {
		return nil, fault.Newf(fault.Busy, "volume attach", name, "node-two has it in use; see --takeover")
	}
	return &fixedVolumes()[0], nil
}

func (p *fixedPool) Export(_ context.Context, name string) (*control.Export, error) {
	e := &control.Export{Volume: name, Target: "iqn.2026-11.storage.gabion:gabion:" + name, Portals: []string{"127.0.0.1:3260"}}
	if name == "pg" {
		e.Initiators, e.CHAPUser = []string{"iqn.2026-11.test:db"}, "alice"
	}
	return e, nil
}

func (p *fixedPool) SetExport(ctx context.Context, name string, q control.SetExport) (*control.Export, error) {
	e, err := p.Export(ctx, name)
	if q.Initiators != nil {
		e.Initiators = q.Initiators
	}
	if q.CHAP != nil {
		e.CHAPUser = q.CHAP.User
	}
	if q.Mutual != nil {
		e.MutualUser = q.Mutual.User
	}
	return e, err
}

func TestEveryKindOfErrorHasAWayOut(t *testing.T) {
	for _, k := range fault.Kinds() {
		if wayOut[k] == "" {
			t.Errorf("kind %v has no way out", k)
		}
		if got := explain(fault.New(k, "op", "thing", nil)); !strings.HasSuffix(got, wayOut[k]) {
			t.Errorf("%v: %q", k, got)
		}
	}
	if got := explain(fault.New(fault.Busy, "op", "thing", errors.New("why"))); got != "op thing: why" {
		t.Errorf("an error with a sentence became %q", got)
	}
}

func TestErrorsStayOnOneLine(t *testing.T) {
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"volume", "show", "a\nb", "--dir", t.TempDir()}, strings.NewReader(""), &out, &errs)
	if code != exitFailed || strings.Count(errs.String(), "\n") != 1 || out.Len() != 0 {
		t.Errorf("code %d, stdout %q, stderr %q", code, &out, &errs)
	}
}

func TestStateDirOrder(t *testing.T) {
	t.Setenv("GABION_DIR", "/from/env")
	if got := (&app{dir: "/from/flag"}).stateDir(); got != "/from/flag" {
		t.Errorf("--dir: %s", got)
	}
	if got := (&app{}).stateDir(); got != "/from/env" {
		t.Errorf("GABION_DIR: %s", got)
	}
	t.Setenv("GABION_DIR", "")
	t.Setenv("HOME", "/home/u")
	t.Setenv("XDG_STATE_HOME", "")
	want := "/home/u/.local/state/gabion"
	if os.Getuid() == 0 {
		want = rootDir
	}
	if got := (&app{}).stateDir(); got != want {
		t.Errorf("default: %s; want %s", got, want)
	}
}
