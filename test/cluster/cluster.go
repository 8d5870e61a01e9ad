package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cluster is a pool of nodes that this process runs.
type Cluster struct {
	Dir    string
	Binary string
	Env    []string
	Nodes  []*Node
}

// Add makes node number len(Nodes)+1 ("n1", "n2", …) known, without starting it.
func (c *Cluster) Add() *Node {
	name := fmt.Sprintf("n%d", len(c.Nodes)+1)
	n := &Node{Name: name, Dir: filepath.Join(c.Dir, name), Binary: c.Binary, Env: c.Env}
	c.Nodes = append(c.Nodes, n)
	return n
}

// JoinVia has n join the pool of other at its next start. The token is used
// once: later starts find the pool in the node's own directory.
func (n *Node) JoinVia(other *Node) error {
	token, err := other.Do("pool", "token")
	if err != nil {
		return err
	}
	n.join, n.token = other.Info.Listen, token
	return nil
}

// Grow adds and starts a node; the first makes the pool, the others join it.
func (c *Cluster) Grow() (*Node, error) {
	n := c.Add()
	if len(c.Nodes) > 1 {
		if err := n.JoinVia(c.Nodes[0]); err != nil {
			return nil, err
		}
	}
	err := n.Start()
	n.join, n.token = "", ""
	return n, err
}

// Stop ends all nodes in the polite way.
func (c *Cluster) Stop() error {
	errs := make([]error, len(c.Nodes))
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		wg.Go(func() { errs[i] = n.Stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Node finds a node by its name or id, as status prints them.
func (c *Cluster) Node(nameOrID string) *Node {
	for _, n := range c.Nodes {
		if nameOrID != "" && (n.Name == nameOrID || n.Info.Node == nameOrID) {
			return n
		}
	}
	return nil
}

// Build compiles gabion with the given build tags into bin/ of the tree and
// returns the path. GABION_BIN names a binary to use instead when tags are empty.
func Build(tags string) (string, error) {
	if b := os.Getenv("GABION_BIN"); b != "" && tags == "" {
		return filepath.Abs(b)
	}
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	top := filepath.Dir(strings.TrimSpace(string(mod)))
	name := "gabion"
	if tags != "" {
		name += "-" + tags
	}
	out := filepath.Join(top, "bin", name)
	cmd := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", out, "./cmd/gabion")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, b)
	}
	return out, nil
}

var build = sync.OnceValues(func() (string, error) { return Build("") })

// Binary builds gabion once for each test process.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// New starts a pool of n nodes for a test and waits until all see each other.
// The nodes end with the test; one that then does not end on SIGTERM fails it.
// On failure the ends of the nodes' logs are printed.
func New(t testing.TB, n int) *Cluster {
	t.Helper()
	c := Empty(t)
	for range n {
		if _, err := c.Grow(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Nodes[0].Await(StartTimeout, Members(n)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Empty is New without nodes: the test adds them.
func Empty(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{Dir: WorkDir(t), Binary: Binary(t)}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("log of %s (%s):\n%s", n.Name, n.fate(), n.LogTail(40))
			}
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// WorkDir is a fresh directory on a real disk (GABION_RIG_DIR, else /var/tmp),
// removed after the test.
func WorkDir(t testing.TB) string {
	t.Helper()
	base := os.Getenv("GABION_RIG_DIR")
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "gabion-rig-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Need skips the test unless all commands are there, and root if asked for.
// In CI a skip is a failure; make test counts them.
func Need(t testing.TB, root bool, commands ...string) {
	t.Helper()
	if root && os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs %s: test/needs.sh installs it", c)
		}
	}
}

// CreateVolume makes a volume through node n and waits until every copy is there.
func (c *Cluster) CreateVolume(t testing.TB, n *Node, name, size string, args ...string) {
	t.Helper()
	if _, err := n.Do(append([]string{"volume", "create", name, "--size", size}, args...)...); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Await(30*time.Second, Redundant(name)); err != nil {
		t.Fatal(err)
	}
}
