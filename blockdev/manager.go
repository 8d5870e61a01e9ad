package blockdev

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
	"github.com/gabion-storage/gabion/target"
)

// TypeRelease is the call by which a node asks the holder of a volume to let
// go. Request and answer are JSON: releaseRequest, releaseAnswer.
const TypeRelease link.Type = 0x5c

const (
	// takeoverKeep is how long a forced takeover is protected from the old
	// holder's clients.
	takeoverKeep = 30 * time.Second
	// releaseMax bounds the wait for a holder's answer. A holder that does not
	// answer in this time is waited out at the acceptors instead.
	releaseMax = 1500 * time.Millisecond
)

// Store is the extent store as the manager needs it.
type Store interface {
	Extents
	// Seal makes the bricks of nodes refuse puts and deletes of lower epochs.
	Seal(ctx context.Context, vol ident.VolumeID, epoch uint64, nodes []ident.NodeID) (missed []ident.NodeID, err error)
}

// ManagerConfig wires a Manager.
type ManagerConfig struct {
	Self      ident.NodeID
	Boot      uint64
	Transport link.Transport
	Acceptors *quorum.Acceptors
	Extents   Store
	View      overlay.View
	Catalog   func() *pool.State
	// Publish has the pool apply a command that changes the catalog; nil in
	// pools without one.
	Publish func(context.Context, pool.Command) error
	// Refresh makes Catalog show every change that was over when it was called: see
	// pool.Pool.Refresh. nil in pools whose Catalog always does.
	Refresh func(context.Context) error
	Log     *slog.Logger
	// Tune is applied to the Config of every attachment; nil for defaults.
	Tune func(*Config)
	// OnMembers is told, on any goroutine, that the members of some volume's map
	// block changed; it must not block. nil for nobody.
	OnMembers func()
}

// Manager attaches volumes on this node. It implements target.Exports.
type Manager struct {
	cfg   ManagerConfig
	pace  *Pacer
	heard atomic.Bool // the pool, by a Refresh of this process

	mu     sync.Mutex
	vols   map[ident.VolumeID]*attached
	closed bool
	resign bool // this node is being drained: it attaches nothing
}

// attached is a volume that is attached here, or being attached.
type attached struct {
	ready    chan struct{} // closed when vol or err is set
	vol      *Volume
	err      error
	sessions int
	clients  map[string]int
	changing int                   // snapshots that are being made or deleted
	named    map[*session]struct{} // those of the sessions whose clients said who they are
	// keep is until when a volume that was taken over by a person's word stays
	// even without clients: the old holder's clients reconnect at once.
	keep time.Time
}

// NewManager registers the release call. Close detaches everything.
func NewManager(cfg ManagerConfig) *Manager {
	m := &Manager{cfg: cfg, pace: NewPacer(), vols: map[ident.VolumeID]*attached{}}
	cfg.Transport.HandleCall(TypeRelease, m.handleRelease)
	cfg.Transport.HandleCall(TypeSnapshot, m.handleSnapshot)
	cfg.View.OnChange(m.changed)
	return m
}

// changed tells all attached volumes that nodes or lanes changed.
func (m *Manager) changed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.vols {
		if a.vol != nil {
			a.vol.maintain.request()
		}
	}
}

func (m *Manager) find(name string) (pool.Volume, error) {
	for _, d := range m.cfg.Catalog().Volumes {
		if d.Name == name {
			return d, nil
		}
	}
	return pool.Volume{}, fault.Newf(fault.NotFound, "volume", name, "no such volume; gabion volume list shows what there is")
}

func exportOf(d pool.Volume) target.Export {
	return target.Export{Name: d.Name, Description: "gabion volume " + d.ID.String(), Size: d.Size, BlockSize: d.BlockSize}
}

