package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// memory returns the bytes of live heap and stacks.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

var styles = []nbdclient.Style{nbdclient.Simple, nbdclient.Structured, nbdclient.Extended}

func TestServedDeviceKeepsTheContract(t *testing.T) {
	for name, delay := range map[string]time.Duration{"at once": 0, "later": time.Millisecond} {
		for i, style := range styles {
			network := []string{"tcp", "unix"}[i%2]
			t.Run(fmt.Sprint(style, " ", name, " over ", network), func(t *testing.T) {
				targettest.Run(t, func(t *testing.T) target.Device {
					mem := targettest.NewMemory(2<<20, 512)
					mem.Delay = delay
					var e targettest.Exports
					e.Add("v", mem)
					listen := start
					if network == "unix" {
						listen = startUnix
					}
					_, addr := listen(t, &e, nil)
					d, err := openStyle(t, network, addr, "v", style)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(d.Close)
					return d
				})
			})
		}
	}
}

// Several connections of all styles to one volume, cut off at random, and the
// power too. GABION_NBD_OPS sets the number of requests altogether.
func TestRandomRequestsFitTheModel(t *testing.T) {
	seeds, steps := 4, 1000
	if v := os.Getenv("GABION_NBD_OPS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		seeds = max(4, n/2/4/20000)
		steps = n / 2 / 4 / seeds
	}
	for name, delay := range map[string]time.Duration{"at once": 0, "later": 300 * time.Microsecond} {
		t.Run(name, func(t *testing.T) {
			mem := targettest.NewMemory(512<<10, 4096)
			mem.Delay, mem.Volatile = delay, true
			e := tracked{Exports: &targettest.Exports{}}
			e.Add("v", mem)
			s, addr := start(t, &e, func(c *nbd.Config) { c.RequestsMax = 24 })
			m := targettest.NewModel(mem.Size(), 4096)
			var opens atomic.Int32
			for seed := range uint64(seeds) {
				targettest.Exercise{
					Seed: seed, Steps: steps, Clients: 4, Depth: 32, BlocksMax: 16, Model: m,
					Open: func() (target.Device, error) { return e.open(t, addr, "v", styles[opens.Add(1)%3]) },
				}.Run(t)
				until(t, "all have left", func() bool { return s.Stats().Connections == 0 })
				r := rand.New(rand.NewPCG(seed, 1))
				mem.Crash(func(int64) bool { return r.IntN(2) == 0 })
				p := make([]byte, mem.Size())
				if err := mem.ReadAt(context.Background(), p, 0); err != nil {
					t.Fatal(err)
				}
				if err := m.Recovered(p); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			if mem.Closed() != e.Opened() {
				t.Errorf("%d sessions opened, %d closed", e.Opened(), mem.Closed())
			}
		})
	}
}

// tracked is Exports that tell when the session of a peer was closed.
type tracked struct {
	*targettest.Exports
	mu     sync.Mutex
	closed map[string]chan struct{} // by the client's address
}

type trackedSession struct {
	target.Session
	target.Mapper
	closed chan struct{}
}

func (s trackedSession) Close() {
	s.Session.Close()
	close(s.closed)
}

func (x *tracked) Open(ctx context.Context, name, peer string) (target.Session, <-chan struct{}, error) {
	s, gone, err := x.Exports.Open(ctx, name, peer)
	if err != nil {
		return nil, nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed == nil {
		x.closed = map[string]chan struct{}{}
	}
	x.closed[peer] = make(chan struct{})
	return trackedSession{s, s.(target.Mapper), x.closed[peer]}, gone, nil
}

// over returns what is closed with the session of peer.
func (x *tracked) over(peer string) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.closed[peer]
}

// open opens a device whose Cut waits until the server let go of its session.
func (x *tracked) open(t *testing.T, addr, name string, style nbdclient.Style) (target.Device, error) {
	d, err := openStyle(t, "tcp", addr, name, style)
	if err != nil {
		return nil, err
	}
	over := x.over(d.LocalAddr().String())
	d.Over = func() { <-over }
	return d, nil
}

func TestRequestsAreRefusedOneByOne(t *testing.T) {
	e, mem := pool()
	_, addr := start(t, e, nil)
	w := dial(t, "tcp", addr).enter("a")
	size := uint64(mem.Size())
	block := make([]byte, 4096)
	for i, c := range []struct {
		name string
		r    proto.Request
		data []byte
		want proto.Errno
	}{
		{"read beyond the end", proto.Request{Cmd: proto.CmdRead, Offset: size, Length: 4096}, nil, proto.EINVAL},
		{"read at 2^63", proto.Request{Cmd: proto.CmdRead, Offset: 1 << 63, Length: 4096}, nil, proto.EINVAL},
		{"read of 4 GiB - 1", proto.Request{Cmd: proto.CmdRead, Length: 1<<32 - 1}, nil, proto.EINVAL},
		{"read of 64 MiB", proto.Request{Cmd: proto.CmdRead, Length: 64 << 20}, nil, proto.EINVAL},
		{"unaligned read", proto.Request{Cmd: proto.CmdRead, Offset: 512, Length: 512}, nil, proto.EINVAL},
		{"unaligned write", proto.Request{Cmd: proto.CmdWrite, Length: 100}, block[:100], proto.EINVAL},
		{"write beyond the end", proto.Request{Cmd: proto.CmdWrite, Offset: size, Length: 4096}, block, proto.ENOSPC},
		{"large write beyond the end", proto.Request{Cmd: proto.CmdWrite, Offset: size, Length: 1 << 20}, make([]byte, 1<<20), proto.ENOSPC},
		{"write with unknown flag", proto.Request{Cmd: proto.CmdWrite, Flags: 1 << 15, Length: 4096}, block, proto.EINVAL},
		{"empty write", proto.Request{Cmd: proto.CmdWrite}, nil, proto.EINVAL},
		{"empty trim", proto.Request{Cmd: proto.CmdTrim}, nil, proto.EINVAL},
		{"trim beyond the end", proto.Request{Cmd: proto.CmdTrim, Offset: size, Length: 4096}, nil, proto.EINVAL},
		{"cache beyond the end", proto.Request{Cmd: proto.CmdCache, Offset: size, Length: 4096}, nil, proto.EINVAL},
		{"cache with DF", proto.Request{Cmd: proto.CmdCache, Flags: proto.FlagDF, Length: 4096}, nil, proto.EINVAL},
		{"block status", proto.Request{Cmd: proto.CmdBlockStatus, Length: 4096}, nil, proto.EINVAL},
		{"unknown command", proto.Request{Cmd: 4711, Length: 1 << 31}, nil, proto.EINVAL},
		{"trim with NO_HOLE", proto.Request{Cmd: proto.CmdTrim, Flags: proto.FlagNoHole, Length: 4096}, nil, proto.EINVAL},
	} {
		c.r.Cookie = uint64(i)
		w.request(c.r, c.data...)
		if e, cookie, _ := w.answer(0); e != c.want || cookie != uint64(i) {
			t.Fatalf("%s: %v for %d, want %v", c.name, e, cookie, c.want)
		}
	}
	ro := dial(t, "tcp", addr).enter("ro")
	for _, c := range []proto.Command{proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes} {
		var data []byte
		if c == proto.CmdWrite {
			data = block
		}
		ro.request(proto.Request{Cmd: c, Length: 4096}, data...)
		if e, _, _ := ro.answer(0); e != proto.EPERM {
			t.Errorf("%v on a read-only export: %v", c, e)
		}
	}
	ro.request(proto.Request{Cmd: proto.CmdRead, Length: 4096, Flags: proto.FlagFUA})
	if e, _, _ := ro.answer(4096); e != proto.OK {
		t.Error("read on a read-only export: ", e)
	}
}

func TestMalformedRequestsEndTheirConnectionOnly(t *testing.T) {
	e, mem := pool()
	var log logLines
	s, addr := start(t, e, func(c *nbd.Config) { c.Log = log.logger() })
	other := dial(t, "tcp", addr).enter("a")
	for i, b := range [][]byte{
		[]byte(strings.Repeat("garbage!", 8)),
		make([]byte, proto.RequestSize),
		proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Length: proto.PayloadMax + 4096}),
		proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Length: 1<<32 - 1}),
	} {
		w := dial(t, "tcp", addr).enter("a")
		w.send(b)
		w.ends()
		until(t, "it is counted", func() bool { return s.Stats().Malformed == uint64(i+1) })
	}
	if n := log.count("malformed input"); n != 4 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 { // noise of every length, and requests with their ends torn off
		w := dial(t, "tcp", addr).enter("a")
		b := make([]byte, r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 {
			b = append(proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Length: 8192}), b...)
		}
		w.Write(b)
		w.Close()
	}
	until(t, "they are gone", func() bool { return s.Stats().Connections == 1 })
	other.request(proto.Request{Cmd: proto.CmdFlush})
	if e, _, _ := other.answer(0); e != proto.OK {
		t.Error(e)
	}
	if mem.Closed() != e.Opened()-1 {
		t.Errorf("%d sessions opened, %d closed", e.Opened(), mem.Closed())
	}
}

