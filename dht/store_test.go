package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

func TestPutReadDelete(t *testing.T) {
	for _, n := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			r := newRig(t, n)
			xs := r.pack(1, 1, 40)
			if res := r.put(r.nodes[0], 1, 3, xs); len(res.Missed) > 0 {
				t.Fatalf("missed %v", res.Missed)
			}
			for _, x := range xs {
				hs := r.nodes[0].store.Holders(x.Addr, 3)
				if len(hs) != min(n, 3) || r.holdersOf(x) != len(hs) {
					t.Fatalf("%d holders, %d have it", len(hs), r.holdersOf(x))
				}
				for _, h := range hs {
					if !r.at(h).has(x) {
						t.Fatalf("not on %v", h)
					}
				}
				for _, nd := range r.nodes {
					got, err := nd.store.Get(r.ctx(), x.Addr)
					if err != nil || !bytes.Equal(got, x.Data) {
						t.Fatal(err)
					}
					p := make([]byte, 1000)
					if err := nd.store.ReadAt(r.ctx(), 3, x.Addr, 64, p, verify(x, 64, 1000)); err != nil {
						t.Fatal(err)
					}
					clear(p)
					if nd.store.TryReadAt(x.Addr, 64, p) != nd.has(x) || nd.has(x) && !bytes.Equal(p, x.Data[64:1064]) {
						t.Fatal("TryReadAt")
					}
				}
			}
			r.put(r.nodes[n-1], 1, 3, xs) // again, from elsewhere
			if err := r.nodes[n-1].store.Delete(r.ctx(), vol, 1, addrs(xs), 3); err != nil {
				t.Fatal(err)
			}
			for _, x := range xs {
				if r.holdersOf(x) != 0 {
					t.Fatal("a copy is left")
				}
			}
			if err := r.nodes[0].store.ReadAt(r.ctx(), 3, xs[0].Addr, 0, make([]byte, 8), nil); !fault.Is(err, fault.NotFound) {
				t.Fatal(err)
			}
			if err := r.nodes[0].store.Delete(r.ctx(), vol, 1, addrs(xs), 3); err != nil {
				t.Fatalf("deleting what is absent: %v", err)
			}
		})
	}
}

func TestPutOfManyAndLargeExtents(t *testing.T) {
	// The slowest of the three is waited for as long as it takes: that a put ends
	// without it is another test's matter.
	r := newRigWith(t, 3, func(c *Config) { c.PutGrace = time.Minute })
	var b extent.Builder
	var xs []Extent
	block := make([]byte, extent.BlockSize)
	for i := range 12 {
		b.Reset(vol, uint64(i+1), 1)
		for !b.Full() {
			r.rng.Read(block)
			b.Add(1, block)
		}
		data := bytes.Clone(b.Finish())
		xs = append(xs, Extent{Addr: extent.Address(data), Number: uint64(i + 1), Data: data})
	}
	xs = append(xs, r.pack(100, 1, 2*PutCountMax)...)
	r.put(r.nodes[0], 1, 3, xs)
	for _, x := range xs {
		if r.holdersOf(x) != 3 {
			t.Fatalf("%d copies", r.holdersOf(x))
		}
	}
	if n := r.nodes[0].store.Stats().PutBytesInFlight; n != 0 {
		t.Fatalf("%d bytes in flight", n)
	}
}

func TestPutRefusesBadExtents(t *testing.T) {
	r := newRig(t, 3)
	x := r.pack(1, 1, 1)[0]
	for name, c := range map[string]struct {
		x    Extent
		want fault.Kind
	}{
		"empty":      {Extent{Addr: x.Addr, Number: 1}, fault.Invalid},
		"too large":  {Extent{Addr: x.Addr, Number: 1, Data: make([]byte, ExtentMax+1)}, fault.Invalid},
		"other name": {Extent{Addr: ident.Addr{1}, Number: 1, Data: x.Data}, fault.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, []Extent{c.x}); !fault.Is(err, c.want) {
				t.Fatal(err)
			}
			if err := r.nodes[0].store.PutTo(r.ctx(), r.nodes[1].ref(), vol, 1, []Extent{c.x}); !fault.Is(err, c.want) {
				t.Fatal(err)
			}
		})
	}
	if res, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, nil); err != nil || res.Missed != nil {
		t.Fatal("nothing to put", err)
	}
}

