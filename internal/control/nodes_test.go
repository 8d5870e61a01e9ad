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
