package pool

import (
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// invalid makes the refusal of a command that breaks a rule.
func invalid(op, subject, format string, args ...any) error {
	return fault.Newf(fault.Invalid, op, subject, format, args...)
}

func nameOK(s string) bool {
	if len(s) == 0 || len(s) > NameMax {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// CheckName tells whether s can name a pool, node or volume. Invalid: says the
// rule.
func CheckName(op, s string) error {
	if !nameOK(s) {
		return invalid(op, strconv.Quote(shown(s)),
			"a name has 1 to %d characters: lower-case letters, digits, and after the first also . _ -", NameMax)
	}
	return nil
}

// shown cuts a string of unknown length for an error text.
func shown(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// CheckSize tells whether a volume may have size bytes. Invalid: says the rule.
func CheckSize(op, subject string, size int64) error {
	switch {
	case size < SizeMin:
		return invalid(op, subject, "%d bytes are too few: a volume has at least 1 MiB", size)
	case size > SizeMax:
		return invalid(op, subject, "%d bytes are too many: a volume has at most 16 TiB", size)
	case size%SizeUnit != 0:
		return invalid(op, subject, "the size of a volume is a multiple of %d bytes; %d is not", SizeUnit, size)
	}
	return nil
}

func checkNode(n *NodeRecord) error {
	const op = "pool.put-node"
	if n.ID.IsZero() {
		return invalid(op, n.Name, "a node has an id")
	}
	if err := CheckName(op, n.Name); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(n.Addr)
	if num, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || num == 0 || host == "" || len(n.Addr) > AddrMax {
		return invalid(op, n.Name, "%q is no address: host:port with a port from 1 to 65535, at most %d characters", shown(n.Addr), AddrMax)
	}
	if len(n.Labels) > LabelsMax {
		return invalid(op, n.Name, "%d labels are too many: a node has at most %d", len(n.Labels), LabelsMax)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		if v := n.Labels[k]; !nameOK(k) || len(v) == 0 || len(v) > NameMax || !printable(v) {
			return invalid(op, n.Name, "label %q=%q: a key has the form of a name, a value 1 to %d printable characters", shown(k), shown(v), NameMax)
		}
	}
	if len(n.Bricks) > BricksMax {
		return invalid(op, n.Name, "%d bricks are too many: a node has at most %d", len(n.Bricks), BricksMax)
	}
	seen := make(map[ident.BrickID]bool, len(n.Bricks))
	for _, b := range n.Bricks {
		if b.ID.IsZero() || seen[b.ID] {
			return invalid(op, n.Name, "brick %s: every brick has an id of its own", b.ID.Short())
		}
		if b.Capacity < 0 {
			return invalid(op, n.Name, "brick %s: a capacity of %d bytes is negative", b.ID.Short(), b.Capacity)
		}
		seen[b.ID] = true
	}
	return nil
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func sameNode(a, b NodeRecord) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Addr == b.Addr && a.Swept == b.Swept &&
		a.Witness == b.Witness && a.Standing == b.Standing && a.Since == b.Since &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Bricks, b.Bricks)
}

func checkVolume(s *State, v *Volume) error {
	const op = "volume create"
	if err := CheckName(op, v.Name); err != nil {
		return err
	}
	if v.ID.IsZero() {
		return invalid(op, v.Name, "a volume has an id")
	}
	if err := CheckSize(op, v.Name, v.Size); err != nil {
		return err
	}
	if v.BlockSize != 512 && v.BlockSize != 4096 {
		return invalid(op, v.Name, "a block size of %d bytes: it is 512 or 4096", v.BlockSize)
	}
	if v.Replicas < ReplicasMin || v.Replicas > ReplicasMax {
		return invalid(op, v.Name, "%d replicas: a volume has %d to %d", v.Replicas, ReplicasMin, ReplicasMax)
	}
	switch v.WriteCache {
	case "none", "quorum", "writer":
	default:
		return invalid(op, v.Name, "write cache %q: it is none, quorum or writer", shown(v.WriteCache))
	}
	if v.Created < 0 {
		return invalid(op, v.Name, "created at %d: a time is not negative", v.Created)
	}
	if len(v.Snapshots) > 0 || v.SnapshotRevision != 0 {
		return invalid(op, v.Name, "a new volume has no snapshots")
	}
	return checkVoters(s, op, v)
}

func checkVoters(s *State, op string, v *Volume) error {
	if len(v.Voters) == 0 || len(v.Voters) > ReplicasMax {
		return invalid(op, v.Name, "%d voters: a map block is born with 1 to %d", len(v.Voters), ReplicasMax)
	}
	for i, m := range v.Voters {
		if m.Role != quorum.Voter {
			return invalid(op, v.Name, "%s on node %s: a map block is born with voters only", m.Role, m.Node.Short())
		}
		if !s.hasBrick(m.Node, m.Brick) {
			return invalid(op, v.Name, "brick %s of node %s is not in the pool", m.Brick.Short(), m.Node.Short())
		}
		for _, o := range v.Voters[:i] {
			if o.Node == m.Node {
				return invalid(op, v.Name, "two voters on node %s: voters are on different nodes", m.Node.Short())
			}
		}
	}
	return nil
}

func checkLanes(s *State, l *SetLanes) error {
	const op = "pool.set-lanes"
	n, old := len(l.Lanes.Lanes), len(s.Lanes.Lanes)
	if n == 0 || n > LanesMax {
		return invalid(op, "", "%d lanes: a pool has 1 to %d", n, LanesMax)
	}
	if old > 0 && n != old {
		return invalid(op, "", "the pool has %d lanes; their number is fixed once there are some", old)
	}
	for i, lane := range l.Lanes.Lanes {
		if len(lane) == 0 || len(lane) > LaneWidthMax {
			return invalid(op, "lane "+strconv.Itoa(i), "%d bricks: a lane has 1 to %d", len(lane), LaneWidthMax)
		}
		for j, r := range lane {
			if !s.hasBrick(r.Node, r.Brick) {
				return invalid(op, "lane "+strconv.Itoa(i), "brick %s of node %s is not in the pool", r.Brick.Short(), r.Node.Short())
			}
			if slices.ContainsFunc(lane[:j], func(o overlay.BrickRef) bool { return o.Node == r.Node }) {
				return invalid(op, "lane "+strconv.Itoa(i), "node %s twice: the bricks of a lane are on different nodes", r.Node.Short())
			}
		}
	}
	return nil
}
