package node

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

const (
	// holderAge is how old the knowledge of a volume's holder may be before a question
	// about it has it looked up again.
	holderAge = time.Second
	// holderMax bounds one such look-up.
	holderMax = 1500 * time.Millisecond
	// takeoverPause is the pause between attempts to take a volume over.
	takeoverPause = 50 * time.Millisecond
)

// unit is a volume as the device server of this node sees it: its scsi.Backend
// and scsi.Store. It attaches the volume at the first command that needs it,
// and lets go of it when its last session ends.
type unit struct {
	t    *targets
	id   ident.VolumeID
	lu   *scsi.LU
	gone chan struct{} // closed when the volume is deleted

	attached atomic.Pointer[attachment]
	catching sync.Mutex // one attempt to attach at a time

	mu      sync.Mutex
	users   []string     // initiators with a session
	holder  ident.NodeID // another node that has it in use; zero: none
	looked  time.Time    // when that was found out
	looking bool
	closed  bool
}

// attachment is one attachment of the volume here, for all sessions of the unit.
type attachment struct {
	target.Session
	gone <-chan struct{}
}

func newUnit(t *targets, st *pool.State, d pool.Volume) *unit {
	// looking: nothing is looked up, and told to the unit, before there is one.
	u := &unit{t: t, id: d.ID, gone: make(chan struct{}), looking: true}
	u.lu = scsi.NewLU(scsi.Config{
		Identity: scsi.Identity{Volume: d.ID, Target: t.name(st, d), Product: "volume", Revision: "1", Port: t.port},
		Backend:  u, Reservations: u, Log: t.n.cfg.Log,
	})
	u.mu.Lock()
	u.looking = false
	u.mu.Unlock()
	return u
}

func (u *unit) enter(initiator string) {
	u.mu.Lock()
	u.users = append(u.users, initiator)
	u.mu.Unlock()
}

// leave ends a session. With the last one the volume is free for others.
func (u *unit) leave(initiator string) {
	u.mu.Lock()
	if i := slices.Index(u.users, initiator); i >= 0 {
		u.users = slices.Delete(u.users, i, i+1)
	}
	last := len(u.users) == 0
	u.mu.Unlock()
	if last {
		u.letGo()
	}
}

// letGo ends the attachment if nobody came meanwhile.
func (u *unit) letGo() {
	u.catching.Lock()
	u.mu.Lock()
	used := len(u.users) > 0
	u.mu.Unlock()
	if used {
		u.catching.Unlock()
		return
	}
	a := u.attached.Swap(nil)
	u.catching.Unlock()
	if a != nil {
		a.Close()
		u.moved()
	}
}

// close ends the unit when the node does.
func (u *unit) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.lu.Close()
	if a := u.attached.Swap(nil); a != nil {
		a.Close()
	}
}

func (u *unit) volume() pool.Volume {
	d, _ := u.t.n.Pool.State().Volume(u.id)
	return d
}

// Geometry implements scsi.Backend.
func (u *unit) Geometry() scsi.Geometry {
	d := u.volume()
	g := scsi.Geometry{Size: d.Size, BlockSize: max(512, d.BlockSize), WriteCache: d.WriteCache != "none"}
	if dev := u.Device(); dev != nil {
		g.Size, g.ReadOnly = dev.Size(), dev.ReadOnly()
	}
	return g
}

// Device implements scsi.Backend.
func (u *unit) Device() target.Device {
	if a := u.attached.Load(); a != nil {
		return a
	}
	return nil
}

// Attach implements scsi.Backend.
func (u *unit) Attach(ctx context.Context) (target.Device, error) {
	u.catching.Lock()
	defer u.catching.Unlock()
	a, err := u.attach(ctx)
	if err != nil {
		if fault.Is(err, fault.Busy) {
			u.stale()
		}
		return nil, err
	}
	return a, nil
}

// attach is Attach, under catching.
func (u *unit) attach(ctx context.Context) (*attachment, error) {
	if a := u.attached.Load(); a != nil {
		return a, nil
	}
	u.mu.Lock()
	peer := "iscsi"
	if len(u.users) > 0 {
		peer = "iscsi " + u.users[0]
	}
	u.mu.Unlock()
	s, gone, err := u.t.n.Manager.Open(ctx, u.volume().Name, peer)
	if err != nil {
		return nil, err
	}
	a := &attachment{s, gone}
	u.attached.Store(a)
	go u.watch(a)
	u.moved()
	return a, nil
}

// watch forgets an attachment that is over.
func (u *unit) watch(a *attachment) {
	select {
	case <-a.gone:
	case <-u.t.ended:
		return
	}
	if u.attached.CompareAndSwap(a, nil) {
		a.Close()
		u.stale()
	}
}

