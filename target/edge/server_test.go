package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// talk is a protocol of lines: "go" begins a session, which echoes lines; "bad"
// breaks the protocol, "bye" ends it, "hold" makes the session wait for release.
type talk struct {
	*Server[*session]
	release chan struct{}
	ended   chan error
	began   chan *session
	logged  *lines
	addr    string
}

type session struct {
	nc   net.Conn
	mu   sync.Mutex
	why  error
	held chan struct{} // closed when it waits
}

func (s *session) Kill(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = why
	}
	s.nc.Close()
}

// lines is a log kept as text.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newTalk(t *testing.T, most int) *talk {
	t.Helper()
	k := &talk{release: make(chan struct{}), ended: make(chan error, 64), began: make(chan *session, 64), logged: &lines{}}
	log := slog.New(slog.NewTextHandler(k.logged, nil))
	k.Server = NewServer(Config{Protocol: "talk", Log: log, ConnectionsMax: most}, k.serve)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- k.Serve(l) }()
	t.Cleanup(func() {
		k.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

func (k *talk) serve(c *Conn[*session]) (err error) {
	defer func() { k.ended <- err }()
	var s *session
	for {
		line, err := readLine(c.Socket)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && k.Stopping():
			return ErrDrain
		case err != nil:
			return err
		case line == "bad":
			return fault.Newf(fault.Invalid, "talk", "", "that is bad")
		case line == "bye":
			return errors.New("bye")
		case line == "hold":
			close(s.held)
			<-k.release
			return nil
		case line == "go" && !c.Choose():
			return io.EOF
		case line == "go":
			s = &session{nc: c.Socket, held: make(chan struct{})}
			c.Begin(s)
			k.began <- s
		}
		fmt.Fprintln(c.Socket, line)
	}
}

// readLine reads without looking ahead.
func readLine(r io.Reader) (string, error) {
	var b strings.Builder
	for p := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, p); err != nil {
			return "", err
		}
		if p[0] == '\n' {
			return b.String(), nil
		}
		b.WriteByte(p[0])
	}
}

// dial connects and says some lines, each of which is answered.
func (k *talk) dial(t *testing.T, say ...string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", k.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	for _, line := range say {
		fmt.Fprintln(nc, line)
		if back, err := readLine(nc); err != nil || back != line {
			t.Fatalf("%q, %v", back, err)
		}
	}
	return nc
}

// gone waits until the server hangs up.
func gone(t *testing.T, nc net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, nc)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server does not hang up")
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func TestNewcomersReplaceWhoNegotiatesLongest(t *testing.T) {
	k := newTalk(t, 3)
	session := k.dial(t, "go")
	first, second := k.dial(t, "a"), k.dial(t, "b")
	third := k.dial(t, "c")
	gone(t, first)
	<-k.ended
	fmt.Fprintln(second, "go")
	fmt.Fprintln(third, "go")
	if a, err := readLine(second); a != "go" || err != nil {
		t.Error(a, err)
	}
	if a, err := readLine(third); a != "go" || err != nil {
		t.Error(a, err)
	}
	for range 2 { // nobody can be evicted: refused, and told of once
		gone(t, k.dial(t))
	}
	n, open := k.Snapshot()
	if n != (Counts{Connections: 3, Accepted: 6, Refused: 3}) || len(open) != 3 {
		t.Errorf("%+v, %d sessions", n, len(open))
	}
	if c := strings.Count(k.logged.String(), "talk connections are refused"); c != 1 {
		t.Errorf("%d lines\n%s", c, k.logged)
	}
	session.Close()
	until(t, "one has left", func() bool { n, _ := k.Snapshot(); return n.Connections == 2 })
	k.dial(t, "go")
}

// Who was evicted while it negotiated does not get its session.
func TestEvictedConnectionIsNotChosen(t *testing.T) {
	k := newTalk(t, 1)
	a, b := net.Pipe()
	defer b.Close()
	c := &Conn[*session]{Socket: a, srv: k.Server}
	k.mu.Lock()
	k.conns[c] = struct{}{}
	k.evict()
	k.mu.Unlock()
	if c.Choose() {
		t.Error("it was chosen")
	}
}

func TestEndsAreLogged(t *testing.T) {
	k := newTalk(t, 10)
	for _, line := range []string{"bad", "bye", ""} {
		nc := k.dial(t, "go")
		if line == "" {
			nc.Close()
		} else {
			fmt.Fprintln(nc, line)
			gone(t, nc)
		}
		<-k.ended
	}
	until(t, "malformed input is counted", func() bool { n, _ := k.Snapshot(); return n.Malformed == 1 && n.Connections == 0 })
	if s := k.logged.String(); strings.Count(s, "\n") != 2 || !strings.Contains(s, `"talk connection ended by malformed input" peer=127.0.0.1:`) ||
		!strings.Contains(s, `msg="talk connection ended" peer=127`) || !strings.Contains(s, "error=bye") {
		t.Error(s)
	}
}

func TestShutdownWaitsForWhatIsUnderWay(t *testing.T) {
	k := newTalk(t, 10)
	idle, half, busy := k.dial(t, "go"), k.dial(t), k.dial(t, "go")
	<-k.began
	held := <-k.began
	fmt.Fprintln(busy, "hold")
	<-held.held
	done := make(chan error, 1)
	go func() { done <- k.Shutdown(context.Background()) }()
	gone(t, idle)
	gone(t, half)
	select {
	case err := <-done:
		t.Fatal("shut down while a session was busy: ", err)
	default:
	}
	if nc, err := net.Dial("tcp", k.addr); err == nil {
		gone(t, nc)
		nc.Close()
	}
	close(k.release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if k.logged.String() != "" {
		t.Error(k.logged)
	}
}

func TestShutdownCutsWhenItsContextEnds(t *testing.T) {
	k := newTalk(t, 10)
	busy := k.dial(t, "go")
	held := <-k.began
	fmt.Fprintln(busy, "hold")
	<-held.held
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	gone(t, busy)
	held.mu.Lock()
	if !errors.Is(held.why, ErrDrain) {
		t.Error(held.why)
	}
	held.mu.Unlock()
	close(k.release)
}

func TestHangUpSparesSessions(t *testing.T) {
	k := newTalk(t, 10)
	session, half := k.dial(t, "go"), k.dial(t, "a")
	k.Stop()
	k.HangUp()
	gone(t, half)
	fmt.Fprintln(session, "still here")
	if a, err := readLine(session); a != "still here" || err != nil {
		t.Error(a, err)
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if k.Wait(short) {
		t.Error("a session is open")
	}
	session.Close()
	if !k.Wait(context.Background()) {
		t.Error("nothing is open")
	}
}

// A listener that fails for a moment is not given up, one that is broken is.
func TestListenerThatFails(t *testing.T) {
	k := newTalk(t, 10)
	l := &failing{errs: []error{&net.OpError{Op: "accept", Err: errors.New("out of files")}, errors.New("broken")}}
	err := k.Serve(l)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "broken") {
		t.Error(err)
	}
	if !strings.Contains(k.logged.String(), "cannot accept an talk connection") {
		t.Error(k.logged)
	}
}

type failing struct{ errs []error }

func (l *failing) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}
func (l *failing) Close() error   { return nil }
func (l *failing) Addr() net.Addr { return &net.TCPAddr{} }
