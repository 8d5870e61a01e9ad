package attach

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/internal/control"
)

const (
	// askMax bounds the wait for the local node's answer.
	askMax = 5 * time.Second
	// askPause is the shortest time between two questions, askAgain the longest:
	// nodes come and go.
	askPause, askAgain = time.Second, 10 * time.Minute
	// nodesMax bounds the nodes that are remembered.
	nodesMax = 64
)

// nodes knows where the volume may be had: what was given by hand, else what
// the local node says, else what it said when it was last asked.
type nodes struct {
	dir   string // of the local node
	given bool
	log   *slog.Logger
	// learnt is told of each new list.
	learnt func([]client.Node)

	mu     sync.Mutex
	known  []client.Node
	asked  time.Time
	asking bool
	wg     sync.WaitGroup
}

// list returns what is known, and has the local node asked behind the caller's back.
func (n *nodes) list() []client.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.given && !n.asking && time.Since(n.asked) >= askPause {
		n.asking = true
		n.wg.Go(n.refresh)
	}
	return n.known
}

// refresh asks the local node now.
func (n *nodes) refresh() {
	n.mu.Lock()
	known := n.known
	n.mu.Unlock()
	found := ask(n.dir, known)
	n.mu.Lock()
	n.asking, n.asked = false, time.Now()
	changed := len(found) > 0 && !slices.Equal(found, n.known)
	if changed {
		n.known = found
	}
	n.mu.Unlock()
	if changed {
		n.log.Info("nodes learnt", "nodes", len(found))
		n.learnt(found)
	}
}

// ask lists the NBD addresses of the pool's nodes, those of the local node
// first; none if it does not answer. A node that is away keeps the address that
// is known: it is the others that must be found when it is back.
func ask(dir string, known []client.Node) []client.Node {
	ctx, cancel := context.WithTimeout(context.Background(), askMax)
	defer cancel()
	c := control.NewClient(dir)
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return nil
	}
	local := ""
	if l, err := c.LocalStatus(ctx); err == nil {
		local = l.Node.Name
	}
	return addresses(st, local, known)
}

// addresses makes the list from a status.
func addresses(st *control.Status, local string, known []client.Node) []client.Node {
	var out []client.Node
	for _, x := range st.Nodes {
		addr := reachable(x)
		if i := slices.IndexFunc(known, func(k client.Node) bool { return k.Name == x.Name }); addr == "" && x.NBD == "" && i >= 0 {
			addr = known[i].Addr
		}
		if addr != "" && len(out) < nodesMax {
			out = append(out, client.Node{Name: x.Name, Addr: addr})
		}
	}
	slices.SortStableFunc(out, func(a, b client.Node) int {
		return cmp.Compare(btoi(a.Name != local), btoi(b.Name != local))
	})
	return out
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// reachable is a node's NBD address for others. One that listens on every
// interface is reached where the other nodes reach it.
func reachable(n control.Node) string {
	host, port, err := net.SplitHostPort(n.NBD)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, _, err = net.SplitHostPort(n.Addr); err != nil {
			return ""
		}
	}
	return net.JoinHostPort(host, port)
}