// Every size around the limits of buffers, classes and chunks, read and written.
func TestSizesAroundEveryLimit(t *testing.T) {
	for name, delay := range map[string]time.Duration{"at once": 0, "later": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			mem := targettest.NewMemory(40<<20, 512)
			mem.Delay = delay
			var e targettest.Exports
			e.Add("v", mem)
			s, addr := start(t, &e, nil)
			d, err := open(t, "tcp", addr, "v")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			r := rand.New(rand.NewPCG(3, 4))
			for k := 12; k <= 25; k++ {
				for _, n := range []int{1<<k - 512, 1 << k, 1<<k + 512} {
					if n > proto.PayloadMax {
						continue
					}
					p := make([]byte, n)
					for i := 0; i < n; i += 8 {
						p[i] = byte(r.Uint32())
					}
					if err := targettest.Write(d, p, 1<<20, n%1024 == 0); err != nil {
						t.Fatal(n, err)
					}
					got, err := targettest.Read(d, 1<<20, n)
					if err != nil || !bytes.Equal(got, p) {
						t.Fatalf("%d bytes: %v", n, err)
					}
				}
			}
			until(t, "all is given back", func() bool { return s.Stats().BytesHeld == 0 })
		})
	}
}

func TestDeviceErrorsReachTheClient(t *testing.T) {
	mem := targettest.NewMemory(4<<20, 4096)
	var kind fault.Kind
	mem.Fail = func(op string, off int64, n int) error {
		if off >= 2<<20 || op == "flush" {
			return fault.New(kind, op, "v", nil)
		}
		return nil
	}
	var e targettest.Exports
	e.Add("v", mem)
	_, addr := start(t, &e, nil)
	w := dial(t, "tcp", addr).enter("v")
	for _, kind = range fault.Kinds() {
		want := proto.ErrnoOf(fault.New(kind, "", "", nil))
		for _, r := range []proto.Request{
			{Cmd: proto.CmdRead, Offset: 2 << 20, Length: 4096},
			{Cmd: proto.CmdRead, Offset: 2 << 20, Length: 1 << 20},
			{Cmd: proto.CmdWrite, Offset: 2 << 20, Length: 4096},
			{Cmd: proto.CmdWrite, Offset: 1 << 20, Length: 2 << 20}, // its first piece succeeds
			{Cmd: proto.CmdFlush},
			{Cmd: proto.CmdTrim, Offset: 2 << 20, Length: 4096},
			{Cmd: proto.CmdWriteZeroes, Offset: 2 << 20, Length: 4096},
		} {
			var data []byte
			if r.Cmd == proto.CmdWrite {
				data = make([]byte, r.Length)
			}
			w.request(r, data...)
			if e, _, _ := w.answer(int(r.Length)); e != want {
				t.Fatalf("%v with kind %v: %v, want %v", r.Cmd, kind, e, want)
			}
		}
	}
}

