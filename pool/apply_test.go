package pool

import (
	"bytes"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/overlay/placement"
	"github.com/gabion-storage/gabion/quorum"
)

func testNode(i int) NodeRecord {
	return NodeRecord{ID: ident.NodeID{byte(i)}, Name: fmt.Sprintf("n%d", i), Addr: fmt.Sprintf("10.0.0.%d:7000", i),
		Labels: map[string]string{"zone": "a"},
		Bricks: []overlay.BrickInfo{{ID: ident.BrickID{byte(i), 1}, Capacity: 1 << 40, Weight: 1 << 40}}}
}

func testMember(i int) quorum.Member {
	return quorum.Member{Node: ident.NodeID{byte(i)}, Brick: ident.BrickID{byte(i), 1}}
}

func testVol(name string, id byte) Volume {
	return Volume{ID: ident.VolumeID{id}, Name: name, Size: 1 << 30, BlockSize: 4096, Replicas: 3,
		WriteCache: "quorum", Voters: []quorum.Member{testMember(1), testMember(2)}, Created: 1}
}

func must(t *testing.T, s *State, c Command) {
	t.Helper()
	if c.ID == "" {
		c.ID = NewCommandID()
	}
	if err := Apply(s, c); err != nil {
		t.Fatal(err)
	}
}

// testState has nodes 1 and 2, volume "v" (id 1) and a tombstone of id 9.
func testState(t *testing.T) *State {
	t.Helper()
	s, err := NewState(ident.PoolID{1}, "p")
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 2; i++ {
		n := testNode(i)
		must(t, s, Command{PutNode: &n})
	}
	v, w := testVol("v", 1), testVol("w", 9)
	must(t, s, Command{CreateVolume: &v})
	must(t, s, Command{CreateVolume: &w})
	must(t, s, Command{DeleteVolume: &VolumeDeletion{ID: w.ID, When: 5}})
	return s
}

func lanes(refs ...[]overlay.BrickRef) *SetLanes {
	return &SetLanes{Lanes: placement.Table{Lanes: refs}}
}

func ref(i int) overlay.BrickRef {
	return overlay.BrickRef{Node: ident.NodeID{byte(i)}, Brick: ident.BrickID{byte(i), 1}}
}

