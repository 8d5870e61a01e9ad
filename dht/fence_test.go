package dht

import (
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func TestOldEpochIsFenced(t *testing.T) {
	r := newRig(t, 3)
	a, b := r.nodes[0], r.nodes[1]
	xs := r.pack(1, 5, 4)
	r.put(a, 5, 3, xs)
	missed, err := b.store.Seal(r.ctx(), vol, 6, []ident.NodeID{r.nodes[0].id, r.nodes[1].id, r.nodes[2].id})
	if err != nil || missed != nil {
		t.Fatal(missed, err)
	}
	if _, err := a.store.Put(r.ctx(), vol, 5, 3, r.pack(9, 5, 1)); !fault.Is(err, fault.Fenced) {
		t.Fatalf("put of the old epoch: %v", err)
	}
	if err := a.store.PutTo(r.ctx(), r.nodes[2].ref(), vol, 5, xs); !fault.Is(err, fault.Fenced) {
		t.Fatalf("put to one brick: %v", err)
	}
	if err := a.store.Delete(r.ctx(), vol, 5, addrs(xs), 3); !fault.Is(err, fault.Fenced) || r.holdersOf(xs[0]) != 3 {
		t.Fatalf("delete of the old epoch: %v", err)
	}
	if _, err := a.store.Seal(r.ctx(), vol, 5, []ident.NodeID{a.id, b.id}); !fault.Is(err, fault.Fenced) {
		t.Fatalf("seal of the old epoch: %v", err)
	}
	if _, err := a.store.Get(r.ctx(), xs[0].Addr); err != nil {
		t.Fatalf("reading needs no epoch: %v", err)
	}
	r.put(b, 6, 3, r.pack(20, 6, 1))
	other := ident.VolumeID{'o'}
	if _, err := a.store.Put(r.ctx(), other, 1, 3, r.pack(1, 1, 1)); err != nil {
		t.Fatalf("another volume is not concerned: %v", err)
	}
}

// A put or delete of a higher epoch fences by itself.
func TestPutRaisesTheEpoch(t *testing.T) {
	r := newRig(t, 3)
	r.put(r.nodes[0], 1, 3, r.pack(1, 1, 8))
	r.put(r.nodes[1], 2, 3, r.pack(20, 2, 8))
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, r.pack(40, 1, 8)); !fault.Is(err, fault.Fenced) {
		t.Fatal(err)
	}
}

func TestSealReportsWhomItMissed(t *testing.T) {
	r := newRig(t, 3)
	r.nodes[1].crash()
	missed, err := r.nodes[0].store.Seal(r.ctx(), vol, 3, []ident.NodeID{r.nodes[0].id, r.nodes[1].id, r.nodes[2].id})
	if err != nil || !slices.Equal(missed, []ident.NodeID{r.nodes[1].id}) {
		t.Fatal(missed, err)
	}
}

func TestEpochSurvivesRestart(t *testing.T) {
	r := newRig(t, 1)
	nd := r.nodes[0]
	if _, err := nd.store.Seal(r.ctx(), vol, 7, []ident.NodeID{nd.id}); err != nil {
		t.Fatal(err)
	}
	nd.crash()
	nd.fs = nd.fs.Crash(r.rng)
	nd.openBrick()
	nd.start(func(*Config) {})
	if _, err := nd.store.Put(r.ctx(), vol, 6, 1, r.pack(1, 6, 1)); !fault.Is(err, fault.Fenced) {
		t.Fatal(err)
	}
	r.put(nd, 7, 1, r.pack(1, 7, 1))
}

// When Seal has returned, nothing of an older epoch is under way.
func TestPitfallPutRacesWithASweep(t *testing.T) {
	r := newRig(t, 1)
	nd := r.nodes[0]
	l := (*nd.store.local.Load())[0]
	leave, err := l.fences.enter(vol, 1)
	if err != nil {
		t.Fatal(err)
	}
	sealed := make(chan error, 1)
	go func() { sealed <- l.fences.raise(vol, 2) }()
	f := l.fences.take(vol)
	defer l.fences.give(f)
	until(t, "the seal is at the lock", func() bool {
		select {
		case err := <-sealed:
			t.Fatalf("sealed while a put of the old epoch runs: %v", err)
		default:
		}
		free := f.mu.TryRLock() // not while somebody waits to lock it for writing
		if free {
			f.mu.RUnlock()
		}
		return !free
	})
	leave()
	if err := <-sealed; err != nil {
		t.Fatal(err)
	}
	if _, err := l.fences.enter(vol, 1); !fault.Is(err, fault.Fenced) {
		t.Fatal(err)
	}
}

func TestFencesInMemoryAreBounded(t *testing.T) {
	r := newRig(t, 1)
	l := (*r.nodes[0].store.local.Load())[0]
	for i := range FencesMax + 50 {
		if err := l.fences.raise(ident.VolumeID{1, byte(i), byte(i >> 8)}, 9); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.fences.m) > FencesMax {
		t.Fatalf("%d fences", len(l.fences.m))
	}
	for i := range FencesMax + 50 {
		if _, err := l.fences.enter(ident.VolumeID{1, byte(i), byte(i >> 8)}, 8); !fault.Is(err, fault.Fenced) {
			t.Fatalf("volume %d forgot its epoch: %v", i, err)
		}
	}
}
