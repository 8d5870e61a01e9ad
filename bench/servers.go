package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// server is one measured server that runs.
type server struct {
	name  string
	uri   string
	iscsi string // address of its iSCSI portal
	pids  []int
	stop  func()
	log   func() string
}

// kinds of servers, in the order of the report. start returns nil when the
// server is not to be had here.
var kinds = []struct {
	name  string
	start func(o options, dir string) (*server, error)
}{
	{"gabion-3x3", func(o options, dir string) (*server, error) { return startGabion(o, dir, 3) }},
	{"gabion-1x1", func(o options, dir string) (*server, error) { return startGabion(o, dir, 1) }},
	{"before-3x3", func(o options, dir string) (*server, error) { return startBefore(o, dir, 3) }},
	{"before-1x1", func(o options, dir string) (*server, error) { return startBefore(o, dir, 1) }},
	{"nbdkit-file", startFile},
	{"nbdkit-memory", startMemory},
	{"floor-3", func(o options, dir string) (*server, error) { return startFloor(dir, 3) }},
	{"floor-1", func(o options, dir string) (*server, error) { return startFloor(dir, 1) }},
}

func startGabion(o options, dir string, nodes int) (*server, error) {
	binary, err := filepath.Abs(o.gabion)
	if err != nil {
		return nil, err
	}
	c := &cluster.Cluster{Dir: dir, Binary: binary}
	s := &server{stop: func() { c.Stop() }, log: func() (all string) {
		for _, n := range c.Nodes {
			all += n.LogTail(10) + "\n"
		}
		return all
	}}
	for range nodes {
		n, err := c.Grow()
		if err != nil {
			s.stop()
			return nil, err
		}
		s.pids = append(s.pids, n.PID())
	}
	n := c.Nodes[0]
	_, err = n.Await(cluster.StartTimeout, cluster.Members(nodes))
	if err == nil {
		_, err = n.Do("volume", "create", "bench", "--size", o.size, "--replicas", fmt.Sprint(nodes))
	}
	if err == nil {
		_, err = n.Await(cluster.StartTimeout, cluster.Redundant("bench"))
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	s.uri, s.iscsi = "nbd://"+n.Info.NBD+"/bench", n.Info.ISCSI
	return s, nil
}

// startBefore runs the binary of -before, if there is one.
func startBefore(o options, dir string, nodes int) (*server, error) {
	if o.before == "" {
		return nil, nil
	}
	o.gabion = o.before
	return startGabion(o, dir, nodes)
}

func startFile(o options, dir string) (*server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "disk")
	if out, err := exec.Command("fallocate", "-l", o.size, file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("fallocate: %w: %s", err, out)
	}
	return startNbdkit("file", file)
}

func startMemory(o options, _ string) (*server, error) { return startNbdkit("memory", o.size) }

func startNbdkit(args ...string) (*server, error) {
	addr, err := cluster.FreeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	return startAll("nbd://"+addr+"/", addr, exec.Command("nbdkit", append([]string{"-f", "-i", "127.0.0.1", "-p", port}, args...)...))
}

// startFloor builds and runs the probe in $FLOOR with n journals.
func startFloor(dir string, n int) (*server, error) {
	source := os.Getenv("FLOOR")
	if source == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	probe := filepath.Join(dir, "floor")
	build := exec.Command("go", "build", "-o", probe, ".")
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	var cmds []*exec.Cmd
	var peers []string
	for i := range n {
		addr, err := cluster.FreeAddr()
		if err != nil {
			return nil, err
		}
		peers = append(peers, addr)
		cmds = append(cmds, exec.Command(probe, "-journal", addr, "-path", filepath.Join(dir, fmt.Sprint("journal", i))))
	}
	addr, err := cluster.FreeAddr()
	if err != nil {
		return nil, err
	}
	cmds = append(cmds, exec.Command(probe, "-gateway", addr, "-peers", strings.Join(peers, ",")))
	return startAll("nbd://"+addr+"/", addr, cmds...)
}

// startAll starts the commands one after the other, each once the one before
// listens where its successor expects it, and waits until addr answers.
func startAll(uri, addr string, cmds ...*exec.Cmd) (*server, error) {
	s := &server{uri: uri, log: func() string { return "" }}
	s.stop = func() {
		for _, c := range cmds {
			if c.Process != nil {
				c.Process.Kill()
				c.Wait()
			}
		}
	}
	for _, c := range cmds {
		listen := addr
		for i, a := range c.Args {
			if a == "-journal" {
				listen = c.Args[i+1]
			}
		}
		if err := cluster.StartCmd(c); err != nil {
			s.stop()
			return nil, err
		}
		s.pids = append(s.pids, c.Process.Pid)
		if err := waitListen(listen); err != nil {
			s.stop()
			return nil, err
		}
	}
	return s, nil
}

// waitListen waits until somebody listens on addr, without talking to him.
func waitListen(addr string) error {
	for end := time.Now().Add(60 * time.Second); ; {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil
		}
		l.Close()
		if time.Now().After(end) {
			return fmt.Errorf("nobody listens on %s", addr)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