func TestPutWithoutLanes(t *testing.T) {
	r := newRig(t, 1)
	r.nodes[0].view.SetTable(2, nil, nil)
	x := r.pack(1, 1, 1)
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, x); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	if err := r.nodes[0].store.ReadAt(r.ctx(), 3, x[0].Addr, 0, make([]byte, 1), nil); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
}

func TestPutSurvivesMinorityDown(t *testing.T) {
	r := newRig(t, 3)
	r.nodes[2].crash()
	xs := r.pack(1, 1, 20)
	res := r.put(r.nodes[0], 1, 3, xs)
	if !slices.Equal(res.Missed, []overlay.BrickRef{r.nodes[2].ref()}) {
		t.Fatalf("missed %v", res.Missed)
	}
	for _, x := range xs {
		if !r.nodes[0].has(x) || !r.nodes[1].has(x) {
			t.Fatal("not on the majority")
		}
	}
	if err := r.nodes[0].store.Delete(r.ctx(), vol, 1, addrs(xs[:1]), 3); !fault.Is(err, fault.Unavailable) || r.nodes[1].has(xs[0]) {
		t.Fatalf("delete with a brick down: %v", err)
	}
	r.nodes[1].crash()
	_, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, r.pack(100, 1, 2))
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("with a majority down: %v", err)
	}
	err = r.nodes[0].store.ReadAt(r.ctx(), 3, ident.Addr{9}, 0, make([]byte, 1), nil)
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("absent here, but others did not answer: %v", err)
	}
}

// A holder that neither answers nor refuses costs the grace and no more.
func TestPutGraceEnds(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutGrace = 50 * time.Millisecond })
	r.net.Cut(r.nodes[0].id, r.nodes[2].id)
	xs := r.pack(1, 1, 4)
	start := time.Now()
	res := r.put(r.nodes[0], 1, 3, xs)
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Fatalf("took %v", took)
	}
	if !slices.Equal(res.Missed, []overlay.BrickRef{r.nodes[2].ref()}) {
		t.Fatalf("missed %v", res.Missed)
	}
	r.net.Cut(r.nodes[0].id, r.nodes[1].id)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.nodes[0].store.Put(ctx, vol, 1, 3, r.pack(9, 1, 1)); !fault.Is(err, fault.Timeout) {
		t.Fatalf("without a majority until the context ends: %v", err)
	}
}

// PutThen tells of the majority while the last holder has not answered, exactly
// once, and not at all without a majority.
func TestPutThenDoesNotWaitForTheLastHolder(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutGrace = 10 * time.Second })
	a, last := r.nodes[0], r.nodes[2]
	r.net.Cut(a.id, last.id)
	told := 0
	xs := r.pack(1, 1, 4)
	res, err := a.store.PutThen(r.ctx(), vol, 1, 3, xs, func() {
		told++
		for _, x := range xs {
			if r.holdersOf(x) != 2 {
				t.Errorf("told at %d holders", r.holdersOf(x))
			}
		}
		last.crash()
	})
	if err != nil || told != 1 || !slices.Equal(res.Missed, []overlay.BrickRef{last.ref()}) {
		t.Fatalf("told %d times, missed %v: %v", told, res.Missed, err)
	}
	r.nodes[1].crash()
	if _, err := a.store.PutThen(r.ctx(), vol, 1, 3, r.pack(9, 1, 1), func() { told++ }); !fault.Is(err, fault.Unavailable) || told != 1 {
		t.Fatalf("without a majority: told %d times: %v", told, err)
	}
}

// However the majority and the end of the context meet, the caller is told of the
// majority or gets an error, and never both.
func TestPutThenTellsOrFails(t *testing.T) {
	r := newRig(t, 3)
	var told, failed int
	late := 100 * time.Microsecond // homes in on what a majority takes
	for i := range 500 {
		ctx, cancel := context.WithTimeout(context.Background(), late)
		times := 0
		_, err := r.nodes[0].store.PutThen(ctx, vol, 1, 3, r.pack(uint64(100+i), 1, 1), func() { times++ })
		cancel()
		switch {
		case err == nil && times == 1:
			told++
			late = late * 9 / 10
		case err != nil && times == 0:
			failed++
			late += late/10 + time.Microsecond
		default:
			t.Fatalf("put %d: told %d times, and: %v", i, times, err)
		}
	}
	if told == 0 || failed == 0 {
		t.Fatalf("told %d times, failed %d times: the two never met", told, failed)
	}
}