func TestApply(t *testing.T) {
	node := func(f func(*NodeRecord)) Command { n := testNode(3); f(&n); return Command{PutNode: &n} }
	vol := func(f func(*Volume)) Command { v := testVol("x", 2); f(&v); return Command{CreateVolume: &v} }
	long := strings.Repeat("x", NameMax)
	const ok = fault.Kind(255)
	for name, c := range map[string]struct {
		cmd  Command
		want fault.Kind
		says string
	}{
		"nothing":   {Command{}, fault.Invalid, "exactly one part"},
		"two parts": {Command{Swept: &Swept{}, ResizeVolume: &VolumeGrowth{}}, fault.Invalid, "exactly one part"},
		"long id":   {Command{ID: strings.Repeat("x", 65), Swept: &Swept{}}, fault.Invalid, "1 to 64"},
		"odd id":    {Command{ID: "a\n", Swept: &Swept{}}, fault.Invalid, "printable"},

		"node":                {node(func(n *NodeRecord) {}), ok, ""},
		"node again":          {node(func(n *NodeRecord) { *n = testNode(2) }), ok, ""},
		"node without id":     {node(func(n *NodeRecord) { n.ID = ident.NodeID{} }), fault.Invalid, "has an id"},
		"node bad name":       {node(func(n *NodeRecord) { n.Name = "N3" }), fault.Invalid, "lower-case"},
		"node name taken":     {node(func(n *NodeRecord) { n.Name = "n2" }), fault.Exists, "has that name"},
		"node no port":        {node(func(n *NodeRecord) { n.Addr = "host" }), fault.Invalid, "host:port"},
		"node port 0":         {node(func(n *NodeRecord) { n.Addr = "host:0" }), fault.Invalid, "host:port"},
		"node port 65536":     {node(func(n *NodeRecord) { n.Addr = "host:65536" }), fault.Invalid, "host:port"},
		"node no host":        {node(func(n *NodeRecord) { n.Addr = ":70" }), fault.Invalid, "host:port"},
		"node ipv6":           {node(func(n *NodeRecord) { n.Addr = "[::1]:70" }), ok, ""},
		"node long addr":      {node(func(n *NodeRecord) { n.Addr = strings.Repeat("h", 255) + ":70" }), fault.Invalid, "host:port"},
		"node label key":      {node(func(n *NodeRecord) { n.Labels = map[string]string{"Z": "a"} }), fault.Invalid, "label"},
		"node label empty":    {node(func(n *NodeRecord) { n.Labels = map[string]string{"z": ""} }), fault.Invalid, "label"},
		"node label long":     {node(func(n *NodeRecord) { n.Labels = map[string]string{"z": long + "x"} }), fault.Invalid, "label"},
		"node label odd":      {node(func(n *NodeRecord) { n.Labels = map[string]string{"z": "a\x00"} }), fault.Invalid, "label"},
		"node labels":         {node(func(n *NodeRecord) { n.Labels = manyLabels(LabelsMax + 1) }), fault.Invalid, "at most 16"},
		"node without bricks": {node(func(n *NodeRecord) { n.Bricks = nil }), ok, ""},
		"node bricks":         {node(func(n *NodeRecord) { n.Bricks = make([]overlay.BrickInfo, BricksMax+1) }), fault.Invalid, "at most 64"},
		"node brick no id":    {node(func(n *NodeRecord) { n.Bricks[0].ID = ident.BrickID{} }), fault.Invalid, "id of its own"},
		"node brick twice":    {node(func(n *NodeRecord) { n.Bricks = append(n.Bricks, n.Bricks[0]) }), fault.Invalid, "id of its own"},
		"node brick negative": {node(func(n *NodeRecord) { n.Bricks[0].Capacity = -1 }), fault.Invalid, "negative"},
		"node brick of other": {node(func(n *NodeRecord) { n.Bricks = testNode(1).Bricks }), fault.Exists, "belongs to node n1"},

		"lanes":             {Command{SetLanes: lanes([]overlay.BrickRef{ref(1), ref(2)})}, ok, ""},
		"lanes none":        {Command{SetLanes: lanes()}, fault.Invalid, "1 to 1024"},
		"lanes many":        {Command{SetLanes: lanes(make([][]overlay.BrickRef, LanesMax+1)...)}, fault.Invalid, "1 to 1024"},
		"lanes empty lane":  {Command{SetLanes: lanes([]overlay.BrickRef{})}, fault.Invalid, "1 to 5"},
		"lanes wide lane":   {Command{SetLanes: lanes(make([]overlay.BrickRef, 6))}, fault.Invalid, "1 to 5"},
		"lanes stranger":    {Command{SetLanes: lanes([]overlay.BrickRef{ref(7)})}, fault.Invalid, "not in the pool"},
		"lanes node twice":  {Command{SetLanes: lanes([]overlay.BrickRef{ref(1), ref(1)})}, fault.Invalid, "different nodes"},
		"lanes fresh plan":  {Command{SetLanes: &SetLanes{Base: 5, Lanes: lanes([]overlay.BrickRef{ref(1)}).Lanes}}, ok, ""},
		"lanes stale plan":  {Command{SetLanes: &SetLanes{Base: 4, Lanes: lanes([]overlay.BrickRef{ref(1)}).Lanes}}, fault.Conflict, "plan again"},
		"volume":            {vol(func(v *Volume) {}), ok, ""},
		"volume 63 letters": {vol(func(v *Volume) { v.Name = long }), ok, ""},
		"volume 64 letters": {vol(func(v *Volume) { v.Name = long + "x" }), fault.Invalid, "1 to 63"},
		"volume all signs":  {vol(func(v *Volume) { v.Name = "0a._-" }), ok, ""},
		"volume no name":    {vol(func(v *Volume) { v.Name = "" }), fault.Invalid, "1 to 63"},
		"volume dot first":  {vol(func(v *Volume) { v.Name = ".a" }), fault.Invalid, "after the first"},
		"volume capital":    {vol(func(v *Volume) { v.Name = "aB" }), fault.Invalid, "lower-case"},
		"volume slash":      {vol(func(v *Volume) { v.Name = "a/b" }), fault.Invalid, "lower-case"},
		"volume utf8":       {vol(func(v *Volume) { v.Name = "ä" }), fault.Invalid, "lower-case"},
		"volume no id":      {vol(func(v *Volume) { v.ID = ident.VolumeID{} }), fault.Invalid, "has an id"},
		"volume smallest":   {vol(func(v *Volume) { v.Size = SizeMin }), ok, ""},
		"volume too small":  {vol(func(v *Volume) { v.Size = SizeMin - SizeUnit }), fault.Invalid, "at least 1 MiB"},
		"volume negative":   {vol(func(v *Volume) { v.Size = -4096 }), fault.Invalid, "at least 1 MiB"},
		"volume largest":    {vol(func(v *Volume) { v.Size = SizeMax }), ok, ""},
		"volume too large":  {vol(func(v *Volume) { v.Size = SizeMax + SizeUnit }), fault.Invalid, "at most 16 TiB"},
		"volume odd size":   {vol(func(v *Volume) { v.Size = SizeMin + 512 }), fault.Invalid, "multiple of 4096"},
		"volume 512":        {vol(func(v *Volume) { v.BlockSize = 512 }), ok, ""},
		"volume 1024":       {vol(func(v *Volume) { v.BlockSize = 1024 }), fault.Invalid, "512 or 4096"},
		"volume 0 copies":   {vol(func(v *Volume) { v.Replicas = 0 }), fault.Invalid, "1 to 5"},
		"volume 1 copy":     {vol(func(v *Volume) { v.Replicas = 1 }), ok, ""},
		"volume 5 copies":   {vol(func(v *Volume) { v.Replicas = 5 }), ok, ""},
		"volume 6 copies":   {vol(func(v *Volume) { v.Replicas = 6 }), fault.Invalid, "1 to 5"},
		"volume cache":      {vol(func(v *Volume) { v.WriteCache = "" }), fault.Invalid, "none, quorum or writer"},
		"volume created":    {vol(func(v *Volume) { v.Created = -1 }), fault.Invalid, "not negative"},
		"volume no voters":  {vol(func(v *Volume) { v.Voters = nil }), fault.Invalid, "voters"},
		"volume 6 voters":   {vol(func(v *Volume) { v.Voters = make([]quorum.Member, 6) }), fault.Invalid, "voters"},
		"volume learner":    {vol(func(v *Volume) { v.Voters[0].Role = quorum.Learner }), fault.Invalid, "voters only"},
		"volume stranger":   {vol(func(v *Volume) { v.Voters[0] = testMember(7) }), fault.Invalid, "not in the pool"},
		"volume other's":    {vol(func(v *Volume) { v.Voters[0].Brick = ident.BrickID{2, 1} }), fault.Invalid, "not in the pool"},
		"volume one node":   {vol(func(v *Volume) { v.Voters[1] = v.Voters[0] }), fault.Invalid, "different nodes"},
		"volume name taken": {vol(func(v *Volume) { v.Name = "v" }), fault.Exists, "of that name"},
		"volume id taken":   {vol(func(v *Volume) { v.ID = ident.VolumeID{1} }), fault.Exists, "already"},
		"volume id deleted": {vol(func(v *Volume) { v.ID = ident.VolumeID{9} }), fault.Conflict, "deleted volume"},
		"volume old name":   {vol(func(v *Volume) { v.Name = "w" }), ok, ""},

		"delete":          {Command{DeleteVolume: &VolumeDeletion{ID: ident.VolumeID{1}, When: 7}}, ok, ""},
		"delete absent":   {Command{DeleteVolume: &VolumeDeletion{ID: ident.VolumeID{7}}}, fault.NotFound, "no volume"},
		"delete deleted":  {Command{DeleteVolume: &VolumeDeletion{ID: ident.VolumeID{9}}}, fault.NotFound, "no volume"},
		"delete negative": {Command{DeleteVolume: &VolumeDeletion{ID: ident.VolumeID{1}, When: -1}}, fault.Invalid, "not negative"},

		"grow":        {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, 2 << 30}}, ok, ""},
		"grow by 0":   {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, 1 << 30}}, ok, ""},
		"shrink":      {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, 1 << 29}}, fault.Invalid, "only grows"},
		"grow odd":    {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, 1<<30 + 1}}, fault.Invalid, "multiple of 4096"},
		"grow beyond": {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, SizeMax + 4096}}, fault.Invalid, "16 TiB"},
		"grow absent": {Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{7}, 1 << 30}}, fault.NotFound, "no volume"},

		"swept":          {Command{Swept: &Swept{Node: ident.NodeID{1}, UpTo: 1}}, ok, ""},
		"swept by none":  {Command{Swept: &Swept{Node: ident.NodeID{7}, UpTo: 1}}, fault.NotFound, "no node"},
		"swept too much": {Command{Swept: &Swept{Node: ident.NodeID{1}, UpTo: 2}}, fault.Invalid, "newest tombstone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := testState(t)
			before := s.Clone()
			if c.cmd.ID == "" {
				c.cmd.ID = "test"
			}
			err := Apply(s, c.cmd)
			if c.want == ok {
				if err != nil || s.Version != before.Version+1 {
					t.Fatalf("version %d after %d: %v", s.Version, before.Version, err)
				}
				after := s.Clone()
				if err := Apply(s, c.cmd); err != nil || !reflect.DeepEqual(s, after) {
					t.Fatalf("a retry is not the same: %v", err)
				}
				if got, err := DecodeState(EncodeState(s)); err != nil || !bytes.Equal(EncodeState(got), EncodeState(s)) {
					t.Fatalf("does not survive encoding: %v\n%+v\n%+v", err, got, s)
				}
				return
			}
			if !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v; want %v saying %q", err, c.want, c.says)
			}
			if !reflect.DeepEqual(s, before) {
				t.Fatal("a refused command changed the state")
			}
		})
	}
}

