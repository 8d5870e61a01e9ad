package partition

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

// outage is a pool of three whose volume an attached client writes all the time.
type outage struct {
	c     *cluster.Cluster
	a     *attached
	rng   *rand.Rand
	table []string
}

// The processes of all nodes are killed in turn, all of them at once, or frozen
// beyond the timers that others go on by. The attached client loses no write that
// was answered, sees no error, and goes on when a majority is there.
func TestNodesGoDown(t *testing.T) {
	c := pool(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	seed := uint64(time.Now().UnixNano())
	t.Log("orders and gaps are those of seed ", seed)
	o := &outage{c: c, rng: rand.New(rand.NewPCG(seed, 1)), a: attach(t, c, "v", 1, c.Nodes...)}
	for range 2 {
		o.rolling(t)
	}
	for range 3 {
		o.powerOff(t)
	}
	o.frozen(t, "the holder", freezeFor(t, 7*time.Second), func() []*cluster.Node { return []*cluster.Node{o.a.served()} })
	o.frozen(t, "all three", freezeFor(t, 7*time.Second), func() []*cluster.Node { return c.Nodes })
	t.Logf("pauses of the attached writer\n| nodes | it waited | |\n|---|---:|---|\n%s", strings.Join(o.table, "\n"))
	o.a.finish(t)
}

// freezeFor is how long processes stay frozen: GABION_FREEZE, or usual.
func freezeFor(t *testing.T, usual time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv("GABION_FREEZE")
	if s == "" {
		return usual
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (o *outage) row(t *testing.T, what string, pause, bound time.Duration, note string) {
	t.Helper()
	if pause > bound {
		t.Errorf("%s: a write took %v", what, pause)
	}
	o.table = append(o.table, fmt.Sprintf("| %s | %v | %s |", what, pause.Round(10*time.Millisecond), note))
}

// whole waits until all nodes are there with all copies.
func (o *outage) whole(t *testing.T) {
	t.Helper()
	for _, n := range o.c.Nodes {
		if _, err := n.Await(patience, cluster.Members(3)); err != nil {
			t.Fatal(n.Name, ": ", err)
		}
	}
	if _, err := o.c.Nodes[0].Await(patience, cluster.Redundant("v")); err != nil {
		t.Fatal(err)
	}
}

// rolling kills each node and starts it again; the next one as soon as the volume
// could do without it.
func (o *outage) rolling(t *testing.T) {
	t.Helper()
	o.a.reset()
	var order []string
	for _, i := range o.rng.Perm(3) {
		n := o.c.Nodes[i]
		order = append(order, n.Name)
		if err := errors.Join(n.Kill(), n.Start()); err != nil {
			t.Fatal(err)
		}
		o.a.more(t, 20)
		if _, err := n.Await(patience, quorate("v")); err != nil {
			t.Fatal(err)
		}
	}
	o.whole(t)
	o.row(t, "killed and started in turn", o.a.more(t, 20), movesMax, strings.Join(order, ", "))
}

// quorate is a condition: every voter of the volume answers.
func quorate(volume string) func(*control.Status) error {
	return func(s *control.Status) error {
		if err := cluster.Members(len(s.Nodes))(s); err != nil {
			return err
		}
		v, err := cluster.Volume(s, volume)
		if err == nil && (v.Holder == "" || v.Health == control.HealthUnavailable) {
			err = fmt.Errorf("volume %s is %s, held by %q", volume, v.HealthText(), v.Holder)
		}
		return err
	}
}

// powerOff kills all nodes at once and starts them in some order, some time apart.
func (o *outage) powerOff(t *testing.T) {
	t.Helper()
	o.a.reset()
	var order []*cluster.Node
	var text []string
	for _, i := range o.rng.Perm(3) {
		order = append(order, o.c.Nodes[i])
	}
	for _, n := range order {
		if err := n.Signal(os.Kill); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range order {
		<-n.Exited()
	}
	var second time.Time // then two of three run
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i, n := range order {
		gap := time.Duration(o.rng.IntN(1500)) * time.Millisecond
		<-time.After(gap)
		text = append(text, fmt.Sprintf("%s after %v", n.Name, gap))
		if err := n.Begin(); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			second = time.Now()
		}
	}
	for _, n := range order {
		if err := n.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	pause := o.a.more(t, 20)
	resumed := o.a.first().Sub(second)
	if resumed > resumesMax {
		t.Errorf("no answer for %v after the second of three was started", resumed)
	}
	o.whole(t)
	o.row(t, "all killed at once, started in some order", pause, movesMax,
		fmt.Sprintf("%s; answers %v after the start of the second", strings.Join(text, ", "), resumed.Round(10*time.Millisecond)))
}

// frozen stops processes for longer than the timers.
func (o *outage) frozen(t *testing.T, what string, lasts time.Duration, which func() []*cluster.Node) {
	t.Helper()
	o.a.reset()
	nodes := which()
	for _, n := range nodes {
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(lasts)
	for _, n := range nodes {
		if err := n.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	bound := movesMax
	if len(nodes) == len(o.c.Nodes) {
		bound += lasts
	}
	o.a.more(t, 50)
	o.whole(t)
	o.row(t, fmt.Sprintf("%s frozen for %v", what, lasts), o.a.more(t, 50), bound, "")
}
