package control

import (
	"context"
	"reflect"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func (d *recorder) Snapshots(ctx context.Context, volume string) ([]Snapshot, error) {
	return []Snapshot{{Volume: volume, Name: "old", CreatedUnixSeconds: 3}, {Volume: volume, Name: "new", CreatedUnixSeconds: 3}},
		d.note(ctx, "snapshots %s", volume)
}

func (d *recorder) CreateSnapshot(ctx context.Context, volume, name string) (*Snapshot, error) {
	return &Snapshot{Volume: volume, Name: name, SizeBytes: 7, OwnBytes: -1}, d.note(ctx, "snapshot %s %s", volume, name)
}

func (d *recorder) DeleteSnapshot(ctx context.Context, volume, name string) error {
	return d.note(ctx, "unsnapshot %s %s", volume, name)
}

func TestSnapshotCallsReachTheDaemon(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	list, err := c.Snapshots(t.Context(), "pg")
	if err != nil || len(list) != 2 || list[0].Name != "old" || list[1].Name != "new" {
		t.Fatalf("%v, %v", list, err)
	}
	s, err := c.CreateSnapshot(t.Context(), "pg", "a/b")
	if err != nil || *s != (Snapshot{Volume: "pg", Name: "a/b", SizeBytes: 7, OwnBytes: -1}) {
		t.Fatalf("%v, %v", s, err)
	}
	if err := c.DeleteSnapshot(t.Context(), "pg", "a/b"); err != nil {
		t.Fatal(err)
	}
	if want := []string{"snapshots pg", "snapshot pg a/b", "unsnapshot pg a/b"}; !reflect.DeepEqual(d.asked, want) {
		t.Fatalf("asked %q, not %q", d.asked, want)
	}
	if err := c.DeleteSnapshot(t.Context(), "pg", ".."); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name that a path cannot carry: %v", err)
	}
}