func manyLabels(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("k%d", i)] = "v"
	}
	return m
}

func TestNewStateRefuses(t *testing.T) {
	if _, err := NewState(ident.PoolID{}, "p"); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	if _, err := NewState(ident.PoolID{1}, "P"); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
}

func TestCountLimits(t *testing.T) {
	s := testState(t)
	for i := len(s.Volumes); i < VolumesMax; i++ {
		v := testVol(fmt.Sprintf("x%d", i), 0)
		v.ID = ident.VolumeID{0xff, byte(i), byte(i >> 8)}
		must(t, s, Command{CreateVolume: &v})
	}
	v := testVol("one-more", 2)
	if err := Apply(s, Command{ID: "a", CreateVolume: &v}); !fault.Is(err, fault.NoSpace) {
		t.Fatal(err)
	}
	for i := len(s.Tombstones); i < TombstonesMax; i++ {
		must(t, s, Command{DeleteVolume: &VolumeDeletion{ID: s.Volumes[len(s.Volumes)-1].ID}})
	}
	err := Apply(s, Command{ID: "b", DeleteVolume: &VolumeDeletion{ID: s.Volumes[0].ID}})
	if !fault.Is(err, fault.NoSpace) || !strings.Contains(err.Error(), "n1, n2") {
		t.Fatal(err)
	}
	for i := len(s.Nodes); i < NodesMax; i++ {
		n := testNode(3)
		n.ID, n.Name, n.Bricks = ident.NodeID{0xff, byte(i), byte(i >> 8)}, fmt.Sprintf("x%d", i), nil
		must(t, s, Command{PutNode: &n})
	}
	n := testNode(3)
	if err := Apply(s, Command{ID: "c", PutNode: &n}); !fault.Is(err, fault.NoSpace) {
		t.Fatal(err)
	}
}

