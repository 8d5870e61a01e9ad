// Package node puts a gabion node together: Core is everything below sockets
// and files, Run adds those.
package node

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/exporter"
	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/gentle"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/pki"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/nbd"
)

// Config is what node run is given. An empty NBD, ISCSI or HTTP switches that off.
type Config struct {
	Dir, Listen, NBD, ISCSI, HTTP, Name string
	Bricks                              []string // directories; none: one inside Dir
	Zone, Rack                          string
	Witness                             bool // vote and keep no data
	Join, Token                         string
	NBDSecurity                         NBDSecurity
	Log                                 *slog.Logger
	Version                             string
}

// drainMax bounds the orderly end of NBD sessions, and of iSCSI sessions.
const drainMax = 5 * time.Second

type openBrick struct {
	b    *brick.Brick
	path string
}

// Node is a running node. It implements control.Daemon.
type Node struct {
	*Core
	cfg     Config
	dir     *dir
	id      *pki.Identity
	poolID  ident.PoolID
	name    string
	boot    uint64
	mesh    *link.Mesh
	bricks  []openBrick
	nbd     *nbd.Server
	nbdHow  nbdHow
	iscsi   *iscsi.Server
	targets *targets
	exp     *exporter.Exporter
	run     run
	listen  string // address of the mesh
	core    atomic.Pointer[Core]

	stallMax  time.Duration                     // how long a disk may take; 0: brick.StallMaxDefault
	newFS     func(path string) (vfs.FS, error) // the disk of a brick; nil: the machine's
	segment   int64                             // of a journal, in bytes; 0: the default of a brick
	readmitMu sync.Mutex                        // one brick is readmitted at a time; taken before asideMu

	asideMu sync.Mutex // guards bricks, and dir.mem once the bricks are being opened
}

// Run runs a node until ctx ends. An empty Dir makes a new pool, or joins one;
// a Dir of earlier resumes it. Errors at the start name what is wrong and
// change nothing: Busy (directory or port in use), Denied (token, permissions,
// a brick of another pool), Corrupt (damaged files), Invalid, Unavailable
// (nobody to join). A brick that is damaged, or breaks, is set aside; the node runs
// on without it, even if it is the only one.
func Run(ctx context.Context, cfg Config) error {
	n := &Node{cfg: cfg}
	if n.cfg.Log == nil {
		n.cfg.Log = slog.New(slog.DiscardHandler)
	}
	defer n.close()
	if err := n.start(ctx); err != nil {
		return err
	}
	n.cfg.Log.Info("node ready", "node", n.Self.Short(), "name", n.name, "pool", n.poolID.Short(),
		"listen", n.run.Listen, "nbd", n.run.NBD, "iscsi", n.run.ISCSI, "http", n.run.HTTP, "boot", n.boot, "dir", n.dir.path)
	<-ctx.Done()
	n.cfg.Log.Info("node stops")
	return nil
}

func (n *Node) start(ctx context.Context) error {
	var err error
	if n.dir, err = openDir(n.cfg.Dir); err != nil {
		return err
	}
	// Listeners first: a port in use must be told before anything is made.
	probe, err := listen("listen", n.cfg.Listen, n.dir.mem.Listen)
	if err != nil {
		return err
	}
	n.listen = probe.Addr().String()
	probe.Close() // the mesh opens it again
	if n.nbdHow, err = prepareNBD(n.cfg.NBD, n.cfg.NBDSecurity); err != nil {
		return err
	}
	var out outside
	for _, x := range []struct {
		what, addr, last string
		l                *net.Listener
	}{
		{"nbd", n.nbdHow.first, n.dir.mem.NBD, &out.nbd},
		{"iscsi", n.cfg.ISCSI, n.dir.mem.ISCSI, &out.iscsi},
		{"http", n.cfg.HTTP, n.dir.mem.HTTP, &out.http},
	} {
		if *x.l, err = optionalListen(x.what, x.addr, x.last); err != nil {
			break
		}
	}
	if err == nil {
		err = n.build(ctx, out)
	}
	if err != nil {
		closeAll(append(n.nbdHow.more, out.nbd, out.iscsi, out.http)...)
	}
	return err
}

// outside is where clients find the node; nil for what is off.
type outside struct{ nbd, iscsi, http net.Listener }

func optionalListen(what, addr, last string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	return listen(what, addr, last)
}

