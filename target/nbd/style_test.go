package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// connect opens an export of a server on TCP.
func connect(t testing.TB, o nbdclient.Options) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// chunky runs f for both styles that answer in chunks, and a device that
// answers at once and one that does not.
func chunky(t *testing.T, f func(t *testing.T, style nbdclient.Style, mem *targettest.Memory, addr string)) {
	for _, style := range styles[1:] {
		for _, delay := range []time.Duration{0, time.Millisecond} {
			t.Run(fmt.Sprint(style, " after ", delay), func(t *testing.T) {
				mem := targettest.NewMemory(64<<20, 512)
				mem.Delay = delay
				var e targettest.Exports
				e.Add("v", mem)
				_, addr := start(t, &e, nil)
				f(t, style, mem, addr)
			})
		}
	}
}

func TestHolesAreSentAsHoles(t *testing.T) {
	chunky(t, func(t *testing.T, style nbdclient.Style, mem *targettest.Memory, addr string) {
		c := connect(t, nbdclient.Options{Addr: addr, Export: "v", Style: style})
		r := rand.New(rand.NewPCG(1, 2))
		model := make([]byte, 4<<20)
		for off := 0; off < len(model); {
			n := min(len(model)-off, 512*(1+r.IntN(200)))
			if r.IntN(2) == 0 {
				for i := range n {
					model[off+i] = byte(1 + r.IntN(255))
				}
			}
			off += n
		}
		if err := targettest.Write(mem, model, 0, false); err != nil {
			t.Fatal(err)
		}
		for i := range 400 {
			n := 512 * (1 + r.IntN(2000))
			off := 512 * r.IntN((len(model)-n)/512)
			got := bytes.Repeat([]byte{0xee}, n)
			flags := uint16(0)
			if i%4 == 0 {
				flags = nbdclient.FlagDF
			}
			done := make(chan error, 1)
			c.Start(nbdclient.CmdRead, flags, int64(off), n, got, func(err error) { done <- err })
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("[%d, +%d) is not what was written", off, n)
			}
		}
		if c.Holes() < 100 {
			t.Errorf("%d holes in 400 answers", c.Holes())
		}
		before := c.Holes()
		big := bytes.Repeat([]byte{1}, 32<<20)
		if err := c.ReadAt(big, 16<<20); err != nil || c.Holes() != before+1 || !bytes.Equal(big, make([]byte, len(big))) {
			t.Errorf("a read of nothing but zeros: %v, %d holes", err, c.Holes()-before)
		}
	})
}

func TestErrorsNameTheirPlace(t *testing.T) {
	chunky(t, func(t *testing.T, style nbdclient.Style, mem *targettest.Memory, addr string) {
		const bad = 200<<10 + 512
		var on atomic.Bool
		mem.Fail = func(op string, off int64, n int) error {
			if on.Load() && op == "read" && off <= bad && bad < off+int64(n) {
				return fault.Newf(fault.Corrupt, "block read", "v", "no copy of block %d is whole", bad/512)
			}
			return nil
		}
		model := bytes.Repeat([]byte{7}, 1<<20)
		if err := targettest.Write(mem, model, 0, false); err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		c := connect(t, nbdclient.Options{Addr: addr, Export: "v", Style: style})
		for _, r := range []struct{ off, n int }{{0, 1 << 20}, {100 << 10, 256 << 10}, {bad, 512}, {bad - 512, 1024}, {bad, 64 << 10}} {
			got := make([]byte, r.n)
			err := c.ReadAt(got, int64(r.off))
			var f *nbdclient.Failure
			if !errors.As(err, &f) || f.Errno != syscall.EIO || f.At != bad && r.n > 512 {
				t.Fatalf("[%d, +%d): %v at %d", r.off, r.n, err, f.At)
			}
			if good := bad - r.off; !bytes.Equal(got[:good], model[:good]) {
				t.Errorf("[%d, +%d): what stands before the damage did not come", r.off, r.n)
			}
		}
		got := make([]byte, 64<<10)
		if err := c.ReadAt(got, 0); err != nil {
			t.Error("after failed reads: ", err)
		}
		on.Store(false)
		var f *nbdclient.Failure
		if err := c.WriteAt(got, c.Size); !errors.As(err, &f) || f.Errno != syscall.ENOSPC || f.Text == "" {
			t.Errorf("a write beyond the end: %v", err)
		}
		err := c.ReadAt(make([]byte, 33<<20), 0)
		if !errors.As(err, &f) || f.Errno != syscall.EOVERFLOW {
			t.Errorf("a read of more than the maximum: %v", err)
		}
	})
}