func TestLaneCountIsFixed(t *testing.T) {
	s := testState(t)
	must(t, s, Command{SetLanes: lanes([]overlay.BrickRef{ref(1)}, []overlay.BrickRef{ref(2)})})
	if err := Apply(s, Command{ID: "a", SetLanes: lanes([]overlay.BrickRef{ref(1)})}); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	must(t, s, Command{SetLanes: lanes([]overlay.BrickRef{ref(2)}, []overlay.BrickRef{ref(1)})})
}

func TestTombstoneGoesWhenAllNodesSwept(t *testing.T) {
	s := testState(t)
	must(t, s, Command{Swept: &Swept{Node: ident.NodeID{1}, UpTo: 1}})
	if !s.IsDeleted(ident.VolumeID{9}) {
		t.Fatal("gone while node 2 may have its data")
	}
	n := testNode(3)
	must(t, s, Command{PutNode: &n}) // came after the deletion: holds nothing up
	n2 := testNode(2)
	must(t, s, Command{PutNode: &n2}) // restart of a node keeps what it swept
	must(t, s, Command{Swept: &Swept{Node: ident.NodeID{2}, UpTo: 1}})
	if s.IsDeleted(ident.VolumeID{9}) || s.Deleted != 1 {
		t.Fatalf("tombstones %v", s.Tombstones)
	}
	must(t, s, Command{DeleteVolume: &VolumeDeletion{ID: ident.VolumeID{1}}})
	if s.Tombstones[0].Seq != 2 {
		t.Fatal("a tombstone number was used again")
	}
}

func TestRecentIsBounded(t *testing.T) {
	s := testState(t)
	for range recentMax + 10 {
		must(t, s, Command{ResizeVolume: &VolumeGrowth{ident.VolumeID{1}, 1 << 30}})
	}
	if len(s.Recent) != recentMax {
		t.Fatal(len(s.Recent))
	}
}

