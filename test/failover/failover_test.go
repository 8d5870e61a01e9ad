package failover

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
	"github.com/gabion-storage/gabion/test/postgres"
)

// pauseMax is how long the loss of the serving node may hold up whoever works
// on the file system.
const pauseMax = 10 * time.Second

// rounds is how often everything is done: FAILOVER_ROUNDS, else 2.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("FAILOVER_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 2
}

// A file system with PostgreSQL and a ledger on it, on a volume under 'gabion
// attach', while the serving node is killed, is frozen past all timers and
// thawed, is drained, and each node in turn is stopped and started. Nobody sees an error,
// nobody waits for long, and nothing that was acknowledged is lost.
func TestFailoverUnderAMountedFileSystem(t *testing.T) {
	cluster.Need(t, true, "mkfs.ext4", "e2fsck", "mount", postgres.Bin("pgbench"))
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "1G", "--replicas", "3")
	a := mountVolume(t, c, c.Nodes[0], "v")

	db := postgres.NewServer(t, &postgres.Mount{Path: a.Path}, filepath.Join(c.Dir, "db"))
	if err := db.Init(); err != nil {
		t.Fatal(err)
	}
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	commits, err := db.StartCommits()
	if err != nil {
		t.Fatal(err)
	}
	l := startLedger(t, a)

	var table []string
	for round := range rounds() {
		row := []string{strconv.Itoa(round + 1)}
		for _, blow := range []func(*testing.T, *attached) string{killed, frozen, drained, rolled} {
			l.gauge.reset()
			what := blow(t, a)
			pause := l.gauge.more(t, 20)
			if err := commits.More(5); err != nil {
				t.Fatal(err)
			}
			if pause > pauseMax {
				t.Errorf("round %d, %s: a write took %v", round+1, what, pause)
			}
			row = append(row, pause.Round(10*time.Millisecond).String())
			if _, err := c.Nodes[0].Await(patience, cluster.Redundant("v")); err != nil {
				t.Fatal(err)
			}
		}
		table = append(table, "| "+strings.Join(row, " | ")+" |")
	}
	t.Logf("longest pause of a writer\n| round | killed | frozen and thawed | drained | all restarted |\n|---:|---:|---:|---:|---:|\n%s", strings.Join(table, "\n"))

	l.stop(t)
	acked := commits.Stop()
	_, pause, err := commits.Acked()
	if err != nil {
		t.Error(err)
	}
	i, err := a.look()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d commits, the longest %v; %d moves, the longest %v", acked, pause.Round(time.Millisecond), i.State.Moves, i.State.LongestPause.Round(time.Millisecond))
	if err := db.Missing(acked); err != nil {
		t.Error(err)
	}
	if err := db.Check(); err != nil {
		t.Error(err)
	}
	a.finish(t)
}

// killed kills the node that serves, waits for the next, and starts it again.
func killed(t *testing.T, a *attached) string {
	n := a.served(t)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	next := a.moved(t, n)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s killed, %s went on", n.Name, next.Name)
}

// frozenFor is longer than every lease and timeout that lets others go on.
const frozenFor = 6 * time.Second

// frozen stops the node that serves until another does and all timers are over,
// and lets it do what it was about to.
func frozen(t *testing.T, a *attached) string {
	n := a.served(t)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	until := time.After(frozenFor)
	next := a.moved(t, n)
	<-until
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s frozen, %s went on", n.Name, next.Name)
}

// drained takes the node that serves out of use, restarts it when another
// serves, and takes it back.
func drained(t *testing.T, a *attached) string {
	n := a.served(t)
	if _, err := n.Do("node", "drain", n.Name, "--no-wait"); err != nil {
		t.Fatal(err)
	}
	next := a.moved(t, n)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Do("node", "undrain", n.Name); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s drained, %s went on", n.Name, next.Name)
}

// rolled stops each node in turn and starts it again.
func rolled(t *testing.T, a *attached) string {
	for _, n := range a.c.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		a.served(t)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Await(patience, cluster.Redundant("v")); err != nil {
			t.Fatal(err)
		}
	}
	return "all restarted in turn"
}

// moved waits until another node than n serves.
func (a *attached) moved(t *testing.T, n *cluster.Node) *cluster.Node {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if now := a.served(t); now != n {
			return now
		}
		if time.Now().After(end) {
			t.Fatalf("%s still serves", n.Name)
		}
	}
}

// book is a ledger in a file of the mounted file system.
type book struct {
	plan   ledger.Plan
	disk   *ledger.Device
	gauge  *gauge
	cancel context.CancelFunc
	done   chan struct{}
	result ledger.Result
	err    error
}

func startLedger(t *testing.T, a *attached) *book {
	t.Helper()
	b := &book{plan: ledger.Plan{Blocks: 4096, Seed: 5}, gauge: newGauge(), done: make(chan struct{})}
	path := filepath.Join(a.Path, "ledger")
	if err := os.WriteFile(path, make([]byte, b.plan.Blocks*ledger.BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.disk, err = ledger.OpenDevice(path); err != nil {
		t.Fatal(err)
	}
	if err := b.disk.Flush(); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(b.done)
		b.result, b.err = ledger.Load{Plan: b.plan, Disk: b.disk, Round: 1, Depth: 8, FlushEvery: 8,
			Answered: func(uint64) { b.gauge.tick() }}.Run(ctx)
		b.gauge.end(b.err)
	}()
	t.Cleanup(func() { b.cancel(); <-b.done; b.disk.Close() })
	return b
}

// stop ends the load and checks every write that was acknowledged.
func (b *book) stop(t *testing.T) {
	t.Helper()
	b.cancel()
	<-b.done
	if b.err != nil {
		t.Fatal(b.err)
	}
	state := &ledger.State{Seen: make([]ledger.Seq, b.plan.Blocks)}
	if err := b.plan.Verify(b.disk, state, 1, b.result.Answered); err != nil {
		t.Error(err)
	}
	t.Logf("%d writes of the ledger, all there", b.result.Answered)
	b.disk.Close()
}