func TestBlockStatus(t *testing.T) {
	chunky(t, func(t *testing.T, style nbdclient.Style, mem *targettest.Memory, addr string) {
		one := make([]byte, 512)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(targettest.Write(mem, one, 1024, false))
		mem.Snapshot("mon")
		must(targettest.Write(mem, one, 4096, false))
		mem.Snapshot("tue")
		c := connect(t, nbdclient.Options{Addr: addr, Export: "v", Style: style,
			Contexts: []string{"base:allocation", "gabion:dirty:mon", "qemu:dirty-bitmap:tue", "qemu:dirty-bitmap:sun", "base:", "x:y"}})
		if got := fmt.Sprint(c.Selected()); got != "[base:allocation gabion:dirty:mon qemu:dirty-bitmap:tue]" {
			t.Fatal("selected: ", got)
		}
		if payload := c.Flags&proto.FlagStatusPayload != 0; payload != (style == nbdclient.Extended) {
			t.Errorf("BLOCK_STATUS_PAYLOAD: %v", payload)
		}
		ask := func(off int64, n int, single bool, only ...string) map[string][]nbdclient.Extent {
			t.Helper()
			var ids []uint32
			for _, name := range only {
				ids = append(ids, c.Contexts[name])
			}
			got, err := c.BlockStatus(off, n, single, ids...)
			must(err)
			byName := map[string][]nbdclient.Extent{}
			for name, id := range c.Contexts {
				if es, ok := got[id]; ok {
					byName[name] = es
				}
			}
			return byName
		}
		base := []nbdclient.Extent{{Length: 1024, State: 3}, {Length: 512}, {Length: 2560, State: 3}, {Length: 512}, {Length: 3584, State: 3}}
		all := map[string][]nbdclient.Extent{
			"base:allocation":       base,
			"gabion:dirty:mon":      {{Length: 4096}, {Length: 512, State: 1}, {Length: 3584}},
			"qemu:dirty-bitmap:tue": {{Length: 8192}},
		}
		if got := ask(0, 8192, false); !reflect.DeepEqual(got, all) {
			t.Errorf("%v", got)
		}
		if got := ask(4096, 512, true); !reflect.DeepEqual(got, map[string][]nbdclient.Extent{
			"base:allocation": {{Length: 512}}, "gabion:dirty:mon": {{Length: 512, State: 1}}, "qemu:dirty-bitmap:tue": {{Length: 512}}}) {
			t.Errorf("one of one: %v", got)
		}
		if got := ask(0, 8192, true); !reflect.DeepEqual(got, map[string][]nbdclient.Extent{
			"base:allocation": {{Length: 1024, State: 3}}, "gabion:dirty:mon": {{Length: 4096}}, "qemu:dirty-bitmap:tue": {{Length: 8192}}}) {
			t.Errorf("one of many: %v", got)
		}
		if style == nbdclient.Extended {
			if got := ask(0, 8192, false, "gabion:dirty:mon"); len(got) != 1 || !reflect.DeepEqual(got["gabion:dirty:mon"], all["gabion:dirty:mon"]) {
				t.Errorf("one context: %v", got)
			}
			for _, ids := range [][]uint32{{99}, {0, 0}, {0, 1, 2, 3}} {
				if _, err := c.BlockStatus(0, 8192, false, ids...); !errors.Is(err, syscall.EINVAL) {
					t.Errorf("contexts %v: %v", ids, err)
				}
			}
		}
		for _, r := range [][2]int64{{c.Size, 512}, {0, 100}, {0, 0}, {c.Size - 512, 1024}} {
			if _, err := c.BlockStatus(r[0], int(r[1]), false); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("[%d, +%d): %v", r[0], r[1], err)
			}
		}
	})
}

// A device in very small pieces is described as far as one answer goes, and
// the next question continues.
func TestBlockStatusOfManyExtents(t *testing.T) {
	chunky(t, func(t *testing.T, style nbdclient.Style, mem *targettest.Memory, addr string) {
		mem.Delay = 0
		one := make([]byte, 512)
		for off := int64(0); off < mem.Size(); off += 1024 {
			if err := targettest.Write(mem, one, off, false); err != nil {
				t.Fatal(err)
			}
		}
		mem.Snapshot("s")
		c := connect(t, nbdclient.Options{Addr: addr, Export: "v", Style: style, Contexts: []string{"base:allocation", "gabion:dirty:s"}})
		answers := 0
		for off := int64(0); off < c.Size; answers++ {
			got, err := c.BlockStatus(off, int(c.Size-off), false)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range got[c.Contexts["base:allocation"]] {
				want := uint32(0)
				if off%1024 != 0 {
					want = 3
				}
				if e.Length != 512 || e.State != want {
					t.Fatalf("at %d: %+v", off, e)
				}
				off += e.Length
			}
		}
		if answers < 2 || answers > 64 {
			t.Errorf("%d answers for %d extents", answers, mem.Size()/512)
		}
	})
}

