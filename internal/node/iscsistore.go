package node

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/target/iscsi/login"
)

// Keys of a volume's settings.
const (
	settingExport       = "export" // exportSetting, in JSON; of the pool: for discovery
	settingReservations = "iscsi.reservations"
)

const (
	// storeMax bounds one change or reading of reservations.
	storeMax = 15 * time.Second
	// tellMax bounds one round of telling other nodes, tellPause is between rounds.
	tellMax   = 3 * time.Second
	tellPause = 100 * time.Millisecond
)

// exportSetting is how a volume may be used over iSCSI; of the pool, who may
// discover.
type exportSetting struct {
	Initiators []string     `json:"initiators,omitempty"` // lower case; none: all
	CHAP       login.Secret `json:"chap,omitzero"`
	Mutual     login.Secret `json:"mutual,omitzero"`
}

func (e *exportSetting) auth() login.Auth { return login.Auth{Initiator: e.CHAP, Target: e.Mutual} }

// exportOf reads the export settings of a volume, or of the pool. Corrupt: they
// cannot be read; nobody is let in then.
func exportOf(st *pool.State, id ident.VolumeID) (e exportSetting, err error) {
	s := st.Setting(id, settingExport)
	if len(s.Value) == 0 {
		return e, nil
	}
	if err := json.Unmarshal(s.Value, &e); err != nil {
		return e, fault.New(fault.Corrupt, "volume export", id.Short(), err)
	}
	return e, nil
}

// exportVolume finds what export settings are of: a volume, or with no name the pool.
func (n *Node) exportVolume(name string) (ident.VolumeID, error) {
	if name == "" {
		return ident.VolumeID{}, nil
	}
	d, err := n.record(name)
	return d.ID, err
}

// Export implements control.Daemon.
func (n *Node) Export(_ context.Context, name string) (*control.Export, error) {
	id, err := n.exportVolume(name)
	if err != nil {
		return nil, err
	}
	st := n.Pool.State()
	e, err := exportOf(st, id)
	if err != nil {
		return nil, err
	}
	out := &control.Export{Volume: name, Initiators: e.Initiators, CHAPUser: e.CHAP.User, MutualUser: e.Mutual.User}
	if name != "" && n.targets != nil {
		out.Target = iqnPrefix + st.Name + ":" + name
	}
	for _, p := range portsOf(st) {
		out.Portals = append(out.Portals, p.addr)
	}
	return out, nil
}

// SetExport implements control.Daemon.
func (n *Node) SetExport(ctx context.Context, name string, req control.SetExport) (*control.Export, error) {
	const op = "volume export set"
	id, err := n.exportVolume(name)
	if err != nil {
		return nil, err
	}
	st := n.Pool.State()
	e, err := exportOf(st, id)
	if err != nil && !req.Clear {
		return nil, err
	}
	if req.Clear {
		e = exportSetting{}
	}
	if req.Initiators != nil {
		if name == "" {
			return nil, fault.Newf(fault.Invalid, op, "", "initiators are a matter of volumes; discovery shows each initiator what it may use")
		}
		e.Initiators = nil
		for _, i := range req.Initiators {
			i = strings.ToLower(i)
			if !login.NameOK(i) {
				return nil, fault.Newf(fault.Invalid, op, i, "not the name of an initiator: it begins with iqn., eui. or naa.; /etc/iscsi/initiatorname.iscsi has it")
			}
			if !slices.Contains(e.Initiators, i) {
				e.Initiators = append(e.Initiators, i)
			}
		}
	}
	if req.CHAP != nil {
		e.CHAP = login.Secret{User: req.CHAP.User, Secret: req.CHAP.Secret}
	}
	if req.Mutual != nil {
		e.Mutual = login.Secret{User: req.Mutual.User, Secret: req.Mutual.Secret}
	}
	if err := e.auth().Check(); err != nil {
		return nil, err
	}
	value, err := json.Marshal(e)
	if err != nil {
		return nil, fault.New(fault.Internal, op, name, err)
	}
	if err := n.Pool.Submit(ctx, pool.PutSetting(id, settingExport, st.Setting(id, settingExport).Version, value)); err != nil {
		return nil, err
	}
	return n.Export(ctx, name)
}

// Load implements scsi.Store. It has a command of no effect chosen first: the
// state that this one is applied to has every change that was over before.
func (u *unit) Load(ctx context.Context) (state []byte, version uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeMax)
	defer cancel()
	if err := u.t.n.Pool.Refresh(ctx); err != nil {
		return nil, 0, err
	}
	s := u.t.n.Pool.State().Setting(u.id, settingReservations)
	return slices.Clone(s.Value), s.Version, nil
}

// Save implements scsi.Store.
func (u *unit) Save(ctx context.Context, version uint64, state []byte) error {
	ctx, cancel := context.WithTimeout(ctx, storeMax)
	defer cancel()
	if err := u.t.n.Pool.Submit(ctx, pool.PutSetting(u.id, settingReservations, version, state)); err != nil {
		if fault.Is(err, fault.Conflict) {
			_ = u.t.n.Pool.Refresh(ctx) // so that the next Load is not in vain
		}
		return err
	}
	// Whoever has the volume must know before the initiator does. A node that
	// stops answering is told no more: it cannot hold what it cannot renew.
	for {
		round, cancel := context.WithTimeout(ctx, tellMax)
		missed := u.t.tell(round, unitMessage{Volume: u.id, Reservations: state, Version: version + 1})
		cancel()
		missed = slices.DeleteFunc(missed, func(id ident.NodeID) bool { return u.t.n.View.State(id) != overlay.Alive })
		if len(missed) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fault.Newf(fault.Indeterminate, "iscsi reservations", u.volume().Name, "node %s does not take notice of them", missed[0].Short())
		}
		u.t.n.pause(tellPause)
	}
}
