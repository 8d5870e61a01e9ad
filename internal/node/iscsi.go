package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/iscsi/login"
)

const (
	// iqnPrefix is what all targets of all pools begin with: a date at which the
	// name gabion.storage was ours, and that name (RFC 7143, section 4.2.7.3).
	iqnPrefix = "iqn.2026-11.storage.gabion:"
	// labelISCSI is the label of a node that says where it serves iSCSI.
	labelISCSI = "iscsi"
	// settingPorts is the pool's list of nodes that ever served iSCSI, eight bytes
	// of each id. The place in it, from 1, is the relative port identifier of the node
	// and its portal group tag, for ever.
	settingPorts = "iscsi.ports"
	portBytes    = 8
	// portPause is the pause between attempts to get a place in it.
	portPause = 2 * time.Second
)

// typeUnit asks a node about a volume that iSCSI serves, or tells it: unitMessage
// and unitAnswer, in JSON.
const typeUnit link.Type = 0x5f

// targets is the node as iSCSI sees it: each volume of the pool is a target, each
// node a port of all of them.
type targets struct {
	n *Node

	mu    sync.Mutex
	units map[ident.VolumeID]*unit
	port  uint16        // this node's; 0: not known yet
	ended chan struct{} // closed when sessions must end
}

func newTargets(n *Node) *targets {
	t := &targets{n: n, units: map[ident.VolumeID]*unit{}, ended: make(chan struct{})}
	n.mesh.HandleCall(typeUnit, t.handleUnit)
	n.Pool.OnChange(t.onState)
	n.View.OnChange(t.viewChanged)
	t.port = portIndex(n.Pool.State(), n.Self)
	return t
}

// buildISCSI makes what iSCSI needs of a node. A node that does not serve it
// answers other nodes all the same.
func (n *Node) buildISCSI() error {
	n.targets = newTargets(n)
	var err error
	n.iscsi, err = iscsi.NewServer(iscsi.Config{Targets: n.targets, Log: n.cfg.Log, Observe: n.exp.ISCSI().Observe})
	return err
}

func (n *Node) serveISCSI(l net.Listener) {
	n.wg.Go(func() { n.targets.enrol(n.ctx) })
	n.wg.Go(func() {
		if err := n.iscsi.Serve(l); err != nil && n.ctx.Err() == nil {
			n.cfg.Log.Error("iSCSI server ended", "error", err)
		}
	})
}

// closeISCSI ends sessions in an orderly way, then every use of volumes.
func (n *Node) closeISCSI() {
	if n.iscsi == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainMax)
	defer cancel()
	if err := n.iscsi.Shutdown(ctx); err != nil {
		n.cfg.Log.Info("iSCSI sessions were cut", "error", err)
	}
	n.targets.close()
}

// portIndex is the place of a node in the list of ports; 0 if it has none.
func portIndex(st *pool.State, id ident.NodeID) uint16 {
	list := st.Setting(ident.VolumeID{}, settingPorts).Value
	for i := 0; i+portBytes <= len(list); i += portBytes {
		if bytes.Equal(list[i:i+portBytes], id[:portBytes]) {
			return uint16(i/portBytes + 1)
		}
	}
	return 0
}

// enrol gets this node a port, which needs the pool. Until then nobody can log in.
func (t *targets) enrol(ctx context.Context) {
	for ctx.Err() == nil {
		st := t.n.Pool.State()
		if i := portIndex(st, t.n.Self); i != 0 {
			t.mu.Lock()
			t.port = i
			t.mu.Unlock()
			return
		}
		if st.Version > 0 {
			old := st.Setting(ident.VolumeID{}, settingPorts)
			list := append(bytes.Clone(old.Value), t.n.Self[:portBytes]...)
			err := t.n.Pool.Submit(ctx, pool.PutSetting(ident.VolumeID{}, settingPorts, old.Version, list))
			if err == nil || fault.Is(err, fault.Conflict) {
				if portIndex(t.n.Pool.State(), t.n.Self) != 0 {
					continue
				}
			} else {
				t.n.cfg.Log.Info("this node has no iSCSI port yet", "error", err)
			}
		}
		t.n.pause(portPause)
	}
}

// PortalGroup implements iscsi.Targets.
func (t *targets) PortalGroup() uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.port
}

// Discovery implements iscsi.Targets.
func (t *targets) Discovery() login.Auth {
	e, err := exportOf(t.n.Pool.State(), ident.VolumeID{})
	if err != nil {
		// Nobody can prove what nobody can read.
		return login.Auth{Initiator: login.Secret{User: "unreadable", Secret: rand.Text()}}
	}
	return e.auth()
}

// name is the iSCSI name of a volume.
func (t *targets) name(st *pool.State, d pool.Volume) string {
	return iqnPrefix + st.Name + ":" + d.Name
}

// volume finds the volume of an iSCSI name.
func (t *targets) volume(name string) (*pool.State, pool.Volume, error) {
	st := t.n.Pool.State()
	rest, ok := strings.CutPrefix(name, iqnPrefix+st.Name+":")
	if d, found := st.VolumeNamed(rest); ok && found {
		return st, d, nil
	}
	return st, pool.Volume{}, fault.Newf(fault.NotFound, "iscsi", name, "no such volume; gabion volume list shows what there is")
}

// Find implements iscsi.Targets.
func (t *targets) Find(name string) (iscsi.Target, error) {
	st, d, err := t.volume(name)
	if err != nil {
		return iscsi.Target{}, err
	}
	if t.PortalGroup() == 0 {
		return iscsi.Target{}, fault.Newf(fault.Unavailable, "iscsi", name, "this node has no iSCSI port yet: too few nodes of the pool answer")
	}
	return t.describe(st, d)
}

