package node

import (
	"context"
	"fmt"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// surveyMax bounds the search for copies of a map block.
const surveyMax = 5 * time.Second

// ExplainVolume implements control.Daemon.
func (n *Node) ExplainVolume(ctx context.Context, name string) (*control.Explanation, error) {
	d, err := n.record(name)
	if err != nil {
		return nil, err
	}
	v, err := n.Volume(ctx, name)
	if err != nil {
		return nil, err
	}
	e := &control.Explanation{Volume: *v}
	sctx, cancel := context.WithTimeout(ctx, surveyMax)
	defer cancel()
	found, err := n.VolumeSurvivors(sctx, d)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	members := membersOf(found, known(d))
	in := 0
	for _, m := range members {
		c := n.copyOf(m, found)
		e.Members = append(e.Members, c)
		if c.Answers {
			in++
			continue
		}
		e.Findings = append(e.Findings, n.absence(m.Node))
	}
	e.Waits = in*2 <= len(members)
	if e.Waits {
		e.Findings = append([]control.Finding{n.noQuorum(name, in, len(members), members)}, e.Findings...)
	}
	e.Findings = append(e.Findings, n.shortage(d, v)...)
	return e, nil
}

// membersOf is the newest configuration that was found, without learners, or the
// nodes that are known of as voters.
func membersOf(found []quorum.Survivor, known []ident.NodeID) (out []quorum.Member) {
	var newest quorum.Config
	for _, s := range found {
		if s.Config.Version > newest.Version {
			newest = s.Config
		}
	}
	for _, m := range newest.Members {
		if m.Role != quorum.Learner {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		for _, id := range known {
			out = append(out, quorum.Member{Node: id, Role: quorum.Voter})
		}
	}
	return out
}

// copyOf describes a member by what was found at its node.
func (n *Node) copyOf(m quorum.Member, found []quorum.Survivor) control.Copy {
	c := control.Copy{Node: n.describe(m.Node).Name, Role: m.Role.String(), State: n.View.State(m.Node).String()}
	if m.Node != n.Self && c.State != overlay.Alive.String() {
		c.DownSeconds = -1
		if h := n.View.Heard(m.Node); h != overlay.Never {
			c.DownSeconds = h.Seconds()
		}
	}
	for _, s := range found {
		if s.Member.Node == m.Node && s.Member.Brick == m.Brick {
			c.Answers, c.Epoch, c.Durable, c.Last = true, s.Promised.Epoch, s.Durable, s.Last
		}
	}
	return c
}

// absence explains a member that does not answer.
func (n *Node) absence(id ident.NodeID) control.Finding {
	name := n.describe(id).Name
	f := control.Finding{What: "node " + name + " does not answer",
		Help: fmt.Sprintf("start it; if it is gone for good: gabion node lost %s", name)}
	r, ok := n.Pool.State().Node(id)
	switch h := n.View.Heard(id); {
	case !ok:
		f.What, f.Help = "node "+name+" is not in the pool any more", "its vote moves to another node when a majority is in reach"
	case r.Standing == pool.Lost:
		f.What, f.Help = "node "+name+" was declared lost", "its copies are made anew elsewhere when a majority is in reach"
	case n.alive(id):
		f.What, f.Help = "node "+name+" is alive and does not have its copy", "look at its bricks: gabion status; a brick that was wiped or set aside is replaced by itself"
	case h != overlay.Never:
		f.SinceUnixSeconds = time.Now().Add(-h).Unix()
	}
	return f
}

func (n *Node) noQuorum(name string, in, of int, members []quorum.Member) control.Finding {
	need := of/2 + 1 - in
	var out []string
	for _, m := range members {
		if !n.alive(m.Node) {
			out = append(out, n.describe(m.Node).Name)
		}
	}
	return control.Finding{
		What: fmt.Sprintf("I/O waits: %d of %d voters answer", in, of),
		Help: fmt.Sprintf("bring back %d of %v; only if they are gone for good: gabion volume recover %s", need, out, name),
	}
}

// shortage explains copies that are missing although a majority is there.
func (n *Node) shortage(d pool.Volume, v *control.Volume) (out []control.Finding) {
	st := n.Pool.State()
	able := 0
	for i := range st.Nodes {
		if r := &st.Nodes[i]; !r.Leaving() && !r.Witness && len(r.Bricks) > 0 {
			able++
		}
	}
	if able < d.Replicas {
		out = append(out, control.Finding{What: fmt.Sprintf("the pool has %d nodes that can hold its %d copies", able, d.Replicas), Help: "add a node with: gabion node run --join"})
	}
	if r := v.Repair; r != nil {
		f := control.Finding{What: fmt.Sprintf("%d extents (%d MiB) have too few copies", r.Extents, r.Bytes>>20), Help: "they are being copied"}
		if r.Paused {
			f.Help = "copying is paused; go on with: gabion pool set repair=on"
		}
		out = append(out, f)
	}
	if v.Holder == "" && v.ReplicasPresent < v.ReplicasWanted {
		out = append(out, control.Finding{What: "nobody has it attached", Help: "a member of it looks after it; attaching it does so at once: gabion volume attach " + d.Name})
	}
	return out
}

// RecoverVolume implements control.Daemon.
func (n *Node) RecoverVolume(ctx context.Context, name string, q control.RecoverVolume) (*control.Recovered, error) {
	const op = "volume recover"
	d, err := n.record(name)
	if err != nil {
		return nil, err
	}
	if !q.DryRun && q.Confirm != name {
		return nil, fault.Newf(fault.Invalid, op, name, "this may lose data: confirm it with the volume's name")
	}
	found, err := n.VolumeSurvivors(ctx, d)
	if err != nil {
		return nil, err
	}
	if !q.DryRun {
		if done, err := n.FinishForced(ctx, d, found); done || err != nil {
			return &control.Recovered{Done: done, MayBeLost: "no more than by the recovery of which the pool did not know yet"}, err
		}
	}
	out, from, voters, err := n.planRecovery(op, name, found, q.From, d.Replicas)
	if err != nil || q.DryRun {
		return out, err
	}
	r, err := n.ForceVolume(ctx, d, from, voters, pool.Audit{When: time.Now().Unix(), Node: n.Self, What: op, Subject: name,
		Detail: fmt.Sprintf("from %s, slot %d kept, %d seen, voters %v", out.From, out.Kept, out.Seen, out.Voters)})
	if r.Config.Version > 0 {
		out.Kept, out.Seen, out.Done = r.Kept, r.Seen, true
	}
	return out, err
}

// RecoverPool implements control.Daemon.
func (n *Node) RecoverPool(ctx context.Context, q control.RecoverVolume) (*control.Recovered, error) {
	const op = "pool recover"
	name := n.Pool.State().Name
	if !q.DryRun && q.Confirm != name {
		return nil, fault.Newf(fault.Invalid, op, name, "this may lose what the pool decided last: confirm it with the pool's name")
	}
	found, err := n.Pool.Survivors(ctx)
	if err != nil {
		return nil, err
	}
	out, from, voters, err := n.planRecovery(op, name, found, q.From, pool.VotersMax)
	if err != nil || q.DryRun {
		return out, err
	}
	n.cfg.Log.Error("the pool's quorum is replaced by an operator's word", "from", out.From, "voters", out.Voters)
	r, err := n.Pool.Recover(ctx, from, voters, pool.Audit{When: time.Now().Unix(), Node: n.Self, What: op, Subject: name,
		Detail: fmt.Sprintf("from %s, slot %d kept, %d seen, voters %v", out.From, out.Kept, out.Seen, out.Voters)})
	out.Kept, out.Seen, out.Done = r.Kept, r.Seen, r.Config.Version > 0
	return out, err
}

// planRecovery chooses the survivor to go on from and the voters: that one, and the
// others with data on different nodes, as many as are wanted.
func (n *Node) planRecovery(op, name string, found []quorum.Survivor, want string, most int) (*control.Recovered, quorum.Member, []quorum.Member, error) {
	out := &control.Recovered{}
	if quorum.Quorate(found) {
		return out, quorum.Member{}, nil, fault.Newf(fault.Conflict, op, name, "a majority of the voters answers: nothing is to be forced")
	}
	for _, s := range found {
		out.Survivors = append(out.Survivors, n.copyOf(s.Member, found))
		out.Seen = max(out.Seen, s.Last)
	}
	best, voters := ChooseSurvivor(found, func(s quorum.Survivor) bool { return want == "" || n.describe(s.Member.Node).Name == want }, most)
	if best < 0 {
		return out, quorum.Member{}, nil, fault.Newf(fault.NotFound, op, name, "no copy with data answers%s; there is nothing to go on from", map[bool]string{true: " on " + want}[want != ""])
	}
	from := found[best].Member
	out.From, out.Kept = out.Survivors[best].Node, found[best].Last
	for _, m := range voters {
		out.Voters = append(out.Voters, n.describe(m.Node).Name)
	}
	out.MayBeLost = fmt.Sprintf("everything after slot %d", out.Kept)
	if out.Seen > out.Kept {
		out.MayBeLost += fmt.Sprintf(", of which a survivor has seen slots up to %d", out.Seen)
	}
	out.MayBeLost += "; members that do not answer may have had more, also what was flushed"
	return out, from, voters, nil
}

// Audit implements control.Daemon.
func (n *Node) Audit(context.Context) ([]control.AuditRecord, error) {
	var out []control.AuditRecord
	for _, a := range n.Pool.State().Audit {
		out = append(out, control.AuditRecord{UnixSeconds: a.When, Node: n.describe(a.Node).Name, What: a.What, Subject: a.Subject, Detail: a.Detail})
	}
	return out, nil
}