// SetState implements scsi.Backend: the own port is made active by taking the
// volume over from whoever has it.
func (u *unit) SetState(ctx context.Context, group uint16, s scsi.Access) error {
	if group != u.t.PortalGroup() || s != scsi.ActiveOptimized {
		return fault.Newf(fault.Invalid, "iscsi", u.volume().Name, "only the port that is asked can be made active, and nothing else")
	}
	u.catching.Lock()
	defer u.catching.Unlock()
	for {
		if a := u.attached.Load(); a != nil {
			return nil
		}
		_, err := u.t.n.Manager.Attach(ctx, u.volume().Name, true)
		if err == nil {
			_, err = u.attach(ctx)
		}
		if err == nil || !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Fenced) || ctx.Err() != nil {
			return err
		}
		// Somebody else took it between the two.
		t := time.NewTimer(takeoverPause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// Groups implements scsi.Backend.
func (u *unit) Groups() []scsi.PortGroup {
	u.mu.Lock()
	holder, old := u.holder, time.Since(u.looked) > holderAge
	u.mu.Unlock()
	if u.attached.Load() != nil {
		holder = u.t.n.Self
	} else if old {
		u.stale()
	}
	alive := func(id ident.NodeID) bool { return id == u.t.n.Self || u.t.n.View.State(id) == overlay.Alive }
	if !holder.IsZero() && !alive(holder) {
		holder = ident.NodeID{}
	}
	var out []scsi.PortGroup
	first := true
	for _, p := range portsOf(u.t.n.Pool.State()) {
		g := scsi.PortGroup{ID: p.id, Ports: []uint16{p.id}}
		switch {
		case !alive(p.node):
			g.State = scsi.Unavailable
		case p.node == holder:
			g.State = scsi.ActiveOptimized
		case !holder.IsZero():
			g.State = scsi.Standby
		case first: // nobody has it: any port would get it, and one is enough
			g.State = scsi.ActiveOptimized
			first = false
		default:
			g.State = scsi.ActiveNonOptimized
		}
		out = append(out, g)
	}
	return out
}

// stale has the holder looked up again, in the background.
func (u *unit) stale() {
	u.mu.Lock()
	begin := !u.looking && !u.closed
	u.looking = u.looking || begin
	u.mu.Unlock()
	if !begin {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(u.t.n.ctx, holderMax)
		defer cancel()
		u.lookUp(ctx)
		u.lu.Changed()
	}()
}

// learnHolder is stale, but waits.
func (u *unit) learnHolder(ctx context.Context) {
	u.mu.Lock()
	begin := !u.looking && !u.closed && time.Since(u.looked) > holderAge
	u.looking = u.looking || begin
	u.mu.Unlock()
	if begin {
		ctx, cancel := context.WithTimeout(ctx, holderMax)
		defer cancel()
		u.lookUp(ctx)
	}
}

// lookUp asks the members of the map block who proposes, and that node whether
// somebody uses the volume there.
func (u *unit) lookUp(ctx context.Context) {
	holder, known := u.findHolder(ctx)
	u.mu.Lock()
	if known {
		u.holder = holder
	}
	u.looked, u.looking = time.Now(), false
	u.mu.Unlock()
}

// findHolder returns the other node that has the volume in use, zero if none
// has; known is false if that cannot be found out now.
func (u *unit) findHolder(ctx context.Context) (holder ident.NodeID, known bool) {
	d := u.volume()
	group := ident.MapBlock(u.id)
	var seeds []ident.NodeID
	for _, m := range d.Voters {
		seeds = append(seeds, m.Node)
	}
	if g, ok := u.t.n.Acceptors.Group(group); ok {
		for _, m := range g.Config.Members {
			if !slices.Contains(seeds, m.Node) {
				seeds = append(seeds, m.Node)
			}
		}
	}
	ballot, _, err := quorum.Holder(ctx, u.t.n.mesh, seeds, group)
	if err != nil {
		return holder, false
	}
	if ballot.IsZero() || ballot.Node == u.t.n.Self || u.t.n.View.State(ballot.Node) != overlay.Alive {
		return holder, true
	}
	body, err := json.Marshal(unitMessage{Volume: u.id})
	if err != nil {
		return holder, false
	}
	raw, err := u.t.n.mesh.Call(ctx, ballot.Node, typeUnit, body)
	var a unitAnswer
	if err != nil || json.Unmarshal(raw, &a) != nil {
		return holder, false
	}
	if a.Held {
		holder = ballot.Node
	}
	return holder, true
}

// moved tells this node's initiators and the other nodes that the volume was
// attached here, or is no longer.
func (u *unit) moved() {
	go func() {
		u.lu.Changed()
		ctx, cancel := context.WithTimeout(u.t.n.ctx, holderMax)
		defer cancel()
		u.t.tell(ctx, unitMessage{Volume: u.id, Moved: true})
	}()
}
