package control

import (
	"context"
	"fmt"
	"reflect"
	"testing"
)

func sampleNode() *Node { n := sampleStatus().Nodes[0]; return &n }

func (d *recorder) DrainNode(ctx context.Context, name string) (*Node, error) {
	return sampleNode(), d.note(ctx, "drain %s", name)
}

func (d *recorder) UndrainNode(ctx context.Context, name string) (*Node, error) {
	return sampleNode(), d.note(ctx, "undrain %s", name)
}

func (d *recorder) LoseNode(ctx context.Context, name string) (*Node, error) {
	return sampleNode(), d.note(ctx, "lost %s", name)
}

func (d *recorder) RemoveNode(ctx context.Context, name string) error {
	return d.note(ctx, "remove %s", name)
}

func (d *recorder) Policy(ctx context.Context) (*Policy, error) {
	return &Policy{EvictAfterSeconds: 600}, d.note(ctx, "policy")
}

func (d *recorder) SetPolicy(ctx context.Context, c PolicyChange) (*Policy, error) {
	return &Policy{EvictAfterSeconds: -1, RepairPaused: true, RepairBytesPerSecond: 5},
		d.note(ctx, "set %d %v %v", *c.EvictAfterSeconds, *c.RepairPaused, c.RepairBytesPerSecond == nil)
}

func TestCallsAboutNodesReachTheDaemon(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	ctx := t.Context()
	for name, f := range map[string]func(context.Context, string) (*Node, error){
		"drain": c.DrainNode, "undrain": c.UndrainNode, "lost": c.LoseNode,
	} {
		n, err := f(ctx, "a b")
		if err != nil || !reflect.DeepEqual(n, sampleNode()) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
		if last := d.asked[len(d.asked)-1]; last != name+" a b" {
			t.Errorf("%s arrived as %s", name, last)
		}
	}
	if err := c.RemoveNode(ctx, "n1"); err != nil {
		t.Error(err)
	}
	if p, err := c.Policy(ctx); err != nil || p.EvictAfterSeconds != 600 {
		t.Errorf("policy: %+v, %v", p, err)
	}
	never, paused := int64(-1), true
	if p, err := c.SetPolicy(ctx, PolicyChange{EvictAfterSeconds: &never, RepairPaused: &paused}); err != nil || p.RepairBytesPerSecond != 5 {
		t.Errorf("set policy: %+v, %v", p, err)
	}
	if got := fmt.Sprint(d.asked[3:]); got != "[remove n1 policy set -1 true true]" {
		t.Errorf("asked %s", got)
	}
}

func (d *recorder) ExplainVolume(ctx context.Context, name string) (*Explanation, error) {
	return &Explanation{Waits: true, Findings: []Finding{{What: "a", SinceUnixSeconds: 3, Help: "b"}}}, d.note(ctx, "explain %s", name)
}

func (d *recorder) RecoverVolume(ctx context.Context, name string, q RecoverVolume) (*Recovered, error) {
	return &Recovered{From: "n1", Kept: 3}, d.note(ctx, "recover %s %+v", name, q)
}

func (d *recorder) RecoverPool(ctx context.Context, q RecoverVolume) (*Recovered, error) {
	return &Recovered{From: "n2", Seen: 3}, d.note(ctx, "recover pool %+v", q)
}

func (d *recorder) Audit(ctx context.Context) ([]AuditRecord, error) {
	return []AuditRecord{{Node: "n1", What: "w"}}, d.note(ctx, "audit")
}

func TestCallsOfADoctorReachTheDaemon(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	ctx := t.Context()
	if e, err := c.ExplainVolume(ctx, "v"); err != nil || !e.Waits || e.Findings[0].SinceUnixSeconds != 3 {
		t.Errorf("explain: %+v, %v", e, err)
	}
	if r, err := c.RecoverVolume(ctx, "v", RecoverVolume{Confirm: "v", From: "n1"}); err != nil || r.Kept != 3 {
		t.Errorf("recover: %+v, %v", r, err)
	}
	if r, err := c.RecoverPool(ctx, RecoverVolume{DryRun: true}); err != nil || r.Seen != 3 {
		t.Errorf("recover pool: %+v, %v", r, err)
	}
	if a, err := c.Audit(ctx); err != nil || len(a) != 1 || a[0].Node != "n1" {
		t.Errorf("audit: %+v, %v", a, err)
	}
	want := "[explain v recover v {Confirm:v From:n1 DryRun:false} recover pool {Confirm: From: DryRun:true} audit]"
	if got := fmt.Sprint(d.asked); got != want {
		t.Errorf("asked %s", got)
	}
}