// What one node hashed itself, the others compare with a checksum of that time.
func TestHashedIsBelievedByNobodyElse(t *testing.T) {
	r := newRig(t, 3)
	x := r.pack(1, 1, 1)[0]
	x.Hashed, x.Sum, x.Data = true, extent.Checksum(x.Data), append([]byte{x.Data[0] ^ 1}, x.Data[1:]...)
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, []Extent{x}); !fault.Is(err, fault.Corrupt) {
		t.Fatal(err)
	}
	if r.nodes[1].has(x) || r.nodes[2].has(x) {
		t.Fatal("another node stored bytes that are not those of their address")
	}
	x.Data[0] ^= 1 // as it was
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, []Extent{x}); err != nil {
		t.Fatal(err)
	}
}

func TestPutTimeoutIsUnavailable(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutTimeout = 50 * time.Millisecond })
	r.net.Cut(r.nodes[0].id, r.nodes[1].id)
	r.net.Cut(r.nodes[0].id, r.nodes[2].id)
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, r.pack(9, 1, 1)); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
}

// The disk of the putting node hangs: the put neither hangs nor keeps the
// caller's buffers.
func TestPutDoesNotHangWithTheLocalDisk(t *testing.T) {
	r := newRigWith(t, 3, func(c *Config) { c.PutGrace = 20 * time.Millisecond })
	hang := make(chan struct{})
	r.nodes[0].fs.SetHook(func(op, name string) error {
		if op == "sync" {
			<-hang
		}
		return nil
	})
	xs := r.pack(1, 1, 3)
	want := bytes.Clone(xs[0].Data)
	res := r.put(r.nodes[0], 1, 3, xs)
	clear(xs[0].Data)
	if !slices.Equal(res.Missed, []overlay.BrickRef{r.nodes[0].ref()}) {
		t.Fatalf("missed %v", res.Missed)
	}
	close(hang)
	until(t, "the late copy", func() bool { return r.nodes[0].has(xs[0]) })
	if got, err := r.nodes[0].store.wholeFrom(r.ctx(), r.nodes[0].ref(), xs[0].Addr, quickly); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
}

func TestNoSpaceOnOneOfThree(t *testing.T) {
	r := newRig(t, 3)
	fill := func(nd *rigNode) { nd.fs.SetCapacity(nd.fs.Used()) }
	fill(r.nodes[1])
	res := r.put(r.nodes[0], 1, 3, r.pack(1, 1, 20))
	if !slices.Equal(res.Missed, []overlay.BrickRef{r.nodes[1].ref()}) {
		t.Fatalf("missed %v", res.Missed)
	}
	fill(r.nodes[2])
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, r.pack(100, 1, 20)); !fault.Is(err, fault.NoSpace) {
		t.Fatalf("two of three full: %v", err)
	}
}

func TestBrokenBrickIsMissed(t *testing.T) {
	r := newRig(t, 3)
	r.nodes[1].broken = true
	r.nodes[1].fs.SetHook(func(op, name string) error {
		if op == "sync" {
			return errors.New("EIO")
		}
		return nil
	})
	if res := r.put(r.nodes[0], 1, 3, r.pack(1, 1, 5)); len(res.Missed) != 1 {
		t.Fatalf("missed %v", res.Missed)
	}
	r.nodes[2].store.SetBrickDown(r.nodes[2].brick.ID())
	if _, err := r.nodes[0].store.Put(r.ctx(), vol, 1, 3, r.pack(9, 1, 5)); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
}

func TestReadFallsOverFromDamagedLocalCopyAndRepairsIt(t *testing.T) {
	r := newRig(t, 3)
	x := r.pack(1, 1, 1)[0]
	r.put(r.nodes[0], 1, 3, []Extent{x})
	nd := r.nodes[1]
	nd.rot(x)
	p := make([]byte, 200)
	if err := nd.store.ReadAt(r.ctx(), 3, x.Addr, 64, p, verify(x, 64, 200)); err != nil {
		t.Fatal(err)
	}
	until(t, "repair", func() bool { return nd.store.Stats().Repaired == 1 })
	if got, err := nd.store.wholeFrom(r.ctx(), nd.ref(), x.Addr, quickly); err != nil || !bytes.Equal(got, x.Data) {
		t.Fatalf("still damaged: %v", err)
	}
	refs := nd.brick.ListVolume(vol)
	if len(refs) != 1 || refs[0] != (brick.Ref{Addr: x.Addr, Number: 1, Epoch: 1, Size: int64(len(x.Data))}) {
		t.Fatalf("listed as %v", refs)
	}
	if !slices.Equal(nd.corrupt, []overlay.BrickRef{nd.ref()}) {
		t.Fatalf("told of %v", nd.corrupt)
	}
	for _, h := range nd.store.Stats().Holders {
		if h.Brick == nd.ref() && h.ReadsCorrupt != 1 {
			t.Fatalf("counted %+v", h)
		}
	}
}

