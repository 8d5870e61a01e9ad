package pool

import (
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// New state of a pool that has no nodes yet. Invalid: no id, or a bad name.
func NewState(pool ident.PoolID, name string) (*State, error) {
	if pool.IsZero() {
		return nil, invalid("pool init", name, "a pool has an id")
	}
	if err := CheckName("pool init", name); err != nil {
		return nil, err
	}
	return &State{Pool: pool, Name: name}, nil
}

// Apply changes s by c, or refuses and leaves s alone. It depends on nothing but
// its arguments. A command whose id was applied lately is success and changes
// nothing, nor does a Refresh; any other accepted command raises Version by one. Kinds: Invalid (a
// rule, said in words), Exists, NotFound, Conflict (deleted id, stale plan),
// NoSpace (a limit).
func Apply(s *State, c Command) error {
	if len(c.ID) == 0 || len(c.ID) > 64 || !printable(c.ID) {
		return invalid("pool.apply", "", "the id of a command has 1 to 64 printable characters")
	}
	if slices.Contains(s.Recent, c.ID) {
		return nil
	}
	if err := apply(s, c); err != nil || c.Refresh {
		return err
	}
	s.Version++
	s.Recent = append(s.Recent, c.ID)
	if over := len(s.Recent) - recentMax; over > 0 {
		s.Recent = slices.Delete(s.Recent, 0, over)
	}
	return nil
}

func apply(s *State, c Command) error {
	var do []func() error
	if c.PutNode != nil {
		do = append(do, func() error { return putNode(s, *c.PutNode) })
	}
	if c.SetLanes != nil {
		do = append(do, func() error { return setLanes(s, c.SetLanes) })
	}
	if c.CreateVolume != nil {
		do = append(do, func() error { return createVolume(s, *c.CreateVolume) })
	}
	if c.DeleteVolume != nil {
		do = append(do, func() error { return deleteVolume(s, *c.DeleteVolume) })
	}
	if c.ResizeVolume != nil {
		do = append(do, func() error { return resizeVolume(s, *c.ResizeVolume) })
	}
	if c.SetSnapshots != nil {
		do = append(do, func() error { return setSnapshots(s, *c.SetSnapshots) })
	}
	if c.Swept != nil {
		do = append(do, func() error { return swept(s, *c.Swept) })
	}
	if c.PutSetting != nil {
		do = append(do, func() error { return putSetting(s, *c.PutSetting) })
	}
	if c.Refresh {
		do = append(do, func() error { return nil })
	}
	if c.SetStanding != nil {
		do = append(do, func() error { return setStanding(s, *c.SetStanding) })
	}
	if c.RemoveNode != nil {
		do = append(do, func() error { return removeNode(s, *c.RemoveNode) })
	}
	if c.SetPolicy != nil {
		do = append(do, func() error { return setPolicy(s, *c.SetPolicy) })
	}
	if c.Audit != nil {
		do = append(do, func() error { return putAudit(s, *c.Audit) })
	}
	if c.SetVoters != nil {
		do = append(do, func() error { return setVoters(s, *c.SetVoters) })
	}
	if len(do) != 1 {
		return invalid("pool.apply", c.ID, "a command has exactly one part; this one has %d", len(do))
	}
	return do[0]()
}

func putNode(s *State, n NodeRecord) error {
	const op = "pool.put-node"
	if err := checkNode(&n); err != nil {
		return err
	}
	for _, o := range s.Nodes {
		if o.ID == n.ID {
			continue
		}
		if o.Name == n.Name {
			return fault.Newf(fault.Exists, op, n.Name, "node %s has that name; choose another", o.ID.Short())
		}
		for _, b := range o.Bricks {
			if slices.ContainsFunc(n.Bricks, func(x overlay.BrickInfo) bool { return x.ID == b.ID }) {
				return fault.Newf(fault.Exists, op, n.Name, "brick %s belongs to node %s; a copied brick directory must be emptied first", b.ID.Short(), o.Name)
			}
		}
	}
	i, found := s.findNode(n.ID)
	if found {
		if s.Nodes[i].Standing == Lost {
			return gone(op, n.Name)
		}
		n.keep(s.Nodes[i])
		s.Nodes[i] = n
		return nil
	}
	if slices.Contains(s.Gone, n.ID) {
		return gone(op, n.Name)
	}
	if len(s.Nodes) >= NodesMax {
		return fault.Newf(fault.NoSpace, op, n.Name, "a pool has at most %d nodes", NodesMax)
	}
	n.keep(NodeRecord{})
	n.Swept = s.Deleted // a new node has nothing of what was deleted before
	s.Nodes = slices.Insert(s.Nodes, i, n)
	return nil
}

func setLanes(s *State, l *SetLanes) error {
	if l.Base != 0 && l.Base != s.Version {
		return fault.Newf(fault.Conflict, "pool.set-lanes", "", "planned from version %d, but the pool is at version %d: plan again", l.Base, s.Version)
	}
	if err := checkLanes(s, l); err != nil {
		return err
	}
	s.Lanes, s.LanesFor = l.Lanes.Clone(), fingerprint(s.Bricks())
	return nil
}

func createVolume(s *State, v Volume) error {
	const op = "volume create"
	if err := checkVolume(s, &v); err != nil {
		return err
	}
	i, taken := s.findVolume(v.Name)
	if taken {
		return fault.Newf(fault.Exists, op, v.Name, "there is a volume of that name; choose another or delete it first")
	}
	if o, ok := s.Volume(v.ID); ok {
		return fault.Newf(fault.Exists, op, v.Name, "volume %s has the id %s already", o.Name, v.ID)
	}
	if s.IsDeleted(v.ID) {
		return fault.Newf(fault.Conflict, op, v.Name, "the id %s belonged to a deleted volume; draw another", v.ID)
	}
	if len(s.Volumes) >= VolumesMax {
		return fault.Newf(fault.NoSpace, op, v.Name, "a pool has at most %d volumes; delete one first", VolumesMax)
	}
	v.Voters = slices.Clone(v.Voters)
	s.Volumes = slices.Insert(s.Volumes, i, v)
	return nil
}

func volumeIndex(s *State, op string, id ident.VolumeID) (int, error) {
	i := slices.IndexFunc(s.Volumes, func(v Volume) bool { return v.ID == id })
	if i < 0 {
		return 0, fault.Newf(fault.NotFound, op, id.Short(), "there is no volume with the id %s", id)
	}
	return i, nil
}

func deleteVolume(s *State, d VolumeDeletion) error {
	const op = "volume delete"
	i, err := volumeIndex(s, op, d.ID)
	if err != nil {
		return err
	}
	v := s.Volumes[i]
	if d.When < 0 {
		return invalid(op, v.Name, "deleted at %d: a time is not negative", d.When)
	}
	if len(s.Tombstones) >= TombstonesMax {
		return fault.Newf(fault.NoSpace, op, v.Name,
			"%d deleted volumes wait for nodes to drop their data, which is the limit; bring back the nodes that are down: %s",
			TombstonesMax, strings.Join(laggards(s), ", "))
	}
	s.Deleted++
	s.Tombstones = append(s.Tombstones, Tombstone{Seq: s.Deleted, ID: v.ID, Name: v.Name, Deleted: d.When})
	s.Volumes = slices.Delete(s.Volumes, i, i+1)
	dropSettings(s, v.ID)
	return nil
}

// laggards names the nodes that hold back the oldest tombstone, at most eight.
func laggards(s *State) []string {
	var names []string
	for _, n := range s.Nodes {
		if n.Standing != Lost && n.Swept < s.Tombstones[0].Seq && len(names) < 8 {
			names = append(names, n.Name)
		}
	}
	return names
}

func resizeVolume(s *State, r VolumeGrowth) error {
	const op = "volume resize"
	i, err := volumeIndex(s, op, r.ID)
	if err != nil {
		return err
	}
	v := s.Volumes[i]
	if err := CheckSize(op, v.Name, r.Size); err != nil {
		return err
	}
	if r.Size < v.Size {
		return invalid(op, v.Name, "%d bytes are less than the %d it has: a volume only grows", r.Size, v.Size)
	}
	s.Volumes[i].Size = r.Size
	return nil
}

// swept notes what a node has dropped.
func swept(s *State, w Swept) error {
	const op = "pool.swept"
	i, ok := s.findNode(w.Node)
	if !ok {
		return fault.Newf(fault.NotFound, op, w.Node.Short(), "there is no node with the id %s", w.Node)
	}
	if w.UpTo > s.Deleted {
		return invalid(op, s.Nodes[i].Name, "swept up to %d, but the newest tombstone is %d", w.UpTo, s.Deleted)
	}
	s.Nodes[i].Swept = max(s.Nodes[i].Swept, w.UpTo)
	dropTombstones(s)
	return nil
}
