package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// Server is one PostgreSQL on a mount, reached through a socket beside it.
type Server struct {
	Data   string
	socket string
	log    string
	cred   *syscall.Credential
	cmd    *exec.Cmd
	exited chan struct{}
}

// settings keep it small and make it use the disk the hard way: checkpoints
// often, every page image in the log.
var settings = map[string]string{
	"listen_addresses": "", "shared_buffers": "32MB", "max_wal_size": "96MB", "checkpoint_timeout": "30s",
	"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum_naptime": "10s",
}

// NewServer describes a server whose data lies on m and whose socket and log
// lie in dir.
func NewServer(t testing.TB, m *Mount, dir string) *Server {
	t.Helper()
	s := &Server{Data: filepath.Join(m.Path, "data"), socket: filepath.Join(dir, "socket"), log: filepath.Join(dir, "postgres.log")}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	// The way to the data and the socket must be open to that user.
	for d := dir; len(d) > len("/var/tmp"); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	if err := os.MkdirAll(s.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(s.socket, 0o777)
	t.Cleanup(func() { s.Kill() })
	return s
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, Bin(name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	cmd.Env = append(os.Environ(), "PGHOST="+s.socket, "PGUSER=postgres", "PGDATABASE=postgres", "LC_ALL=C", "HOME="+s.socket)
	cmd.Dir = "/"
	return cmd
}

// Run runs one of PostgreSQL's programs against the server.
func (s *Server) Run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	out, err := s.command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// SQL runs a statement and returns its rows.
func (s *Server) SQL(statement string) (string, error) {
	return s.Run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement)
}

// Init makes the database cluster, with checksums on its pages.
func (s *Server) Init() error {
	if err := os.Mkdir(s.Data, 0o700); err != nil {
		return err
	}
	if s.cred != nil {
		if err := os.Chown(s.Data, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	_, err := s.Run("initdb", "-D", s.Data, "-U", "postgres", "-A", "trust", "--data-checksums", "--no-instructions")
	return err
}

// Start starts the server and waits until it answers, recovery included.
func (s *Server) Start() error {
	args := []string{"-D", s.Data, "-k", s.socket}
	for k, v := range settings {
		args = append(args, "-c", k+"="+v)
	}
	f, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	s.cmd = s.command(context.Background(), "postgres", args...)
	s.cmd.Stdout, s.cmd.Stderr = f, f
	if err := cluster.StartCmd(s.cmd); err != nil {
		return err
	}
	exited, cmd := make(chan struct{}), s.cmd
	s.exited = exited
	go func() { cmd.Wait(); close(exited) }()
	for end := time.Now().Add(commandTimeout); ; {
		if _, err := s.SQL("SELECT 1"); err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("postgres ended:\n%s", s.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("postgres does not answer:\n%s", s.LogTail())
		}
	}
}

// Stop is a fast shutdown with a checkpoint.
func (s *Server) Stop() error {
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.exited:
		return nil
	case <-time.After(commandTimeout):
		return errors.New("postgres does not stop")
	}
}

// Kill ends every process of the server at once.
func (s *Server) Kill() {
	if s.exited == nil {
		return
	}
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.exited
}

// LogTail is the end of the server's log.
func (s *Server) LogTail() string {
	b, _ := os.ReadFile(s.log)
	return string(b[max(0, len(b)-3000):])
}

// Commits is a session that inserts 1, 2, 3, … into a table, one commit each,
// and notes what was acknowledged and when.
type Commits struct {
	mu    sync.Mutex // guards below
	cond  *sync.Cond
	acked int
	pause time.Duration
	err   error

	cmd  *exec.Cmd
	in   io.WriteCloser
	errs bytes.Buffer
	done chan struct{}
	stop chan struct{}
}

// StartCommits makes the table and begins.
func (s *Server) StartCommits() (*Commits, error) {
	if _, err := s.SQL("CREATE TABLE IF NOT EXISTS ledger (n bigint PRIMARY KEY)"); err != nil {
		return nil, err
	}
	c := &Commits{done: make(chan struct{}), stop: make(chan struct{})}
	c.cond = sync.NewCond(&c.mu)
	c.cmd = s.command(context.Background(), "psql", "-qAtX", "-v", "ON_ERROR_STOP=1")
	c.cmd.Stderr = &c.errs
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cluster.StartCmd(c.cmd); err != nil {
		return nil, err
	}
	c.in = in
	go c.loop(bufio.NewReader(out))
	return c, nil
}

func (c *Commits) loop(out *bufio.Reader) {
	defer close(c.done)
	for n := 1; ; n++ {
		select {
		case <-c.stop:
			c.in.Close()
			c.cmd.Wait()
			return
		default:
		}
		began := time.Now()
		fmt.Fprintf(c.in, "INSERT INTO ledger VALUES (%d) RETURNING n;\n", n)
		line, err := out.ReadString('\n')
		took := time.Since(began)
		c.mu.Lock()
		c.pause = max(c.pause, took)
		if err == nil && strings.TrimSpace(line) != strconv.Itoa(n) {
			err = fmt.Errorf("strange answer %q", line)
		}
		if err == nil {
			c.acked = n
		} else {
			c.err = fmt.Errorf("commit %d after %v: %w", n, took, err)
		}
		c.mu.Unlock()
		c.cond.Broadcast()
		if err != nil {
			c.cmd.Process.Kill()
			c.cmd.Wait()
			return
		}
	}
}

// Acked is how many commits were acknowledged, the longest time that one
// took, and the error that ended the session, if one did.
func (c *Commits) Acked() (n int, pause time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked, c.pause, c.err
}

// More waits for n further commits.
func (c *Commits) More(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for goal := c.acked + n; c.acked < goal && c.err == nil; {
		c.cond.Wait()
	}
	return c.err
}

// Stop ends the session after the commit under way and returns how many were
// acknowledged.
func (c *Commits) Stop() int {
	close(c.stop)
	<-c.done
	n, _, _ := c.Acked()
	return n
}

// Missing tells which of the commits 1..acked the database does not have.
func (s *Server) Missing(acked int) error {
	out, err := s.SQL(fmt.Sprintf("SELECT g FROM generate_series(1, %d) g WHERE NOT EXISTS "+
		"(SELECT FROM ledger WHERE n = g) LIMIT 10", acked))
	if err != nil {
		return err
	}
	if out != "" {
		return fmt.Errorf("LOST: of %d acknowledged commits these are gone: %s", acked, strings.ReplaceAll(out, "\n", " "))
	}
	return nil
}

// Bench is a pgbench in the background.
type Bench struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan error
}

// StartBench fills the tables of pgbench and lets clients work until Stop.
func (s *Server) StartBench(scale, clients int) (*Bench, error) {
	if _, err := s.Run("pgbench", "-i", "-q", "-s", strconv.Itoa(scale)); err != nil {
		return nil, err
	}
	b := &Bench{done: make(chan error, 1)}
	b.cmd = s.command(context.Background(), "pgbench", "-n", "-c", strconv.Itoa(clients), "-T", "3600")
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.out
	if err := cluster.StartCmd(b.cmd); err != nil {
		return nil, err
	}
	go func() { b.done <- b.cmd.Wait() }()
	return b, nil
}

// Stop ends it; an error when it had ended by itself, which it does when a
// client meets an error.
func (b *Bench) Stop() error {
	select {
	case err := <-b.done:
		return fmt.Errorf("pgbench ended: %v: %s", err, b.out.String())
	default:
	}
	b.cmd.Process.Kill()
	<-b.done
	if strings.Contains(b.out.String(), "aborted") {
		return fmt.Errorf("a client of pgbench met an error: %s", b.out.String())
	}
	return nil
}

// Check has PostgreSQL look at all its own data: indexes against tables while
// it runs, then, stopped, the checksum of every page.
func (s *Server) Check() error {
	if _, err := s.Run("pg_amcheck", "--install-missing", "--heapallindexed", "postgres"); err != nil {
		return err
	}
	if err := s.Stop(); err != nil {
		return err
	}
	_, err := s.Run("pg_checksums", "--check", "-D", s.Data)
	return err
}