func TestReaderTellsOtherNodeOfItsDamagedCopy(t *testing.T) {
	r := newRig(t, 3)
	x := r.pack(1, 1, 1)[0]
	r.put(r.nodes[0], 1, 3, []Extent{x})
	reader, holders := r.nodes[0], r.nodes[0].store.Holders(x.Addr, 3)
	if err := reader.brick.DeleteExtents([]ident.Addr{x.Addr}); err != nil {
		t.Fatal(err)
	}
	var bad *rigNode
	for _, h := range holders {
		if h.Node != reader.id {
			bad = r.at(h)
			break
		}
	}
	bad.rot(x)
	if got, err := reader.store.Get(r.ctx(), x.Addr); err != nil || !bytes.Equal(got, x.Data) {
		t.Fatal(err)
	}
	until(t, "repair on the other node", func() bool { return bad.store.Stats().Repaired == 1 })
	if got, err := reader.store.wholeFrom(r.ctx(), bad.ref(), x.Addr, quickly); err != nil || !bytes.Equal(got, x.Data) {
		t.Fatalf("still damaged: %v", err)
	}
}

func TestReadFindsCopies(t *testing.T) {
	r := newRig(t, 5)
	x := r.pack(1, 1, 1)[0]
	r.put(r.nodes[0], 1, 3, []Extent{x})
	holders := r.nodes[0].store.Holders(x.Addr, 3)
	reader := r.nodes[slices.IndexFunc(r.nodes, func(nd *rigNode) bool { return !nd.has(x) })]
	read := func() error {
		return reader.store.ReadAt(r.ctx(), 3, x.Addr, 0, make([]byte, 100), verify(x, 0, 100))
	}
	r.at(holders[0]).crash()
	if err := read(); err != nil {
		t.Fatalf("one holder down: %v", err)
	}
	if err := r.at(holders[1]).brick.DeleteExtents([]ident.Addr{x.Addr}); err != nil {
		t.Fatal(err)
	}
	if err := read(); err != nil {
		t.Fatalf("one down, one missing: %v", err)
	}
	r.at(holders[2]).rot(x)
	if err := reader.store.ReadAt(r.ctx(), 3, x.Addr, 64, make([]byte, 200), verify(x, 64, 200)); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("one down, one missing, one damaged: %v", err)
	}
	// A brick of no lane position may still have it after the lanes changed.
	stray := r.nodes[slices.IndexFunc(r.nodes, func(nd *rigNode) bool {
		return nd != reader && nd.store != nil && !slices.Contains(holders, nd.ref())
	})]
	if err := reader.store.PutTo(r.ctx(), stray.ref(), vol, 1, []Extent{x}); err != nil {
		t.Fatal(err)
	}
	if err := reader.store.ReadAt(r.ctx(), 3, x.Addr, 64, make([]byte, 200), verify(x, 64, 200)); err != nil {
		t.Fatalf("on another brick: %v", err)
	}
}

func TestReadIsCorruptWhenNobodyHasGoodBytes(t *testing.T) {
	r := newRig(t, 3)
	x := r.pack(1, 1, 1)[0]
	r.put(r.nodes[0], 1, 3, []Extent{x})
	for _, nd := range r.nodes {
		nd.rot(x)
	}
	err := r.nodes[0].store.ReadAt(r.ctx(), 3, x.Addr, 64, make([]byte, 200), verify(x, 64, 200))
	if !fault.Is(err, fault.Corrupt) {
		t.Fatal(err)
	}
	until(t, "failed repair", func() bool { return r.nodes[0].store.Stats().RepairsFailed == 1 })
	if r.holdersOf(x) != 3 {
		t.Fatal("a damaged copy was given up without a good one")
	}
}

