package blockdev

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

// poolOf describes a pool in words: one for each node, from the first on, with flags
// behind it: d down, l leaving, b its brick leaving, w witness, n a new brick.
func poolOf(text string) (nodes []overlay.Node) {
	for i, w := range strings.Fields(text) {
		id := byte(i + 1)
		n := overlay.Node{ID: ident.NodeID{id}, Bricks: []overlay.BrickInfo{{ID: ident.BrickID{id}, Weight: 1}}}
		for _, f := range w[1:] {
			switch f {
			case 'd':
				n.State = overlay.Down
			case 'l':
				n.Leaving = true
			case 'b':
				n.Bricks[0].Leaving = true
			case 'w':
				n.Witness = true
			case 'n':
				n.Bricks[0].ID[1] = 1
			case 's': // a second brick
				n.Bricks = append(n.Bricks, overlay.BrickInfo{ID: ident.BrickID{id, 2}, Weight: 2})
			default:
				panic(f)
			}
		}
		if w[0] != '-' {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func memberOf(i int, r quorum.Role) quorum.Member {
	return quorum.Member{Node: ident.NodeID{byte(i)}, Brick: ident.BrickID{byte(i)}, Role: r}
}

// membersOf is a configuration in words: 1 2w is a voter on node 1 and a witness on node 2.
func membersOf(text string) (c quorum.Config) {
	for _, w := range strings.Fields(text) {
		m := memberOf(int(w[0]-'0'), quorum.Voter)
		if strings.HasSuffix(w, "w") {
			m.Role = quorum.Witness
		}
		c.Members = append(c.Members, m)
	}
	return c
}

func brief(m Move) string {
	name := func(m quorum.Member) string {
		s := fmt.Sprint(m.Node[0])
		if m.Brick[1] > 0 {
			s += fmt.Sprint(".", m.Brick[1])
		}
		if m.Role == quorum.Witness {
			s += "w"
		}
		return s
	}
	switch {
	case m.Stuck:
		return name(m.From) + " stuck"
	case m.From.Node.IsZero():
		return "+" + name(m.To)
	case m.To.Node.IsZero():
		return "-" + name(m.From)
	}
	return name(m.From) + ">" + name(m.To)
}

func TestMembersFollowThePool(t *testing.T) {
	for _, c := range []struct {
		nodes, members string
		replicas       int
		want           string
	}{
		{"n n n", "1 2 3", 3, ""},
		{"n n n", "1", 3, "+*"},
		{"n n n", "1 2", 3, "+3"},
		{"n nd n", "1", 3, "+3"},
		{"n n nd n", "1 2 3", 3, ""},         // down is not gone
		{"n n nl n", "1 2 3", 3, "3>4"},      // drained
		{"n n nl nd", "1 2 3", 3, "3 stuck"}, // nobody to take over
		{"n n nl", "1 2 3", 3, "3 stuck"},    // never below the target
		{"nl n nl", "1 2 3", 3, "1 stuck 3 stuck"},
		{"n n nl nw", "1 2 3", 3, "3>4w"},     // two nodes with data and a witness
		{"n n nl nwd", "1 2 3", 3, "3 stuck"}, // which is away
		{"n n nw", "1 2", 3, "+3w"},
		{"n n nw", "1 2 3w", 3, ""},
		{"n n nw n", "1 2 3w", 3, "3w>4"}, // a third node with data
		{"n n nw n", "1 2 4", 3, ""},
		{"n n nw n", "1 2 3w 4", 3, "-3w"}, // left over
		{"n n nwl nw", "1 2 3w", 3, "3w>4w"},
		{"n n nwl", "1 2 3w", 3, "3w stuck"},
		{"n n nl nw", "1 2 3 4w", 3, "-3"},
		{"n n nn n", "1 2 3", 3, "3>*"}, // a wiped disk: the node itself, or another
		{"n n nn", "1 2 3", 3, "3>3.1"},
		{"n n - n", "1 2 3", 3, "3>4"},   // removed from the pool
		{"n n nbs", "1 2 3", 3, "3>3.2"}, // a brick set aside, another one on the node
		{"n n nb n", "1 2 3", 3, "3>4"},
		{"n nl n n", "1 2 3 4", 3, "-2"}, // more than enough
		{"n n n n", "1 2 3 4", 3, "-*"},
		{"n n nw", "1", 1, ""},
		{"n n n nw", "1 2", 2, ""},
		{"nl nw", "1", 3, "1 stuck"},
		{"n nw", "1", 3, ""},
		{"n nw", "1 2w", 3, "-2w"},
		{"", "1 2 3", 3, ""}, // nothing is known yet
	} {
		p := memberPlan{vol: ident.VolumeID{7}, replicas: c.replicas, self: ident.NodeID{1}, nodes: poolOf(c.nodes), cfg: membersOf(c.members)}
		var got []string
		for _, m := range p.moves() {
			got = append(got, brief(m))
		}
		text := strings.Join(got, " ")
		if prefix, any := strings.CutSuffix(c.want, "*"); text != c.want && !(any && strings.HasPrefix(text, prefix) && len(got) == 1) {
			t.Errorf("pool %q, members %q of %d: %q, not %q", c.nodes, c.members, c.replicas, text, c.want)
		}
	}
}

// Whatever the pool and the members are, the moves come to an end, each is sound, and there
// are never fewer votes than there were, but for those that are too many.
func TestMovesEnd(t *testing.T) {
	flags := []string{"n", "nd", "nl", "nb", "nw", "nn", "ns", "nbs", "nwl", "-"}
	total := 1
	for range 4 {
		total *= len(flags)
	}
	for i := range total {
		var words []string
		for n := i; len(words) < 4; n /= len(flags) {
			words = append(words, flags[n%len(flags)])
		}
		for _, members := range []string{"1", "1 2", "1 2 3", "1 2 3w", "1 2 3 4"} {
			cfg := membersOf(members)
			p := memberPlan{vol: ident.VolumeID{byte(i)}, replicas: 3, self: ident.NodeID{1}, nodes: poolOf(strings.Join(words, " "))}
			for steps := 0; ; steps++ {
				p.cfg = cfg
				moves := p.moves()
				if len(moves) == 0 || moves[0].Stuck {
					break
				}
				if steps > 10 {
					t.Fatalf("pool %q, members %q: no end: %v", words, members, moves)
				}
				m := moves[0]
				next := quorum.Config{}
				for _, x := range cfg.Members {
					if !x.Same(m.From) {
						next.Members = append(next.Members, x)
					}
				}
				if !m.To.Node.IsZero() {
					if next.Find(m.To.Node, m.To.Brick) >= 0 {
						t.Fatalf("pool %q, members %v: %v is one already", words, cfg, m)
					}
					next.Members = append(next.Members, m.To)
				}
				if next.Sound() != nil || next.Voters() < min(cfg.Voters(), 3) && m.From.Role != quorum.Witness {
					t.Fatalf("pool %q, members %v: %v", words, cfg, m)
				}
				cfg = next
			}
		}
	}
}
