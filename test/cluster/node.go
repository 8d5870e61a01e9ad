// Package cluster runs real gabion processes on loopback: for the rigs, the
// demo and the benchmark. Nothing in it knows how gabion works inside: it
// starts, signals and watches processes and talks to them as an operator does.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Limits of waiting, all far above what a healthy node needs.
const (
	StartTimeout = 60 * time.Second
	StopTimeout  = 30 * time.Second
	CallTimeout  = 60 * time.Second
	pollInterval = 20 * time.Millisecond
)

// RunInfo is what a node writes to DIR/run.json once it serves.
type RunInfo struct {
	Listen string `json:"listen"`
	NBD    string `json:"nbd"`
	ISCSI  string `json:"iscsi"`
	HTTP   string `json:"http"`
	PID    int    `json:"pid"`
	Node   string `json:"node"`
	Name   string `json:"name"`
}

// Node is one gabion process and its directory. Methods are not to be called
// concurrently, except CLI, HTTP, PID and the readers of Info.
type Node struct {
	Name   string
	Dir    string
	Bricks []string // brick directories; empty: gabion's default inside Dir
	Args   []string // further arguments of node run
	Env    []string // further environment
	Prefix []string // command that becomes gabion, in a namespace say: ip netns exec NAME
	Binary string
	Info   RunInfo // of the last start; its addresses are asked for again on the next

	join, token string
	cmd         *exec.Cmd
	exited      chan struct{} // closed when the process is gone
	exitErr     error
}

// starter is the one thread that forks nodes. They are tied to its life by
// Pdeathsig, and an ordinary thread of Go may end at any time.
var starter = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// StartCmd starts cmd so that it dies with this process and gets no signals
// meant for this process's terminal.
func StartCmd(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error)
	starter() <- func() { done <- cmd.Start() }
	return <-done
}

var handedOut sync.Map // addresses that FreeAddr gave away in this process

// FreeAddr finds a loopback address nobody listens on, below the range that
// outgoing connections use: a node that is down keeps its address free.
func FreeAddr() (string, error) {
	for range 200 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(20000)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		if _, again := handedOut.LoadOrStore(addr, true); !again {
			return addr, nil
		}
	}
	return "", errors.New("no free port on loopback")
}

// Begin starts the process without waiting for it.
func (n *Node) Begin() error {
	if n.Alive() {
		return fmt.Errorf("node %s runs already", n.Name)
	}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return err
	}
	for _, a := range []*string{&n.Info.Listen, &n.Info.NBD, &n.Info.ISCSI, &n.Info.HTTP} {
		if *a != "" {
			continue
		}
		var err error
		if *a, err = FreeAddr(); err != nil {
			return err
		}
	}
	args := []string{"node", "run", "--dir", n.Dir, "--name", n.Name,
		"--listen", n.Info.Listen, "--nbd", n.Info.NBD, "--iscsi", n.Info.ISCSI, "--http", n.Info.HTTP}
	for _, b := range n.Bricks {
		args = append(args, "--brick", b)
	}
	if n.join != "" {
		args = append(args, "--join", n.join, "--token", n.token)
	}
	args = append(args, n.Args...)
	if err := os.Remove(n.runFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	argv := append(append(slices.Clone(n.Prefix), n.Binary), args...)
	n.cmd = exec.Command(argv[0], argv[1:]...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.Env = append(os.Environ(), n.Env...)
	if err := StartCmd(n.cmd); err != nil {
		log.Close()
		return err
	}
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		n.exitErr = cmd.Wait()
		log.Close()
		close(exited)
	}(n.cmd, n.exited)
	return nil
}

// Ready waits until the node says that it serves.
func (n *Node) Ready(ctx context.Context) error {
	for {
		var info RunInfo
		b, err := os.ReadFile(n.runFile())
		if err == nil && json.Unmarshal(b, &info) == nil && info.PID == n.PID() {
			n.Info = info
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("node %s ended: %v\n%s", n.Name, n.exitErr, n.LogTail(15))
		case <-ctx.Done():
			return fmt.Errorf("node %s is not ready: %w\n%s", n.Name, ctx.Err(), n.LogTail(15))
		case <-time.After(pollInterval):
		}
	}
}