func TestReadRefusesBadRanges(t *testing.T) {
	r := newRig(t, 1)
	x := r.pack(1, 1, 1)[0]
	r.put(r.nodes[0], 1, 1, []Extent{x})
	for _, c := range []struct {
		off int64
		n   int
	}{{0, 0}, {-1, 5}, {ExtentMax, 1}, {1, ExtentMax}} {
		if err := r.nodes[0].store.ReadAt(r.ctx(), 1, x.Addr, c.off, make([]byte, c.n), nil); !fault.Is(err, fault.Invalid) {
			t.Fatalf("[%d,+%d): %v", c.off, c.n, err)
		}
	}
	if _, err := r.nodes[0].store.serveRead(readRequest{brick: r.nodes[0].brick.ID(), addr: x.Addr, off: 4000, length: 4000}, quickly); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
}

func TestListPages(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 300)
	r.put(r.nodes[0], 1, 3, xs)
	nd := r.nodes[1]
	want, err := r.nodes[0].store.List(r.ctx(), nd.ref(), vol)
	if err != nil || len(want) != 300 || !slices.IsSortedFunc(want, compareRefs) {
		t.Fatalf("%d extents: %v", len(want), err)
	}
	// The same in small pages, with the snapshot lost in between.
	var got []brick.Ref
	req := listRequest{brick: nd.brick.ID(), volume: vol, limit: 7}
	for pages := 0; ; pages++ {
		if pages == 5 {
			nd.store.pages.all = nil
		}
		page, err := nd.store.serveList(req)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.refs...)
		if !page.more {
			break
		}
		req.after = got[len(got)-1]
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d of %d", len(got), len(want))
	}
	if len(nd.store.pages.all) != 0 {
		t.Fatal("a snapshot is kept after the last page")
	}
	for i := range 2 * ListSnapshotsMax {
		other := ident.VolumeID{byte(i), 77}
		nd.store.pages.keep(listRequest{brick: nd.brick.ID(), volume: other}, nil)
	}
	if len(nd.store.pages.all) != ListSnapshotsMax {
		t.Fatalf("%d snapshots", len(nd.store.pages.all))
	}
	if refs, err := r.nodes[0].store.List(r.ctx(), nd.ref(), ident.VolumeID{1}); err != nil || len(refs) != 0 {
		t.Fatal("a volume without extents", err)
	}
	if _, err := r.nodes[0].store.List(r.ctx(), overlay.BrickRef{Node: nd.id, Brick: ident.BrickID{9}}, vol); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
}

func TestStat(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 3)
	r.put(r.nodes[0], 1, 3, xs)
	for _, nd := range r.nodes {
		sizes, err := r.nodes[0].store.Stat(r.ctx(), nd.ref(), []ident.Addr{xs[0].Addr, {1}, xs[2].Addr})
		if err != nil || !slices.Equal(sizes, []int64{int64(len(xs[0].Data)), -1, int64(len(xs[2].Data))}) {
			t.Fatal(sizes, err)
		}
	}
}

func TestDropLocal(t *testing.T) {
	r := newRig(t, 3)
	xs := r.pack(1, 1, 10)
	r.put(r.nodes[0], 1, 3, xs)
	freed, err := r.nodes[1].store.DropLocal(vol)
	if err != nil || freed != int64(10*len(xs[0].Data)) || r.nodes[1].has(xs[0]) {
		t.Fatal(freed, err)
	}
	if freed, err := r.nodes[1].store.DropLocal(vol); freed != 0 || err != nil {
		t.Fatal("again:", freed, err)
	}
	if err := r.nodes[0].store.PutTo(r.ctx(), r.nodes[1].ref(), vol, 1<<40, xs); !fault.Is(err, fault.Fenced) {
		t.Fatalf("a late put of a deleted volume: %v", err)
	}
}

// Readers, writers and deleters at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	r := newRig(t, 3)
	done := make(chan error, 6)
	for i := range 6 {
		xs := r.pack(uint64(1000*i), 1, 30)
		go func() {
			nd := r.nodes[i%3]
			_, err := nd.store.Put(r.ctx(), vol, 1, 3, xs)
			for _, x := range xs {
				if err == nil {
					_, err = nd.store.Get(r.ctx(), x.Addr)
				}
			}
			if err == nil {
				err = nd.store.Delete(r.ctx(), vol, 1, addrs(xs), 3)
			}
			done <- err
		}()
	}
	for range 6 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}