// List implements target.Exports.
func (m *Manager) List(context.Context) ([]target.Export, error) {
	var out []target.Export
	for _, d := range m.cfg.Catalog().Volumes {
		out = append(append(out, exportOf(d)), snapshotExports(d)...)
	}
	slices.SortFunc(out, func(a, b target.Export) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Stat implements target.Exports.
func (m *Manager) Stat(_ context.Context, name string) (target.Export, error) {
	if isSnapshot(name) {
		return m.statSnapshot(name)
	}
	d, err := m.find(name)
	if err != nil {
		return target.Export{}, err
	}
	return exportOf(d), nil
}

// session is one client's use of an attached volume.
type session struct {
	*Volume
	once  sync.Once
	close func()
	known *known // nil unless the client said who it is
}

// Close implements target.Session.
func (s *session) Close() { s.once.Do(s.close) }

// Open implements target.Exports: the first session attaches the volume here.
func (m *Manager) Open(ctx context.Context, name, peer string) (target.Session, <-chan struct{}, error) {
	if isSnapshot(name) {
		return m.openSnapshot(ctx, name, peer)
	}
	d, err := m.find(name)
	if err != nil {
		return nil, nil, err
	}
	v, leave, err := m.use(ctx, d, peer)
	if err != nil {
		return nil, nil, err
	}
	return &session{Volume: v, close: leave}, v.Gone(), nil
}

// use attaches a volume here if need be and counts one more use of it until
// leave is called.
func (m *Manager) use(ctx context.Context, d pool.Volume, peer string) (v *Volume, leave func(), err error) {
	a, err := m.locked(ctx, d, claim{})
	if err != nil {
		return nil, nil, err
	}
	defer m.mu.Unlock()
	a.sessions++
	a.clients[peer]++
	return a.vol, func() {
		m.mu.Lock()
		a.sessions--
		if a.clients[peer]--; a.clients[peer] <= 0 {
			delete(a.clients, peer)
		}
		m.mu.Unlock()
	}, nil
}

// locked attaches a volume here if need be and returns with m.mu held, while the
// attachment is one that can be used; with an error m.mu is not held.
func (m *Manager) locked(ctx context.Context, d pool.Volume, by claim) (*attached, error) {
	for {
		a, err := m.attached(ctx, d, by)
		if err != nil {
			return nil, err
		}
		m.mu.Lock()
		if m.vols[d.ID] == a { // not detached between the two looks
			if a.vol.Err() == nil {
				return a, nil
			}
			delete(m.vols, d.ID) // fenced, and not forgotten yet
		}
		m.mu.Unlock()
	}
}

// Attach attaches a volume here without a client. takeover takes it even from
// a holder that has clients; their connections end.
func (m *Manager) Attach(ctx context.Context, name string, takeover bool) (*Volume, error) {
	d, err := m.find(name)
	if err != nil {
		return nil, err
	}
	a, err := m.attached(ctx, d, claim{takeover: takeover})
	if err != nil {
		return nil, err
	}
	return a.vol, nil
}

// attached finds or makes the attachment of d; one caller does the work, the
// others wait for it.
func (m *Manager) attached(ctx context.Context, d pool.Volume, by claim) (*attached, error) {
	m.mu.Lock()
	a := m.vols[d.ID]
	if m.closed {
		m.mu.Unlock()
		return nil, fault.Newf(fault.Unavailable, "volume attach", d.Name, "this node is shutting down")
	}
	if m.resign {
		m.mu.Unlock()
		return nil, fault.Newf(fault.Unavailable, "volume attach", d.Name, "this node is drained and serves nothing: use another node, or end it with: gabion node undrain")
	}
	if a == nil {
		a = &attached{ready: make(chan struct{}), clients: map[string]int{}, named: map[*session]struct{}{}}
		m.vols[d.ID] = a
		m.mu.Unlock()
		// The attach is not the first caller's alone: it goes on if he leaves.
		go m.attach(context.WithoutCancel(ctx), d, a, by)
	} else {
		m.mu.Unlock()
	}
	select {
	case <-a.ready:
		return a, a.err
	case <-ctx.Done():
		return nil, fault.New(fault.Timeout, "volume attach", d.Name, ctx.Err())
	}
}

type releaseRequest struct {
	Volume   ident.VolumeID `json:"volume"`
	Takeover bool           `json:"takeover"`
	// Client and Session tell for whom: a holder lets go of a volume that only
	// earlier sessions of that client use.
	Client  []byte `json:"client,omitempty"`
	Session uint64 `json:"session,omitempty"`
}

type releaseAnswer struct {
	Released bool `json:"released"` // the holder does not serve it, or no longer
	Clients  int  `json:"clients"`  // why not
	// Attaching: it is about to have it; ask again. Kept: it was taken over a
	// moment ago and its new client is awaited.
	Attaching bool `json:"attaching,omitempty"`
	Kept      bool `json:"kept,omitempty"`
}

// errHeld marks a refusal by a live holder, which repeating cannot change.
type errHeld struct{ error }

func isHolderRefusal(err error) bool {
	for e := err; e != nil; {
		if _, ok := e.(errHeld); ok {
			return true
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		e = u.Unwrap()
	}
	return false
}

// askBlocker asks the node for whose sake members refused to let go, if that is
// not the one that was asked already: the highest ballot may be a failed
// opener's. It returns what the attach failed with.
func (m *Manager) askBlocker(ctx context.Context, d pool.Volume, asked ident.NodeID, by claim, err error) error {
	var f *fault.Error
	if !fault.Is(err, fault.Busy) || !errors.As(err, &f) {
		return err
	}
	var blocker ident.NodeID
	if blocker.UnmarshalText([]byte(f.Subject)) != nil || blocker == asked || blocker == m.cfg.Self {
		return err
	}
	if _, refused := m.askRelease(ctx, d, blocker, by); refused != nil {
		return refused
	}
	return err // the next try finds the members willing
}

// askRelease asks the holder to let go. It reports true if it consented: then
// acceptors need not wait for its lease. A holder that does not answer gives
// false and no error.
func (m *Manager) askRelease(ctx context.Context, d pool.Volume, holder ident.NodeID, by claim) (bool, error) {
	name := holder.Short()
	if n, ok := m.cfg.View.Node(holder); ok && n.Name != "" {
		name = n.Name
	}
	if !m.cfg.Transport.Connected(holder) || m.cfg.View.State(holder) != overlay.Alive {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, releaseMax)
	defer cancel()
	req, _ := json.Marshal(releaseRequest{Volume: d.ID, Takeover: by.takeover, Client: by.client.ID[:], Session: by.client.Session})
	raw, err := m.cfg.Transport.Call(ctx, holder, TypeRelease, req)
	if err != nil {
		m.cfg.Log.Info("holder does not answer", "volume", d.Name, "holder", name, "error", err)
		return false, nil
	}
	var a releaseAnswer
	if err := json.Unmarshal(raw, &a); err != nil {
		return false, fault.New(fault.Internal, "volume attach", d.Name, err)
	}
	if a.Attaching {
		return false, fault.Newf(fault.Unavailable, "volume attach", d.Name, "node %s is attaching it", name)
	}
	if a.Kept {
		return false, fault.New(fault.Busy, "volume attach", d.Name, errHeld{fault.Newf(fault.Busy, "volume", d.Name,
			"node %s took it over a moment ago and awaits its client", name)})
	}
	if !a.Released {
		return false, fault.New(fault.Busy, "volume attach", d.Name, errHeld{fault.Newf(fault.Busy, "volume", d.Name,
			"in use by %d client(s) on node %s; disconnect there first, or take it over with: gabion volume attach %s --takeover", a.Clients, name, d.Name)})
	}
	return true, nil
}

func (m *Manager) handleRelease(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
	var req releaseRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, fault.New(fault.Invalid, "volume release", "", err)
	}
	m.mu.Lock()
	a := m.vols[req.Volume]
	if a == nil {
		m.mu.Unlock()
		return json.Marshal(releaseAnswer{Released: true})
	}
	if (a.vol == nil || a.changing > 0) && !req.Takeover {
		m.mu.Unlock()
		return json.Marshal(releaseAnswer{Attaching: true})
	}
	if a.vol != nil && !req.Takeover && !a.onlyOf(req) && (a.sessions > 0 || time.Now().Before(a.keep)) {
		n := a.sessions
		m.mu.Unlock()
		return json.Marshal(releaseAnswer{Clients: n, Kept: n == 0})
	}
	delete(m.vols, req.Volume)
	m.mu.Unlock()
	m.cfg.Log.Info("volume released", "volume", req.Volume.Short(), "to_node", from.Short(), "takeover", req.Takeover)
	if a.vol != nil { // else the attach finds that it was detached
		a.vol.Close()
	}
	return json.Marshal(releaseAnswer{Released: true})
}

// Clients lists the clients that a volume has on this node.
func (m *Manager) Clients(id ident.VolumeID) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	if a := m.vols[id]; a != nil {
		for c := range a.clients {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}

// Idle reports whether this node holds a volume that nobody uses.
func (m *Manager) Idle(id ident.VolumeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.vols[id]
	return a != nil && a.vol != nil && a.sessions == 0
}

// Attached lists the volumes attached here with their numbers of sessions.
func (m *Manager) Attached() map[*Volume]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[*Volume]int{}
	for _, a := range m.vols {
		if a.vol != nil {
			out[a.vol] = a.sessions
		}
	}
	return out
}

// Detach ends the attachment of a volume here, if there is one.
func (m *Manager) Detach(id ident.VolumeID, why error) {
	m.mu.Lock()
	a := m.vols[id]
	delete(m.vols, id)
	m.mu.Unlock()
	if a != nil && a.vol != nil {
		a.vol.fail(why)
		a.vol.Close()
	}
}

// Sync takes over what changed in the catalog: sizes, and volumes that are gone or
// were recovered by force.
func (m *Manager) Sync(st *pool.State) {
	m.pace.SetPolicy(st.Policy.RepairPaused, st.Policy.RepairBytesPerSecond)
	byID := map[ident.VolumeID]pool.Volume{}
	for _, d := range st.Volumes {
		byID[d.ID] = d
	}
	for v := range m.Attached() {
		if d, ok := byID[v.cfg.ID]; ok {
			m.keep(v, d)
		} else if st.IsDeleted(v.cfg.ID) {
			go m.Detach(v.cfg.ID, fault.Newf(fault.NotFound, "volume", v.cfg.Name, "it was deleted"))
		}
	}
}

// Close folds nothing and detaches everything: what was answered is in the log.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	vols := m.vols
	m.vols = map[ident.VolumeID]*attached{}
	m.mu.Unlock()
	for _, a := range vols {
		if a.vol != nil {
			a.vol.Close()
		}
	}
}