// Start is Begin and Ready.
func (n *Node) Start() error {
	if err := n.Begin(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), StartTimeout)
	defer cancel()
	return n.Ready(ctx)
}

func (n *Node) runFile() string { return filepath.Join(n.Dir, "run.json") }

// LogFile is where the process's output goes; appended to by each start.
func (n *Node) LogFile() string { return filepath.Join(filepath.Dir(n.Dir), n.Name+".log") }

// PID of the running process, or 0.
func (n *Node) PID() int {
	if n.cmd == nil || n.cmd.Process == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Alive tells whether the process exists (a stopped one does).
func (n *Node) Alive() bool {
	if n.exited == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// Exited is closed when the process is gone.
func (n *Node) Exited() <-chan struct{} { return n.exited }

// fate says in words whether the process runs or how it ended.
func (n *Node) fate() string {
	switch {
	case n.exited == nil:
		return "never started"
	case n.Alive():
		return "runs"
	case n.exitErr == nil:
		return "ended with success"
	}
	return n.exitErr.Error()
}

// Signal sends sig to the process.
func (n *Node) Signal(sig os.Signal) error {
	if !n.Alive() {
		return fmt.Errorf("node %s does not run", n.Name)
	}
	return n.cmd.Process.Signal(sig)
}

// Kill is kill -9; it returns when the process is gone.
func (n *Node) Kill() error {
	if !n.Alive() {
		return nil
	}
	if err := n.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-n.exited
	return nil
}

// Pause freezes the process; it returns once no thread of it runs any more.
func (n *Node) Pause() error {
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for end := time.Now().Add(StopTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if frozen(n.PID()) {
			return nil
		}
	}
	return fmt.Errorf("node %s does not freeze", n.Name)
}

// frozen tells whether every thread of a process is stopped.
func frozen(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if i := bytes.LastIndexByte(b, ')'); err != nil || i < 0 || !bytes.HasPrefix(b[i:], []byte(") T")) {
			return false
		}
	}
	return len(stats) > 0
}

// Resume thaws it.
func (n *Node) Resume() error { return n.Signal(syscall.SIGCONT) }

// Stop asks the process to end, waits, and tells how it ended: an exit code
// other than 0 is an error, and so is one that had to be killed.
func (n *Node) Stop() error {
	if !n.Alive() {
		return nil
	}
	n.Signal(syscall.SIGCONT)
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-n.exited:
	case <-time.After(StopTimeout):
		n.Signal(syscall.SIGQUIT)
		select {
		case <-n.exited:
		case <-time.After(2 * time.Second):
			n.Kill()
		}
		return fmt.Errorf("node %s did not end within %v of SIGTERM\n%s", n.Name, StopTimeout, n.LogTail(60))
	}
	if n.exitErr != nil {
		return fmt.Errorf("node %s ended badly: %w\n%s", n.Name, n.exitErr, n.LogTail(15))
	}
	return nil
}

// LogTail is the last lines of the log.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.LogFile())
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Result of one command.
type Result struct {
	Out, Err string
	Code     int
}

// CLI runs gabion --dir DIR with args.
func (n *Node) CLI(args ...string) Result {
	return Run(n.Binary, n.Env, append([]string{"--dir", n.Dir}, args...)...)
}

// Run runs a gabion command to its end. Code is -1 when it could not run or
// did not end within CallTimeout.
func Run(binary string, env []string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := Result{Out: out.String(), Err: errs.String(), Code: cmd.ProcessState.ExitCode()}
	if cmd.ProcessState == nil {
		r.Err += err.Error()
	}
	return r
}

// Do is CLI for commands that must succeed; it returns the output, trimmed.
func (n *Node) Do(args ...string) (string, error) {
	r := n.CLI(args...)
	if r.Code != 0 {
		return "", fmt.Errorf("gabion %s: exit %d: %s", strings.Join(args, " "), r.Code, strings.TrimSpace(r.Err))
	}
	return strings.TrimSpace(r.Out), nil
}

// CPU is the processor time the process has used, user and system.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("strange stat of process %d", pid)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	// Linux has counted in hundredths of a second on every machine for decades.
	return time.Duration(user+system) * (time.Second / 100), errors.Join(err1, err2)
}