func TestContextsBelongToTheirExport(t *testing.T) {
	e, _ := pool()
	mem := targettest.NewMemory(1<<20, 512)
	mem.Snapshot("s")
	e.Add("v", mem)
	e.Add("v@s", mem.Snapshot("s"))
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	ack := func(o proto.Option, data []byte, want ...string) {
		t.Helper()
		w.send(proto.AppendOption(nil, o, data))
		var names []string
		for {
			r, data := w.reply(o)
			if r == proto.RepMetaContext {
				names = append(names, string(data[4:]))
				continue
			}
			if r != proto.RepAck || !reflect.DeepEqual(names, want) {
				t.Fatalf("option %d: %#x, %q, want %q", o, r, names, want)
			}
			return
		}
	}
	ack(proto.OptStructuredReply, nil)
	ack(proto.OptListMetaContext, meta("v"), "base:allocation", "gabion:dirty:s", "qemu:dirty-bitmap:s")
	ack(proto.OptListMetaContext, meta("a", "base:", "gabion:"), "base:allocation")
	if e.Opened() != 0 {
		t.Errorf("a listing opened %d sessions", e.Opened())
	}
	if r, _, _ := w.option(proto.OptSetMetaContext, meta("nope", "base:allocation")); r != proto.RepErrUnknown {
		t.Errorf("contexts of an unknown export: %#x", r)
	}
	if r, _, _ := w.option(proto.OptSetMetaContext, meta("v", "nocolon")); r != proto.RepErrInvalid {
		t.Errorf("a query without a namespace: %#x", r)
	}
	ack(proto.OptSetMetaContext, meta("v", "gabion:dirty:s", "gabion:dirty:t"), "gabion:dirty:s")
	ack(proto.OptSetMetaContext, meta("v", "base:allocation"), "base:allocation")
	ack(proto.OptSetMetaContext, meta("v"))
	ack(proto.OptSetMetaContext, meta("v", "base:allocation"), "base:allocation")
	if r, text, _ := w.option(proto.OptGo, query("a")); r != proto.RepAck { // another one
		t.Fatal(r, text)
	}
	w.request(proto.Request{Cmd: proto.CmdBlockStatus, Length: 4096, Cookie: 9})
	c, err := proto.Structured.DecodeChunk(w.take(proto.StructuredChunkSize))
	if err != nil || c.Type != proto.TypeError || !c.Done {
		t.Fatalf("%+v %v", c, err)
	}
	if b := w.take(int(c.Length)); be32(b) != uint32(proto.EINVAL) {
		t.Errorf("%x", b)
	}
	until(t, "the session that SET opened is closed", func() bool { return mem.Closed() == 1 })
}

func TestStylesExcludeEachOther(t *testing.T) {
	e, _ := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	for _, c := range []struct {
		o    proto.Option
		want proto.Reply
	}{
		{proto.OptStructuredReply, proto.RepAck},
		{proto.OptExtendedHeaders, proto.RepAck},
		{proto.OptStructuredReply, proto.RepErrExtHeaderReqd},
		{proto.OptExtendedHeaders, proto.RepAck},
	} {
		if r, _, _ := w.option(c.o, nil); r != c.want {
			t.Errorf("option %d: %#x, want %#x", c.o, r, c.want)
		}
	}
	w.send(proto.AppendOption(nil, proto.OptExportName, []byte("a")))
	if b := w.ends(); len(b) != 0 {
		t.Errorf("EXPORT_NAME after EXTENDED_HEADERS gives %x", b)
	}
}

