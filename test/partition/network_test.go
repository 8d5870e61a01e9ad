// Package partition has the rigs that cut the network between nodes. Each node
// lives in a network namespace of its own, behind one bridge; the clients are in
// the namespace of the bridge, from where every node is reached at all times.
package partition

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gabion-storage/gabion/test/cluster"
)

// inside marks the process that has namespaces of its own.
const inside = "GABION_PARTITION_INSIDE"

// TestMain runs the tests in a process with a network and mounts of its own:
// whatever becomes of it, nothing of them stays on the machine.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	err := cluster.StartCmd(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	case err != nil:
		fmt.Fprintln(os.Stderr, "partition: no namespaces:", err)
		os.Exit(1)
	}
}

// sh runs a command line that must succeed.
func sh(t *testing.T, line string) {
	t.Helper()
	f := strings.Fields(line)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// pool starts a pool of n nodes, each in a namespace of its name.
func pool(t *testing.T, n int) *cluster.Cluster {
	t.Helper()
	cluster.Need(t, true, "ip", "iptables")
	// "ip netns" keeps its names in /run/netns, which is here for this process.
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("gabion", "/run/netns", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip link set lo up")
	sh(t, "ip link add pool type bridge")
	sh(t, "ip addr add 10.99.0.254/24 dev pool")
	sh(t, "ip link set pool up")
	t.Cleanup(func() { // after the nodes' end
		for i := range n {
			sh(t, fmt.Sprintf("ip netns delete n%d", i+1))
		}
		sh(t, "ip link delete pool")
		if err := syscall.Unmount("/run/netns", syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := cluster.Empty(t)
	for i := range n {
		x := c.Add()
		sh(t, "ip netns add "+x.Name)
		sh(t, fmt.Sprintf("ip link add v%d type veth peer name eth0 netns %s", i, x.Name))
		sh(t, fmt.Sprintf("ip link set v%d master pool up", i))
		sh(t, fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", x.Name, address(i)))
		sh(t, fmt.Sprintf("ip -n %s link set eth0 up", x.Name))
		sh(t, fmt.Sprintf("ip -n %s link set lo up", x.Name))
		x.Prefix = []string{"ip", "netns", "exec", x.Name}
		x.Info = cluster.RunInfo{Listen: address(i) + ":7000", NBD: address(i) + ":10809",
			ISCSI: address(i) + ":3260", HTTP: address(i) + ":8080"}
		if i > 0 {
			if err := x.JoinVia(c.Nodes[0]); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Nodes[0].Await(cluster.StartTimeout, cluster.Members(n)); err != nil {
		t.Fatal(err)
	}
	return c
}

func address(i int) string { return fmt.Sprintf("10.99.0.%d", i+1) }

func host(n *cluster.Node) string { return n.Info.Listen[:strings.IndexByte(n.Info.Listen, ':')] }

// mute drops what a sends to b.
func mute(t *testing.T, a, b *cluster.Node) {
	t.Helper()
	sh(t, fmt.Sprintf("ip netns exec %s iptables -w -A OUTPUT -d %s -j DROP", a.Name, host(b)))
}

// cut lets nothing through between a and each of the others.
func cut(t *testing.T, a *cluster.Node, others ...*cluster.Node) {
	t.Helper()
	for _, b := range others {
		mute(t, a, b)
		mute(t, b, a)
	}
}

// heal undoes every cut.
func heal(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		sh(t, fmt.Sprintf("ip netns exec %s iptables -w -F", n.Name))
	}
}
