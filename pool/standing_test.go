package pool

import (
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

func standing(i int, from, to Standing) Command {
	return Command{ID: NewCommandID(), SetStanding: &SetStanding{Node: ident.NodeID{byte(i)}, From: from, Standing: to, When: 7}}
}

// fourNodes has nodes 1 to 4 and a volume of 3 replicas.
func fourNodes(t *testing.T) *State {
	t.Helper()
	s := testState(t)
	for i := 3; i <= 4; i++ {
		n := testNode(i)
		must(t, s, Command{PutNode: &n})
	}
	return s
}

// weights tells which nodes' bricks placement may use.
func weights(s *State) string {
	out := ""
	for _, b := range s.Bricks() {
		if b.Weight > 0 {
			out += string('0' + b.Node[0])
		}
	}
	return out
}

func TestStandings(t *testing.T) {
	s := fourNodes(t)
	must(t, s, standing(2, Member, Draining))
	if n, _ := s.Node(ident.NodeID{2}); !n.Leaving() || n.Since != 7 || weights(s) != "134" {
		t.Fatalf("drained: %+v, placement uses %s", n, weights(s))
	}
	again := testNode(2) // the node announces itself
	again.Addr = "10.0.0.9:7000"
	must(t, s, Command{PutNode: &again})
	if n, _ := s.Node(ident.NodeID{2}); n.Standing != Draining {
		t.Error("a node that announces itself is no longer drained")
	}
	if err := Apply(s, standing(2, Member, Lost)); !fault.Is(err, fault.Conflict) {
		t.Errorf("a decision on an old standing: %v", err)
	}
	must(t, s, standing(3, Member, Draining))
	if weights(s) != "1234" {
		t.Errorf("two of four are drained and a volume wants three copies: placement uses %s", weights(s))
	}
	must(t, s, standing(3, Draining, Member))
	must(t, s, standing(4, Member, Lost))
	if weights(s) != "123" { // 2 stays while it is needed; 4 is gone for good
		t.Errorf("one drained, one lost: placement uses %s", weights(s))
	}
	for from, to := range map[Standing]Standing{Lost: Member, Member: Lost} {
		if err := Apply(s, standing(4, from, to)); !fault.Is(err, fault.Conflict) {
			t.Errorf("from lost to %s: %v", to.text(), err)
		}
	}
	n4 := testNode(4)
	if err := Apply(s, Command{ID: "back", PutNode: &n4}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a lost node came back: %v", err)
	}
}

func TestRemoveNode(t *testing.T) {
	s := fourNodes(t)
	remove := func(i int) error {
		return Apply(s, Command{ID: NewCommandID(), RemoveNode: &RemoveNode{Node: ident.NodeID{byte(i)}}})
	}
	must(t, s, Command{SetLanes: lanes(refs(1, 2, 3))})
	if err := remove(3); !fault.Is(err, fault.Conflict) {
		t.Errorf("a member was removed: %v", err)
	}
	must(t, s, standing(3, Member, Draining))
	if err := remove(3); !fault.Is(err, fault.Conflict) {
		t.Errorf("a node that holds a lane was removed: %v", err)
	}
	must(t, s, Command{SetLanes: lanes(refs(1, 2, 4))})
	if err := remove(3); err != nil {
		t.Fatal(err)
	}
	n3 := testNode(3)
	if err := Apply(s, Command{ID: "back", PutNode: &n3}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a removed node came back: %v", err)
	}
	if err := remove(3); !fault.Is(err, fault.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

// TestLostNodesHoldNoTombstones: what a lost node did not sweep never comes back.
func TestLostNodesHoldNoTombstones(t *testing.T) {
	s := testState(t)
	must(t, s, Command{Swept: &Swept{Node: ident.NodeID{1}, UpTo: 1}})
	if len(s.Tombstones) != 1 {
		t.Fatalf("%d tombstones", len(s.Tombstones))
	}
	must(t, s, standing(2, Member, Lost))
	if len(s.Tombstones) != 0 {
		t.Error("a lost node keeps a tombstone for ever")
	}
}

func TestEviction(t *testing.T) {
	s := fourNodes(t)
	gone := map[ident.NodeID]time.Duration{}
	alive := map[ident.NodeID]bool{}
	wanted := func() (*SetStanding, time.Duration) {
		return wantedStanding(s, func(id ident.NodeID) time.Duration { return gone[id] }, func(id ident.NodeID) bool { return alive[id] })
	}
	if c, next := wanted(); c != nil || next != 0 {
		t.Fatalf("with all there: %+v in %s", c, next)
	}
	gone[ident.NodeID{2}], gone[ident.NodeID{3}] = time.Minute, 4*time.Minute
	if c, next := wanted(); c != nil || next != 6*time.Minute {
		t.Fatalf("before the time: %+v in %s", c, next)
	}
	gone[ident.NodeID{3}] = 10 * time.Minute
	c, _ := wanted()
	if c == nil || c.Node != (ident.NodeID{3}) || c.Standing != Evicted {
		t.Fatalf("after the time: %+v", c)
	}
	must(t, s, Command{SetStanding: c})
	gone[ident.NodeID{2}] = time.Hour
	if c, _ := wanted(); c != nil {
		t.Fatalf("half of the pool would be evicted: %+v", c)
	}
	alive[ident.NodeID{3}] = true
	if c, _ = wanted(); c == nil || c.Node != (ident.NodeID{3}) || c.Standing != Member {
		t.Fatalf("heard again: %+v", c)
	}
	must(t, s, Command{SetPolicy: &Policy{EvictAfterSeconds: -1}})
	must(t, s, standing(3, Evicted, Member))
	if c, next := wanted(); c != nil || next != 0 {
		t.Fatalf("never means never: %+v in %s", c, next)
	}
	if err := Apply(s, Command{ID: "soon", SetPolicy: &Policy{EvictAfterSeconds: 1}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("evict after a second: %v", err)
	}
}

func refs(nodes ...int) (out []overlay.BrickRef) {
	for _, i := range nodes {
		out = append(out, ref(i))
	}
	return out
}