// Random commands, right and wrong: two machines agree, clones are independent,
// and every state fits its own decoder.
func TestApplyIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	a := testState(t)
	b, err := DecodeState(EncodeState(a))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		c := Command{ID: fmt.Sprint(i / 2 * r.Intn(2))}
		switch r.Intn(6) {
		case 0:
			n := testNode(r.Intn(6))
			c.PutNode = &n
		case 1:
			v := testVol(fmt.Sprintf("v%d", r.Intn(9)), byte(r.Intn(40)))
			c.CreateVolume = &v
		case 2:
			c.DeleteVolume = &VolumeDeletion{ID: ident.VolumeID{byte(r.Intn(40))}}
		case 3:
			c.ResizeVolume = &VolumeGrowth{ident.VolumeID{byte(r.Intn(40))}, int64(r.Intn(4)) << 29}
		case 4:
			c.Swept = &Swept{ident.NodeID{byte(r.Intn(6))}, uint64(r.Intn(20))}
		case 5:
			c.SetLanes = lanes([]overlay.BrickRef{ref(r.Intn(5)), ref(r.Intn(5))})
		}
		frozen := a.Clone()
		image := EncodeState(frozen)
		e1 := Apply(a, c)
		decoded, err := decodeCommand(encodeCommand(c))
		if err != nil {
			t.Fatal(err)
		}
		e2 := Apply(b, decoded)
		if fmt.Sprint(e1) != fmt.Sprint(e2) || !bytes.Equal(EncodeState(a), EncodeState(b)) {
			t.Fatalf("step %d: %v / %v", i, e1, e2)
		}
		if !bytes.Equal(EncodeState(frozen), image) {
			t.Fatalf("step %d changed a clone", i)
		}
	}
}

// A pool at the sizes it is made for must fit into one checkpoint value.
func TestStateFitsCheckpoint(t *testing.T) {
	s := testState(t)
	r := rand.New(rand.NewSource(1))
	for i := 3; i <= 100; i++ {
		n := testNode(i)
		r.Read(n.ID[:])
		r.Read(n.Bricks[0].ID[:])
		must(t, s, Command{PutNode: &n})
	}
	must(t, s, Command{SetLanes: &SetLanes{Lanes: placement.Plan(s.Lanes, s.Bricks(), 128, 5)}})
	t.Logf("100 nodes, 128 lanes: %d bytes", len(EncodeState(s)))
	for i := range 500 {
		v := testVol(fmt.Sprintf("volume-%d", i), 0)
		r.Read(v.ID[:])
		v.Voters = nil
		for _, m := range s.Lanes.Lanes[i%128][:3] {
			v.Voters = append(v.Voters, quorum.Member{Node: m.Node, Brick: m.Brick})
		}
		must(t, s, Command{CreateVolume: &v})
	}
	n := len(EncodeState(s))
	t.Logf("and 500 volumes: %d bytes", n)
	if n > stateBytesMax {
		t.Fatalf("%d bytes exceed %d", n, stateBytesMax)
	}
}

func FuzzDecodeState(f *testing.F) {
	s, _ := NewState(ident.PoolID{1}, "p")
	f.Add(EncodeState(s))
	f.Add(pack(map[string]any{"pool": ident.PoolID{1}, "version": 3, "lanes": map[string]any{"lanes": [][]int{{}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			if !fault.Is(err, fault.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if _, err := DecodeState(EncodeState(s)); err != nil {
			t.Fatalf("re-encoded state does not decode: %v", err)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	v := testVol("v", 1)
	f.Add(encodeCommand(Command{ID: "a", CreateVolume: &v}))
	f.Add(encodeCommand(Command{ID: "b", SetLanes: lanes([]overlay.BrickRef{ref(1)})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommand(b)
		if err != nil {
			return
		}
		s, _ := NewState(ident.PoolID{1}, "p")
		_ = Apply(s, c) // must not panic
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	s, _ := NewState(poolID, "p")
	p := &Pool{cfg: Config{Pool: poolID}}
	f.Add(pack(snapshot{State: s, Voters: []ident.NodeID{{1}}}))
	f.Add(pack(submitAnswer{Version: 1, Refusal: &refusal{Kind: fault.Exists}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		snap, err := p.decodeSnapshot(b)
		if err == nil && (snap.State == nil || snap.State.Pool != poolID || len(snap.Voters) > VotersMax) {
			t.Fatalf("accepted %+v", snap)
		}
	})
}