func TestGrownDeviceIsUsable(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 4096)
	var e targettest.Exports
	e.Add("v", mem)
	_, addr := start(t, &e, nil)
	d, err := open(t, "tcp", addr, "v")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := targettest.Write(d, make([]byte, 4096), 1<<20, false); err == nil {
		t.Error("wrote beyond the end")
	}
	mem.Grow(2 << 20)
	if err := targettest.Write(d, make([]byte, 4096), 1<<20, false); err != nil {
		t.Error(err)
	}
}

func TestObserveSeesEveryCommand(t *testing.T) {
	e, _ := pool()
	var mu sync.Mutex
	seen := map[string]int{}
	_, addr := start(t, e, func(c *nbd.Config) {
		c.Observe = func(cmd string, n int, d time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			seen[fmt.Sprintf("%s %d %v", cmd, n, err)]++
			if d < 0 || d > time.Minute {
				t.Error("took ", d)
			}
		}
	})
	d, err := open(t, "tcp", addr, "a")
	if err != nil {
		t.Fatal(err)
	}
	targettest.Write(d, make([]byte, 4096), 0, false)
	targettest.Write(d, make([]byte, 3<<20), 0, false)
	targettest.Read(d, 0, 8192)
	targettest.Read(d, 0, 1<<20)
	targettest.Flush(d)
	targettest.Wait(d, func(done func(error)) { d.Zero(0, 4096, false, done) })
	targettest.Wait(d, func(done func(error)) { d.Trim(0, 4096, false, done) })
	d.Close()
	mu.Lock()
	defer mu.Unlock()
	want := "map[flush 0 <nil>:1 read 1048576 <nil>:1 read 8192 <nil>:1 trim 4096 <nil>:1 " +
		"write 3145728 <nil>:1 write 4096 <nil>:1 write_zeroes 4096 <nil>:1]"
	if got := fmt.Sprint(seen); got != want {
		t.Error(got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	e, _ := pool()
	for _, c := range []nbd.Config{
		{},
		{Exports: e, ConnectionsMax: -1},
		{Exports: e, RequestsMax: -1},
		{Exports: e, BytesMax: 1 << 20},
		{Exports: e, MemoryMax: 1 << 20},
		{Exports: e, HandshakeTimeout: -1},
	} {
		if _, err := nbd.NewServer(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := nbd.NewServer(nbd.Config{Exports: e}); err != nil {
		t.Error(err)
	}
}