func (t *targets) describe(st *pool.State, d pool.Volume) (iscsi.Target, error) {
	e, err := exportOf(st, d.ID)
	if err != nil {
		return iscsi.Target{}, err
	}
	return iscsi.Target{Name: t.name(st, d), Alias: d.Name, Auth: e.auth(), Initiators: e.Initiators}, nil
}

// List implements iscsi.Targets.
func (t *targets) List() []iscsi.Listing {
	st := t.n.Pool.State()
	var portals []iscsi.Portal
	for _, p := range portsOf(st) {
		if t.n.View.State(p.node) == overlay.Alive || p.node == t.n.Self {
			portals = append(portals, iscsi.Portal{Addr: p.addr, Tag: p.id})
		}
	}
	var out []iscsi.Listing
	for _, d := range st.Volumes {
		if x, err := t.describe(st, d); err == nil {
			out = append(out, iscsi.Listing{Target: x, Portals: portals})
		}
	}
	return out
}

// nodePort is a node that serves iSCSI.
type nodePort struct {
	id   uint16
	node ident.NodeID
	addr string
}

// portsOf lists the nodes that serve iSCSI, sorted by their ports.
func portsOf(st *pool.State) []nodePort {
	var out []nodePort
	for _, r := range st.Nodes {
		if a := r.Labels[labelISCSI]; a != "" {
			if id := portIndex(st, r.ID); id != 0 {
				out = append(out, nodePort{id, r.ID, a})
			}
		}
	}
	slices.SortFunc(out, func(a, b nodePort) int { return cmp.Compare(a.id, b.id) })
	return out
}

// Open implements iscsi.Targets.
func (t *targets) Open(ctx context.Context, name, initiator, _ string) (iscsi.Unit, error) {
	st, d, err := t.volume(name)
	if err != nil {
		return iscsi.Unit{}, err
	}
	t.mu.Lock()
	u := t.units[d.ID]
	if u == nil {
		u = newUnit(t, st, d)
		t.units[d.ID] = u
	}
	t.mu.Unlock()
	u.enter(initiator)
	u.learnHolder(ctx)
	return iscsi.Unit{LU: u.lu, Gone: u.gone, Close: func() { u.leave(initiator) }}, nil
}

// onState passes on what a new state of the pool changes: sizes, ports, and
// volumes that are gone.
func (t *targets) onState(st *pool.State) {
	t.mu.Lock()
	units := make([]*unit, 0, len(t.units))
	for id, u := range t.units {
		if st.IsDeleted(id) {
			delete(t.units, id)
			close(u.gone)
			continue
		}
		units = append(units, u)
	}
	t.mu.Unlock()
	for _, u := range units {
		u.lu.Changed()
	}
}

// viewChanged looks again at who may have what, when nodes come and go.
func (t *targets) viewChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.units {
		u.stale()
	}
}

// unitMessage asks or tells about a volume. Without further fields it asks who
// has it.
type unitMessage struct {
	Volume ident.VolumeID `json:"volume"`
	// Moved: the sender attached the volume, or let go of it.
	Moved bool `json:"moved,omitempty"`
	// Reservations are new; Version is theirs.
	Reservations []byte `json:"reservations,omitempty"`
	Version      uint64 `json:"version,omitempty"`
}

type unitAnswer struct {
	// Held: the node has the volume attached and in use by clients.
	Held bool `json:"held"`
}

func (t *targets) handleUnit(ctx context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	var m unitMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fault.New(fault.Invalid, "iscsi unit", "", err)
	}
	t.mu.Lock()
	u := t.units[m.Volume]
	t.mu.Unlock()
	if u != nil {
		if m.Moved {
			u.stale()
		}
		if m.Version > 0 {
			done := make(chan error, 1)
			u.lu.ReservationsChanged(m.Reservations, m.Version, func(err error) { done <- err })
			select {
			case err := <-done:
				if err != nil {
					return nil, err
				}
			case <-ctx.Done():
				return nil, fault.New(fault.Timeout, "iscsi unit", u.id.Short(), ctx.Err())
			}
		}
	}
	return json.Marshal(unitAnswer{Held: t.held(m.Volume)})
}

// held tells whether this node has the volume in use.
func (t *targets) held(id ident.VolumeID) bool {
	for v, sessions := range t.n.Manager.Attached() {
		if v.ID() == id && sessions > 0 && v.Err() == nil {
			return true
		}
	}
	return false
}

// tell sends a message to every other live node and waits for the answers; it
// returns the nodes that did not give one.
func (t *targets) tell(ctx context.Context, m unitMessage) []ident.NodeID {
	body, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	var mu sync.Mutex
	var missed []ident.NodeID
	var wg sync.WaitGroup
	for _, x := range t.n.View.Nodes() {
		if x.ID == t.n.Self || x.State != overlay.Alive {
			continue
		}
		wg.Go(func() {
			if _, err := t.n.mesh.Call(ctx, x.ID, typeUnit, body); err != nil {
				mu.Lock()
				missed = append(missed, x.ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return missed
}

// close ends every use of volumes. The server is shut down already.
func (t *targets) close() {
	t.mu.Lock()
	units := t.units
	t.units = map[ident.VolumeID]*unit{}
	t.mu.Unlock()
	close(t.ended)
	for _, u := range units {
		u.close()
	}
}

// iscsiAddr is where other nodes tell initiators to find this one.
func iscsiAddr(l net.Listener, mesh string) string {
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok || !a.IP.IsUnspecified() {
		return l.Addr().String()
	}
	host, _, err := net.SplitHostPort(mesh)
	if err != nil {
		return l.Addr().String()
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return l.Addr().String()
	}
	return net.JoinHostPort(host, port)
}
