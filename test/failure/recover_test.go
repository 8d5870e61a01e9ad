package failure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/ledger"
)

// Of five nodes two are gone for good, which were two of a volume's three voters.
// 'volume explain' says so and what would help; 'volume recover' lists who is left
// and wants the volume's name; the survivor had everything, and so has the volume.
func TestVolumeIsRecoveredByForce(t *testing.T) {
	c := cluster.New(t, 5)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	b := newBook("v")
	b.write(t, c.Nodes[0], 2000)
	voters := votersOf(t, c, c.Nodes[0], "v")
	dead, survivor := []*cluster.Node{voters[0], voters[1]}, voters[2]
	evenly(t, survivor, "v")
	before := time.Now()
	for _, n := range dead {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	var via *cluster.Node // somebody who has nothing to do with it
	for _, n := range c.Nodes {
		if n.Alive() && n != survivor {
			via = n
		}
	}
	if _, err := via.Await(20*time.Second, both(notAlive(dead[0].Name), notAlive(dead[1].Name))); err != nil {
		t.Fatal(err)
	}
	explained(t, via, "v", dead, before)
	forced(t, via, "the volume", "v", survivor, "volume", "recover", "v")
	b.verify(t, via)
	if c := votersOf(t, c, via, "v"); slices.Contains(c, dead[0]) || slices.Contains(c, dead[1]) {
		t.Errorf("those that were given up still vote: %v", names(c))
	}
	audited(t, via, "volume recover", "v", survivor)
	// The dead come back all the same: they are no members any more, and what they
	// have of it does not come to life.
	b.write(t, via, 500)
	for _, n := range dead {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := via.Await(redundancyTimeout, both(cluster.Members(5), cluster.Redundant("v"))); err != nil {
		t.Fatal(err)
	}
	b.verify(t, dead[0])
}

// Of three nodes two are gone for good, and the third did not have the last writes.
// The pool is recovered, then the volume, which has what the survivor had; that
// the rest may be lost was said before. Two fresh machines make it whole again.
func TestPoolIsRecoveredByForce(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	b := newBook("v")
	b.write(t, c.Nodes[0], 1000)
	holder, dead, survivor := c.Nodes[0], c.Nodes[:2], c.Nodes[2]
	evenly(t, survivor, "v")
	kept := b.sure
	if err := survivor.Kill(); err != nil {
		t.Fatal(err)
	}
	lost := newBook("v")
	lost.round = b.round
	lost.write(t, holder, 200)
	for _, n := range dead {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := survivor.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := survivor.Await(20*time.Second, both(notAlive(dead[0].Name), notAlive(dead[1].Name))); err != nil {
		t.Fatal(err)
	}
	s, err := survivor.Status()
	if err != nil {
		t.Fatal(err)
	}
	if r := survivor.CLI("volume", "recover", "v", "--yes-i-may-lose-data", "v"); r.Code == 0 || !strings.Contains(r.Err, "gabion pool recover") {
		t.Fatalf("a volume was recovered that no pool could take note of: %+v", r)
	}
	forced(t, survivor, "the pool", s.Pool.Name, survivor, "pool", "recover")
	forced(t, survivor, "the volume", "v", survivor, "volume", "recover", "v")
	audited(t, survivor, "pool recover", s.Pool.Name, survivor)
	audited(t, survivor, "volume recover", "v", survivor)
	client := survivor.Dial(t, "v")
	state := &ledger.State{Seen: make([]ledger.Seq, b.plan.Blocks)}
	if err := b.plan.Verify(client, state, b.round, kept); err != nil {
		t.Fatalf("what the survivor had: %v", err)
	}
	if err := lost.plan.Verify(client, &ledger.State{Seen: state.Seen}, lost.round, lost.sure); err == nil {
		t.Error("nothing is lost: this test tests nothing")
	}
	client.Close()
	for _, n := range dead {
		if out, err := survivor.Do("node", "lost", n.Name); err != nil {
			t.Fatal(err, out)
		}
	}
	for range dead {
		n := c.Add()
		if err := errors.Join(n.JoinVia(survivor), n.Start()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range dead {
		if out, err := survivor.Do("node", "remove", n.Name); err != nil {
			t.Fatal(err, out)
		}
	}
	fresh := c.Nodes[4]
	if _, err := fresh.Await(redundancyTimeout, both(cluster.Members(3), cluster.Redundant("v"))); err != nil {
		t.Fatal(err)
	}
	if err := b.plan.Verify(fresh.Dial(t, "v"), state, b.round, kept); err != nil {
		t.Fatalf("read from a fresh node: %v", err)
	}
}

// book is what was written to a volume, in rounds.
type book struct {
	volume string
	plan   ledger.Plan
	state  *ledger.State
	round  uint32
	sure   uint64 // writes of the round that were flushed
}

func newBook(volume string) *book {
	b := &book{volume: volume, plan: ledger.Plan{Blocks: 2048, Seed: 31}}
	b.state = &ledger.State{Seen: make([]ledger.Seq, b.plan.Blocks)}
	return b
}

// write is one more round of n writes through a node, all of them flushed.
func (b *book) write(t *testing.T, via *cluster.Node, n uint64) {
	t.Helper()
	client := via.Dial(t, b.volume)
	defer client.Close()
	b.round++
	r, err := ledger.Load{Plan: b.plan, Disk: client, Round: b.round, Depth: 8, FlushEvery: 32, Max: n}.Run(context.Background())
	if err != nil || r.Durable != n {
		t.Fatalf("%d of %d writes are durable: %v", r.Durable, n, err)
	}
	b.sure = n
}

// verify reads everything through a node.
func (b *book) verify(t *testing.T, via *cluster.Node) {
	t.Helper()
	client := via.Dial(t, b.volume)
	defer client.Close()
	if err := b.plan.Verify(client, b.state, b.round, b.sure); err != nil {
		t.Fatalf("round %d of %s, read from %s: %v", b.round, b.volume, via.Name, err)
	}
}

// both is a condition that holds when all others do.
func both(conditions ...func(*control.Status) error) func(*control.Status) error {
	return func(s *control.Status) error {
		var errs []error
		for _, ok := range conditions {
			errs = append(errs, ok(s))
		}
		return errors.Join(errs...)
	}
}

func names(nodes []*cluster.Node) (out []string) {
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return out
}

func explain(t *testing.T, via *cluster.Node, volume string) *control.Explanation {
	t.Helper()
	out, err := via.Do("volume", "explain", volume, "--json")
	if err != nil {
		t.Fatal(err)
	}
	e := new(control.Explanation)
	if err := json.Unmarshal([]byte(out), e); err != nil {
		t.Fatal(err)
	}
	return e
}

// votersOf asks who votes on a volume.
func votersOf(t *testing.T, c *cluster.Cluster, via *cluster.Node, volume string) (out []*cluster.Node) {
	t.Helper()
	for _, m := range explain(t, via, volume).Members {
		if n := c.Node(m.Node); n != nil && m.Role == "voter" {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		t.Fatal("volume ", volume, " has no voters")
	}
	return out
}

// evenly waits until a voter has everything that any voter has.
func evenly(t *testing.T, voter *cluster.Node, volume string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var has, most uint64
		e := explain(t, voter, volume)
		for _, m := range e.Members {
			most = max(most, m.Last)
			if m.Node == voter.Name {
				has = m.Last
			}
		}
		if has == most && most > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has %d of %d slots: %+v", voter.Name, has, most, e.Members)
		}
	}
}

// explained checks what is said of a volume whose voters have died.
func explained(t *testing.T, via *cluster.Node, volume string, dead []*cluster.Node, before time.Time) {
	t.Helper()
	e := explain(t, via, volume)
	if !e.Waits || e.Volume.Health != control.HealthUnavailable {
		t.Errorf("it waits and is unavailable: %+v", e)
	}
	since := map[string]int64{}
	for _, f := range e.Findings {
		if f.Help == "" {
			t.Errorf("no help for: %s", f.What)
		}
		since[f.What] = f.SinceUnixSeconds
	}
	for _, n := range dead {
		at, ok := since["node "+n.Name+" does not answer"]
		if now := time.Now().Unix(); !ok || at < before.Unix()-5 || at > now {
			t.Errorf("%s died at %d, and explain says %+v", n.Name, before.Unix(), e.Findings)
		}
	}
	text, err := via.Do("volume", "explain", volume)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"I/O waits: 1 of 3 voters answer", "bring back 1 of", "gabion volume recover " + volume, "no answer", " since "} {
		if !strings.Contains(text, want) {
			t.Errorf("explain does not say %q:\n%s", want, text)
		}
	}
}

// forced has something recovered as an operator does: looks at what would be done,
// types a wrong name, which does nothing, and then the right one.
func forced(t *testing.T, via *cluster.Node, what, name string, survivor *cluster.Node, command ...string) {
	t.Helper()
	out, err := via.Do(append(command, "--dry-run", "--json")...)
	if err != nil {
		t.Fatal(err)
	}
	var plan control.Recovered
	if err := json.Unmarshal([]byte(out), &plan); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(plan.Survivors, func(c control.Copy) bool { return c.Node == survivor.Name })
	if i < 0 || plan.Done || plan.From != survivor.Name || plan.Kept == 0 || plan.Survivors[i].Epoch == 0 || plan.Survivors[i].Last != plan.Kept {
		t.Fatalf("%v would go on from %s: %+v", command, survivor.Name, plan)
	}
	if wrong, err := typing(via, "not-"+name, command...); err == nil || !strings.Contains(wrong, "confirm it") {
		t.Fatalf("a wrong name was typed: %v\n%s", err, wrong)
	}
	right, err := typing(via, name, command...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, right)
	}
	t.Logf("%s:\n%s", strings.Join(command, " "), right)
	for _, want := range []string{"MEMBER", "Type the name of " + what, "is continued from " + survivor.Name,
		fmt.Sprintf("may be lost: everything after slot %d", plan.Kept), "members that do not answer may have had more"} {
		if !strings.Contains(right, want) {
			t.Errorf("%v does not say %q", command, want)
		}
	}
	if again, err := typing(via, name, command...); err == nil || !strings.Contains(again, "a majority of the voters answers") {
		t.Errorf("what has its majority was recovered again: %v\n%s", err, again)
	}
}

// typing runs a command that asks for a line.
func typing(n *cluster.Node, line string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), cluster.CallTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.Binary, append([]string{"--dir", n.Dir}, args...)...)
	cmd.Env = os.Environ()
	cmd.Stdin = strings.NewReader(line + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// audited checks that there is one record of what was forced, and not more.
func audited(t *testing.T, via *cluster.Node, what, of string, from *cluster.Node) {
	t.Helper()
	out, err := via.Do("pool", "audit", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var records []control.AuditRecord
	if err := json.Unmarshal([]byte(out), &records); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, r := range records {
		if r.What == what && r.Subject == of && r.Node == via.Name && strings.Contains(r.Detail, "from "+from.Name) && time.Since(time.Unix(r.UnixSeconds, 0)) < time.Hour {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d records of %s %s by %s: %s", found, what, of, via.Name, out)
	}
}
