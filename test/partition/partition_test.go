package partition

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// Bounds of the pauses, far above what is measured on a machine with little else to do.
const (
	goesOnMax  = 3 * time.Second  // when a majority stays in reach of the holder
	elsewhere  = 10 * time.Second // until another node serves a new client
	movesMax   = 10 * time.Second // until an attached client has moved
	resumesMax = 10 * time.Second // after all nodes see each other again
	frozenFor  = 6 * time.Second  // longer than each lease and timeout that lets others go on
	inFlight   = time.Second      // for an answer on its way when the cut was made
)

// witnessed is the block that a client of the new holder writes, and one of the
// old holder reads.
const witnessed = 8192

// rig is a pool of three whose volume an attached client writes all the time.
type rig struct {
	c     *cluster.Cluster
	a     *attached
	plan  ledger.Plan // of those who stay with a holder that is cut off
	state *ledger.State
	round uint32
	table []string
}

// Three nodes, of which some do not hear each other: nobody loses a write that
// was answered, no two holders answer, and what can go on does.
func TestPartitions(t *testing.T) {
	c := pool(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	r := &rig{c: c, plan: ledger.Plan{Blocks: 1024, First: 4096, Seed: 77}}
	r.state = &ledger.State{Seen: make([]ledger.Seq, r.plan.Blocks)}
	r.a = attach(t, c, "v", 1, c.Nodes...)

	r.isolate(t, "holder cut off from both others", func(h *cluster.Node, o []*cluster.Node) { cut(t, h, o...) }, false)
	r.goesOn(t, "holder cut off from one other", func(h *cluster.Node, o []*cluster.Node) { cut(t, h, o[0]) })
	r.isolate(t, "holder heard by nobody, hears all", func(h *cluster.Node, o []*cluster.Node) {
		for _, b := range o {
			mute(t, h, b)
		}
	}, false)
	r.goesOn(t, "the two others cut off from each other", func(h *cluster.Node, o []*cluster.Node) { cut(t, o[0], o[1]) })
	r.shattered(t)
	r.isolate(t, "holder cut off and frozen, then thawed", func(h *cluster.Node, o []*cluster.Node) { cut(t, h, o...) }, true)

	t.Logf("pauses of writers\n| network | a new client at another node served after | the attached client waited | |\n|---|---:|---:|---|\n%s",
		strings.Join(r.table, "\n"))
	r.a.finish(t)
}

// row adds to the table.
func (r *rig) row(what string, fresh, pause time.Duration, note string) {
	first := "-"
	if fresh > 0 {
		first = fresh.Round(10 * time.Millisecond).String()
	}
	r.table = append(r.table, fmt.Sprintf("| %s | %s | %v | %s |", what, first, pause.Round(10*time.Millisecond), note))
}

// holder is the node that serves the attached client, and the others.
func (r *rig) holder(t *testing.T) (*cluster.Node, []*cluster.Node) {
	t.Helper()
	h := r.a.served()
	if h == nil {
		t.Fatal("nobody serves: ", r.a.engine.State().Cause)
	}
	if p := r.c.Holder(t, h, "v"); p != h {
		t.Fatalf("%s serves, %s holds", h.Name, p.Name)
	}
	r.a.reset()
	return h, r.c.Others(h)
}

// whole heals the network and waits until nothing is left of the cut.
func (r *rig) whole(t *testing.T) {
	t.Helper()
	heal(t, r.c)
	for _, n := range r.c.Nodes {
		if _, err := n.Await(patience, cluster.Members(len(r.c.Nodes))); err != nil {
			t.Fatal(n.Name, ": ", err)
		}
	}
	if _, err := r.c.Nodes[0].Await(patience, cluster.Redundant("v")); err != nil {
		t.Fatal(err)
	}
}

// isolate takes the holder away from the others, but from none of its clients.
func (r *rig) isolate(t *testing.T, what string, sever func(*cluster.Node, []*cluster.Node), freeze bool) {
	t.Helper()
	h, others := r.holder(t)
	before := bytes.Repeat([]byte{byte(2*r.round + 1)}, ledger.BlockSize)
	after := bytes.Repeat([]byte{byte(2*r.round + 2)}, ledger.BlockSize)
	if err := h.Dial(t, "v").WriteAt(before, witnessed*ledger.BlockSize); err != nil {
		t.Fatal(err)
	}
	r.round++
	stays := h.Dial(t, "v")
	w := write(t, r.plan, r.round, stays)
	reader := look(h.Dial(t, "v"), after)

	began := time.Now()
	sever(h, others)
	silent := time.Now()
	if freeze {
		if err := h.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	fresh, took := dial(t, others[0], began)
	served := time.Now()
	if err := fresh.WriteAt(after, witnessed*ledger.BlockSize); err != nil {
		t.Fatal(err)
	}
	reader.now.Store(true)
	if took > elsewhere {
		t.Errorf("%s: another node served after %v", what, took)
	}
	// One attached client finds its way while the cut lasts, the other one by it.
	if r.round != 2 {
		r.a.more(t, 20)
	}
	if freeze {
		<-time.After(time.Until(silent.Add(frozenFor)))
		if err := h.Resume(); err != nil {
			t.Fatal(err)
		}
		r.a.more(t, 100) // time for the one that thawed to do what it was about to
	}
	r.whole(t)
	pause := r.a.more(t, 50)
	if pause > movesMax {
		t.Errorf("%s: the attached client waited %v", what, pause)
	}

	// Whoever stayed got no answer after the cut, and is told the end of it.
	select {
	case <-w.done:
	case <-time.After(patience):
		t.Errorf("%s: requests at the node that lost the volume do not end", what)
		stays.Abort()
	}
	if last := w.lastAnswer(); last.After(silent.Add(inFlight)) || last.After(served) {
		t.Errorf("%s: the holder that was cut off answered a write %v after the cut; another one served after %v",
			what, last.Sub(silent), served.Sub(silent))
	}
	reader.finish(t, what)
	if now := r.c.Holder(t, others[0], "v"); now == h {
		t.Errorf("%s: %s has the volume again", what, h.Name)
	}
	if c, err := nbdclient.Dial(h.Info.NBD, "v"); err == nil {
		t.Errorf("%s: %s exports the volume while another holds it", what, h.Name)
		c.Abort()
	}
	w.stop(t, fresh, r.state)
	fresh.Close()
	t.Logf("%s: %d writes answered by %s, all there on %s", what, w.result.Answered, h.Name, others[0].Name)
	r.row(what, took, pause, fmt.Sprintf("the old holder answered its last write %v after the cut, %d reads afterwards",
		max(0, w.lastAnswer().Sub(silent)).Round(time.Millisecond), reader.late.Load()))
}

// dial connects to n as soon as that serves the volume.
func dial(t *testing.T, n *cluster.Node, began time.Time) (*nbdclient.Client, time.Duration) {
	t.Helper()
	for {
		c, err := nbdclient.Dial(n.Info.NBD, "v")
		if err == nil {
			t.Cleanup(c.Abort)
			return c, time.Since(began)
		}
		if time.Since(began) > patience {
			t.Fatalf("%s does not take the volume: %v", n.Name, err)
		}
		time.Sleep(20 * time.Millisecond) // the node says no at once, and not when it will say yes
	}
}

// reads is a client that keeps reading one block.
type reads struct {
	c     *nbdclient.Client
	now   atomic.Bool  // the new content was acknowledged elsewhere
	late  atomic.Int64 // reads asked for afterwards and answered
	stale atomic.Int64 // those that were answered with something else
	done  chan struct{}
}

func look(c *nbdclient.Client, want []byte) *reads {
	r := &reads{c: c, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		tick := time.NewTicker(pace)
		defer tick.Stop()
		p := make([]byte, ledger.BlockSize)
		for range tick.C {
			now := r.now.Load()
			if c.ReadAt(p, witnessed*ledger.BlockSize) != nil {
				if c.Err() != nil {
					return
				}
				continue
			}
			if now {
				r.late.Add(1)
				if !bytes.Equal(p, want) {
					r.stale.Add(1)
				}
			}
		}
	}()
	return r
}

func (r *reads) finish(t *testing.T, what string) {
	t.Helper()
	r.c.Abort()
	<-r.done
	if n := r.stale.Load(); n > 0 {
		t.Errorf("%s: the holder that was cut off answered %d reads with what had been overwritten", what, n)
	}
}

// goesOn cuts so that the holder keeps a majority.
func (r *rig) goesOn(t *testing.T, what string, sever func(*cluster.Node, []*cluster.Node)) {
	t.Helper()
	h, others := r.holder(t)
	moves := r.a.engine.State().Moves
	sever(h, others)
	began := time.Now()
	for time.Since(began) < 4*time.Second { // longer than it takes to call a node dead
		r.a.more(t, 20)
	}
	r.whole(t)
	pause := r.a.more(t, 20)
	if pause > goesOnMax {
		t.Errorf("%s: a write took %v", what, pause)
	}
	if r.a.engine.State().Moves != moves {
		t.Errorf("%s: the volume moved: %s", what, r.a.engine.State().Cause)
	}
	r.row(what, 0, pause, "the holder stays")
}

// shattered cuts all nodes off from each other.
func (r *rig) shattered(t *testing.T) {
	t.Helper()
	const what, lasts = "every node alone for 8 s", 8 * time.Second
	h, others := r.holder(t)
	began := time.Now()
	cut(t, h, others...)
	cut(t, others[0], others[1])
	silent := time.Now()
	<-time.After(time.Until(began.Add(lasts)))
	if last := r.a.lastAnswer(); last.After(silent.Add(inFlight)) {
		t.Errorf("%s: somebody answered %v after the cut", what, last.Sub(silent))
	}
	heal(t, r.c)
	healed := time.Now()
	r.a.more(t, 1)
	resumed := time.Since(healed)
	if resumed > resumesMax {
		t.Errorf("%s: no answer for %v after the end of it", what, resumed)
	}
	r.whole(t)
	r.row(what, 0, r.a.more(t, 20), fmt.Sprintf("answers again %v after the end of it", resumed.Round(10*time.Millisecond)))
}
