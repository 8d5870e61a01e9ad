package nbd_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves e on a TCP port of its own until the test ends.
func start(t testing.TB, e target.Exports, set func(*nbd.Config)) (*nbd.Server, string) {
	t.Helper()
	cfg := nbd.Config{Exports: e}
	if set != nil {
		set(&cfg)
	}
	s, err := nbd.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, l)
	return s, l.Addr().String()
}

func serve(t testing.TB, s *nbd.Server, l net.Listener) {
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error("Serve: ", err)
		}
	})
}

// startUnix serves e on a unix socket and returns its path.
func startUnix(t testing.TB, e target.Exports, set func(*nbd.Config)) (*nbd.Server, string) {
	t.Helper()
	cfg := nbd.Config{Exports: e}
	if set != nil {
		set(&cfg)
	}
	s, err := nbd.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, l)
	return s, path
}

// need skips the test when a program is missing, and fails it in CI, where the
// programs are part of the setting.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI must have it", p)
			}
			t.Skipf("%s is not installed", p)
		}
	}
}

// until waits for a condition that nothing announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("after 10 s still not: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// logLines is a slog handler's output, kept by line.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// count tells how many lines contain s.
func (l *logLines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.b.String())
}
