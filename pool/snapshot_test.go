package pool

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// TestSnapshotsFollowTheirRevision: an older list that comes late changes
// nothing, whatever the order of the commands.
func TestSnapshotsFollowTheirRevision(t *testing.T) {
	s := testState(t)
	id := ident.VolumeID{1}
	a, b := Snapshot{Name: "a", Size: 1 << 20, Created: 3}, Snapshot{Name: "b", Size: 1 << 20, Created: 2}
	must(t, s, SetSnapshots(id, 2, []Snapshot{b, a}))
	must(t, s, SetSnapshots(id, 1, []Snapshot{a}))
	must(t, s, SetSnapshots(id, 2, nil))
	v, _ := s.Volume(id)
	if !reflect.DeepEqual(v.Snapshots, []Snapshot{b, a}) || v.SnapshotRevision != 2 {
		t.Errorf("%+v", v)
	}
	if x, ok := v.SnapshotNamed("b"); !ok || x != b {
		t.Errorf("%v %v", x, ok)
	}
	back, err := DecodeState(EncodeState(s))
	if err != nil || !reflect.DeepEqual(back, s) {
		t.Errorf("it does not survive its encoding: %v", err)
	}
	before := s.Clone()
	must(t, s, SetSnapshots(id, 3, []Snapshot{a}))
	if w, _ := before.Volume(id); !reflect.DeepEqual(w.Snapshots, []Snapshot{b, a}) {
		t.Error("the state before was changed, too")
	}
	must(t, s, DeleteVolume(id))
	if err := Apply(s, SetSnapshots(id, 4, nil)); !fault.Is(err, fault.NotFound) {
		t.Errorf("a deleted volume: %v", err)
	}
}

func TestSnapshotRules(t *testing.T) {
	id := ident.VolumeID{1}
	many := make([]Snapshot, SnapshotsMax+1)
	for i := range many {
		many[i] = Snapshot{Name: fmt.Sprint(i), Size: 1 << 20}
	}
	ok := Snapshot{Name: "a", Size: 1 << 20}
	for name, c := range map[string]struct {
		list []Snapshot
		want fault.Kind
	}{
		"too many":  {many, fault.NoSpace},
		"name":      {[]Snapshot{{Name: "A@", Size: 1 << 20}}, fault.Invalid},
		"long name": {[]Snapshot{{Name: strings.Repeat("n", NameMax+1), Size: 1 << 20}}, fault.Invalid},
		"size":      {[]Snapshot{{Name: "a", Size: 1}}, fault.Invalid},
		"created":   {[]Snapshot{{Name: "a", Size: 1 << 20, Created: -1}}, fault.Invalid},
		"twice":     {[]Snapshot{ok, ok}, fault.Invalid},
	} {
		if err := Apply(testState(t), SetSnapshots(id, 1, c.list)); !fault.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	v := testVol("x", 2)
	v.Snapshots = []Snapshot{ok}
	if err := Apply(testState(t), CreateVolume(v)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a volume born with snapshots: %v", err)
	}
}