// Payloads that no command wants are taken and refused, and the stream goes on.
func TestUnwantedPayloadsAreSkipped(t *testing.T) {
	e, mem := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).flags()
	w.option(proto.OptExtendedHeaders, nil)
	w.option(proto.OptGo, query("a"))
	for i, r := range []proto.Request{
		{Cmd: proto.CmdRead, Flags: proto.FlagPayloadLen, Length: 4096},
		{Cmd: proto.CmdWrite, Length: 4096},
		{Cmd: proto.CmdFlush, Flags: proto.FlagPayloadLen, Length: 100},
		{Cmd: proto.CmdBlockStatus, Flags: proto.FlagPayloadLen, Length: 32},
		{Cmd: 4711, Flags: proto.FlagPayloadLen, Length: 1 << 20},
		{Cmd: proto.CmdWriteZeroes, Length: 1 << 62},
		{Cmd: proto.CmdRead, Length: 1 << 33},
	} {
		r.Cookie = uint64(i)
		b := proto.Extended.AppendRequest(nil, r)
		w.send(append(b, make([]byte, r.Payload(proto.Extended))...))
		c, err := proto.Extended.DecodeChunk(w.take(proto.ExtendedChunkSize))
		if err != nil || c.Type != proto.TypeError || c.Cookie != uint64(i) || !c.Done {
			t.Fatalf("%v: %+v %v", r.Cmd, c, err)
		}
		w.take(int(c.Length))
	}
	w.send(proto.Extended.AppendRequest(nil, proto.Request{Cmd: proto.CmdFlush, Cookie: 99}))
	if c, err := proto.Extended.DecodeChunk(w.take(proto.ExtendedChunkSize)); err != nil || c.Type != proto.TypeNone || c.Cookie != 99 {
		t.Fatalf("%+v %v", c, err)
	}
	w.send(proto.Extended.AppendRequest(nil, proto.Request{Cmd: proto.CmdTrim, Flags: proto.FlagPayloadLen, Length: proto.PayloadMax + 1}))
	w.ends()
	if mem.Closed() == 0 {
		until(t, "the session ends", func() bool { return mem.Closed() == 1 })
	}
}

// silent is large and cannot tell what it stores.
type silent struct{ target.Session }

func (silent) Size() int64 { return 8 << 30 }

// A device that is no Mapper has data everywhere.
func TestStatusOfADeviceThatCannotTell(t *testing.T) {
	var e targettest.Exports
	e.Add("v", silent{targettest.NewMemory(1<<20, 4096)})
	_, addr := start(t, &e, nil)
	c := connect(t, nbdclient.Options{Addr: addr, Export: "v", Style: nbdclient.Extended, Contexts: []string{"base:allocation", "gabion:dirty:x"}})
	got, err := c.BlockStatus(0, 8<<30, false)
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[c.Contexts["base:allocation"]], []nbdclient.Extent{{Length: 8 << 30}}) {
		t.Errorf("%v %v", got, err)
	}
}

func TestCacheReads(t *testing.T) {
	mem := targettest.NewMemory(128<<20, 4096)
	mem.Delay = time.Microsecond
	var reads atomic.Int64
	mem.Fail = func(op string, off int64, n int) error {
		if op == "read" {
			reads.Add(int64(n))
			if off >= 64<<20 {
				return fault.Newf(fault.Corrupt, "block read", "v", "damaged")
			}
		}
		return nil
	}
	var e targettest.Exports
	e.Add("v", mem)
	_, addr := start(t, &e, nil)
	c := connect(t, nbdclient.Options{Addr: addr, Export: "v"})
	for _, n := range []int{4096, 1 << 20} {
		reads.Store(0)
		if err := c.Cache(0, n); err != nil || reads.Load() != int64(n) {
			t.Errorf("%d bytes: %v, %d read", n, err, reads.Load())
		}
	}
	reads.Store(0)
	if err := c.Cache(0, 128<<20); err != nil || reads.Load() != nbd.CacheMax {
		t.Errorf("more than the maximum: %v, %d read", err, reads.Load())
	}
	if err := c.Cache(64<<20, 4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("a damaged range: %v", err)
	}
}

// A client that leaves, and one that asks for very much, cost no more reads
// than a few.
func TestCacheIsBounded(t *testing.T) {
	mem := targettest.NewMemory(64<<20, 4096)
	mem.Delay = 10 * time.Millisecond
	var reads atomic.Int64
	mem.Fail = func(op string, off int64, n int) error {
		reads.Add(int64(n))
		return nil
	}
	var e targettest.Exports
	e.Add("v", mem)
	_, addr := start(t, &e, nil)
	c := connect(t, nbdclient.Options{Addr: addr, Export: "v"})
	done := make(chan error, 100)
	for range 100 {
		c.Start(nbdclient.CmdCache, 0, 0, 64<<20, nil, func(err error) { done <- err })
	}
	for range 100 - nbd.WarmersMax {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := reads.Load(); n > nbd.WarmersMax*nbd.CacheMax/4 {
		t.Errorf("%d bytes read before all but a few were answered", n)
	}
	c.Close()
	until(t, "the session ends", func() bool { return mem.Closed() == 1 })
	if n := reads.Load(); n > nbd.WarmersMax*nbd.CacheMax/2 {
		t.Errorf("%d bytes read for a client that left", n)
	}
}