func closeAll(ls ...net.Listener) {
	for _, l := range ls {
		if l != nil {
			l.Close()
		}
	}
}

func addrOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	if a := l.Addr(); a.Network() == "unix" {
		return unixPrefix + a.String()
	}
	return l.Addr().String()
}

func (n *Node) build(ctx context.Context, out outside) error {
	first, seeds, err := n.identify(ctx)
	if err != nil {
		return err
	}
	if first && n.cfg.Witness {
		return fault.Newf(fault.Invalid, "node run", "--witness", "a pool begins on a node that keeps data; let the witness join it")
	}
	if n.boot, err = n.dir.nextBoot(); err != nil {
		return err
	}
	n.exp = exporter.New(n.sources())
	if err := n.openBricks(); err != nil {
		return err
	}
	if err := n.openMesh(); err != nil {
		return err
	}
	core, err := NewCore(CoreConfig{
		Pool: n.poolID, Name: n.name, Addr: advertised(n.mesh), Labels: n.labels(out.iscsi), Boot: n.boot, Witness: n.cfg.Witness,
		Transport: n.mesh, Gently: gentle.Run, Bricks: n.brickList(), BrickInfos: n.brickInfos, Scrub: n.dir.mem.Scrub,
		StateFile: n.dir.stateFile(), First: first, PoolName: "gabion",
		OnPeers: n.mesh.SetPeers, OnBanned: n.mesh.Ban, Log: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	n.Core = core
	n.core.Store(core)
	n.mesh.HandleCall(typeStatus, n.handleStatus)
	if err := n.newNBD(); err != nil {
		return err
	}
	if err := n.buildISCSI(); err != nil {
		return err
	}
	n.mesh.Start()
	peers := map[ident.NodeID]string{}
	for _, s := range seeds {
		peers[s.ID] = s.Addr
	}
	core.Meet(peers)
	if err := core.Start(ctx); err != nil {
		return err
	}
	return n.serve(out)
}

// serve opens the node to clients and operators and says where.
func (n *Node) serve(out outside) error {
	n.run = run{
		Listen: n.mesh.Addr(), NBD: addrOf(out.nbd), ISCSI: addrOf(out.iscsi), HTTP: addrOf(out.http),
		PID: os.Getpid(), Node: n.Self, Name: n.name,
	}
	m := &n.dir.mem
	m.Listen, m.NBD, m.ISCSI, m.HTTP = n.run.Listen, cmp.Or(n.run.NBD, m.NBD), cmp.Or(n.run.ISCSI, m.ISCSI), cmp.Or(n.run.HTTP, m.HTTP)
	if err := n.saveDir(); err != nil {
		return err
	}
	for _, l := range append(n.nbdHow.more, out.nbd) {
		if l == nil {
			continue
		}
		n.wg.Go(func() {
			if err := n.nbd.Serve(l); err != nil && n.ctx.Err() == nil {
				n.cfg.Log.Error("NBD server ended", "error", err)
			}
		})
	}
	if out.iscsi != nil {
		n.serveISCSI(out.iscsi)
	}
	if out.http != nil {
		n.wg.Go(func() {
			if err := n.exp.Serve(n.ctx, out.http); err != nil && n.ctx.Err() == nil {
				n.cfg.Log.Error("HTTP server ended", "error", err)
			}
		})
	}
	n.wg.Go(func() {
		if err := control.Serve(n.ctx, n.dir.path, n, n.cfg.Log); err != nil && n.ctx.Err() == nil {
			n.cfg.Log.Error("control socket ended", "error", err)
		}
	})
	return n.dir.saveRun(n.run)
}

// identify loads the node's identity, or makes or obtains one. first tells
// that this node has just made its pool.
func (n *Node) identify(ctx context.Context) (first bool, seeds []pki.Seed, err error) {
	d := n.dir
	pkiDir := d.file("pki")
	switch {
	case d.old:
		if n.id, err = pki.Load(pkiDir); err != nil {
			return false, nil, err
		}
		if n.id.Pool().String() != d.mem.Pool {
			return false, nil, fault.Newf(fault.Corrupt, "node run", pkiDir, "the certificates are of pool %s, the directory of pool %s", n.id.Pool().Short(), d.mem.Pool)
		}
		first = !d.mem.Joined && !d.has(stateName)
	case n.cfg.Join != "":
		if n.id, seeds, err = pki.Join(ctx, pki.JoinConfig{Dir: pkiDir, Addr: n.cfg.Join, Token: n.cfg.Token, Name: n.cfg.Name}); err != nil {
			return false, nil, err
		}
		d.mem.Joined = true
	case n.cfg.Token != "":
		return false, nil, fault.Newf(fault.Invalid, "node run", "--token", "a token is for joining; say whom with --join ADDRESS")
	default:
		if n.id, err = pki.Init(pkiDir, ident.NewPool()); err != nil {
			return false, nil, err
		}
		first = true
	}
	n.poolID = n.id.Pool()
	d.mem.Pool = n.poolID.String()
	d.mem.Name = cmp.Or(n.cfg.Name, d.mem.Name, defaultName(n.id.Node))
	d.mem.Zone, d.mem.Rack = cmp.Or(n.cfg.Zone, d.mem.Zone), cmp.Or(n.cfg.Rack, d.mem.Rack)
	if len(n.cfg.Bricks) > 0 {
		d.mem.Bricks = nil
		for _, b := range n.cfg.Bricks {
			abs, err := filepath.Abs(b)
			if err != nil {
				return false, nil, fault.New(fault.Invalid, "node run", b, err)
			}
			d.mem.Bricks = append(d.mem.Bricks, abs)
		}
	} else if len(d.mem.Bricks) == 0 {
		d.mem.Bricks = []string{d.file(brickName)}
	}
	n.name = d.mem.Name
	if len(seeds) > 0 {
		d.mem.Seeds = seeds
	}
	return first, d.mem.Seeds, d.save()
}

// defaultName is the host's name, made unique by the node's id.
func defaultName(id ident.NodeID) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	return host + "-" + id.Short()[:4]
}

func (n *Node) labels(iscsiL net.Listener) map[string]string {
	out := map[string]string{}
	if iscsiL != nil {
		out[labelISCSI] = iscsiAddr(iscsiL, advertised(n.mesh))
	}
	if n.dir.mem.Zone != "" {
		out[overlay.LabelZone] = n.dir.mem.Zone
	}
	if n.dir.mem.Rack != "" {
		out[overlay.LabelRack] = n.dir.mem.Rack
	}
	return out
}

func (n *Node) brickList() []*brick.Brick {
	var out []*brick.Brick
	for _, b := range n.openedBricks() {
		out = append(out, b.b)
	}
	return out
}

func (n *Node) openMesh() error {
	var err error
	n.mesh, err = link.NewMesh(link.MeshConfig{Identity: n.id, Listen: n.listen, Log: n.cfg.Log, OnJoin: n.admit})
	return err
}

// admit lets a node with a good token into the pool.
func (n *Node) admit(ctx context.Context, conn net.Conn) {
	s := pki.JoinServer{Identity: n.id, Nodes: n.seedList}
	id, req, err := s.Serve(ctx, conn)
	if err != nil {
		n.cfg.Log.Warn("a node was not let in", "from", conn.RemoteAddr().String(), "error", err)
		return
	}
	n.cfg.Log.Info("node let into the pool", "node", id.Short(), "name", req.Name)
}

// seedList is where a new node can turn to.
func (n *Node) seedList() []pki.Seed {
	out := []pki.Seed{{ID: n.id.Node, Name: n.name, Addr: advertised(n.mesh)}}
	if n.Core != nil {
		for _, r := range n.Pool.State().Nodes {
			if r.ID != n.id.Node {
				out = append(out, pki.Seed{ID: r.ID, Name: r.Name, Addr: r.Addr})
			}
		}
	}
	return out
}

// close ends everything that start made, the outside first.
func (n *Node) close() {
	if n.nbd != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainMax)
		if err := n.nbd.Shutdown(ctx); err != nil {
			n.cfg.Log.Info("NBD sessions were cut", "error", err)
		}
		cancel()
	}
	n.closeISCSI()
	if n.Core != nil {
		n.Core.Close()
	}
	if n.mesh != nil {
		if n.Core != nil {
			n.Core.outlast(n.mesh.Close)
		} else {
			n.mesh.Close()
		}
	}
	for _, b := range n.openedBricks() {
		if err := b.b.Close(); err != nil {
			n.cfg.Log.Warn("brick did not close well", "brick", b.path, "error", err)
		}
	}
	if n.dir != nil {
		_ = os.Remove(n.dir.file(runName))
		n.dir.close()
	}
}
