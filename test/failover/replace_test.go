package failover

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/postgres"
)

// Every node of the pool is replaced by a fresh one, one after the other, under
// PostgreSQL and a ledger: two are drained and removed, one dies for good. Nobody
// sees an error, nobody waits for long, and nothing that was acknowledged is lost.
func TestEveryNodeIsReplaced(t *testing.T) {
	cluster.Need(t, true, "mkfs.ext4", "e2fsck", "mount", postgres.Bin("pgbench"))
	c := cluster.New(t, 3)
	old := append([]*cluster.Node(nil), c.Nodes...)
	c.CreateVolume(t, c.Nodes[0], "v", "1G", "--replicas", "3")
	a := mountVolume(t, c, c.Nodes[0], "v")
	db := postgres.NewServer(t, &postgres.Mount{Path: a.Path}, filepath.Join(c.Dir, "db"))
	if err := db.Init(); err != nil {
		t.Fatal(err)
	}
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	bench, err := db.StartBench(2, 2)
	if err != nil {
		t.Fatal(err)
	}
	commits, err := db.StartCommits()
	if err != nil {
		t.Fatal(err)
	}
	l := startLedger(t, a)
	for _, out := range []*cluster.Node{old[2], old[1], old[0]} {
		l.gauge.reset()
		began := time.Now()
		via := old[0]
		if out == via {
			via = c.Nodes[len(c.Nodes)-1]
		}
		fresh := c.Add()
		if err := fresh.JoinVia(via); err != nil {
			t.Fatal(err)
		}
		if err := fresh.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := via.Await(patience, listed(fresh.Name)); err != nil {
			t.Fatal(err)
		}
		how := "drained"
		if out == old[1] {
			how = "lost"
			lose(t, via, out)
		} else {
			drain(t, via, out)
		}
		if _, err := via.Await(patience, cluster.Redundant("v")); err != nil {
			t.Fatal(err)
		}
		if out, err := via.Do("node", "remove", out.Name); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if out.Alive() {
			if err := out.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		pause := l.gauge.more(t, 20)
		t.Logf("%s %s and replaced by %s in %v; the longest pause of a writer was %v", out.Name, how, fresh.Name,
			time.Since(began).Round(10*time.Millisecond), pause.Round(10*time.Millisecond))
		if pause > pauseMax {
			t.Errorf("a write took %v", pause)
		}
	}
	if err := bench.Stop(); err != nil {
		t.Error(err)
	}
	l.stop(t)
	if err := db.Missing(commits.Stop()); err != nil {
		t.Error(err)
	}
	if err := db.Check(); err != nil {
		t.Error(err)
	}
	a.finish(t)
}

// listed is a condition: the pool knows of the node and its brick.
func listed(name string) func(*control.Status) error {
	return func(s *control.Status) error {
		for _, b := range s.Bricks {
			if b.Node == name {
				return nil
			}
		}
		return errors.New(name + " is not in the pool yet")
	}
}

// drain empties a node and waits until it is safe to remove.
func drain(t *testing.T, via, out *cluster.Node) {
	t.Helper()
	said, err := via.Do("node", "drain", out.Name)
	if err != nil || !strings.Contains(said, "safe to remove") {
		t.Fatalf("drain of %s: %v %s", out.Name, err, said)
	}
}

// lose kills a node for good and says so.
func lose(t *testing.T, via, out *cluster.Node) {
	t.Helper()
	if err := out.Kill(); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(patience)
	for {
		said, err := via.Do("node", "lost", out.Name)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s cannot be declared lost: %v %s", out.Name, err, said)
		}
		time.Sleep(200 * time.Millisecond) // until its silence is noticed
	}
	for {
		s, err := via.Status()
		if err == nil {
			for _, n := range s.Nodes {
				if n.Name == out.Name && n.SafeToRemove {
					return
				}
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not given up: %+v", out.Name, s.Nodes)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
