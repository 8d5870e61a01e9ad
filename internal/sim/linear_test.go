package sim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

const (
	linBlocks  = 12
	linClients = 4
)

// op is one operation on one block, as porcupine sees it. Value 0 is zeros.
type op struct {
	write bool
	block int
	value uint64
	node  string // where, and with which epoch
}

// register is a block: reads return what was written last.
var register = porcupine.Model{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, linBlocks)
		for _, o := range h {
			b := o.Input.(op).block
			parts[b] = append(parts[b], o)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, in, out any) (bool, any) {
		o := in.(op)
		if o.write {
			return true, o.value
		}
		return out.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(in, out any) string {
		o := in.(op)
		if o.write {
			return fmt.Sprintf("write(%d, %d)", o.block, o.value)
		}
		return fmt.Sprintf("read(%d) = %d", o.block, out)
	},
}

// history collects operations of all clients.
type history struct {
	mu    sync.Mutex
	ops   []porcupine.Operation
	began time.Time
	value uint64
}

func (h *history) next() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.value++
	return h.value
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) add(o porcupine.Operation) {
	h.mu.Lock()
	h.ops = append(h.ops, o)
	h.mu.Unlock()
}

// TestHistoriesAreLinearizable lets clients read and write through whichever node
// lets them while nodes are killed, cut off and taken over, and checks that the
// outcome could have come from one disk.
func TestHistoriesAreLinearizable(t *testing.T) {
	for name, power := range map[string]bool{"kill and cut": false, "power": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachSeed(t, 3, func(t *testing.T, seed uint64) { linear(t, seed, power) })
		})
	}
}

func linear(t *testing.T, seed uint64, power bool) {
	ctx, c := start(t, seed)
	h := &history{began: time.Now()}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for id := range linClients {
		clients.Go(func() { client(ctx, c, h, id, seed, power, stop) })
	}
	rng := rand.New(rand.NewPCG(seed, 9))
	for range 8 {
		pause(ctx, time.Duration(100+rng.IntN(300))*time.Millisecond)
		torment(t, ctx, c, rng, power)
	}
	for _, n := range c.Nodes {
		c.Net.Rejoin(n.ID)
		if !n.Up() {
			if err := n.Start(); err != nil {
				t.Fatalf("node does not come back: %v", err)
			}
		}
	}
	pause(ctx, 500*time.Millisecond)
	close(stop)
	clients.Wait()
	finish(t, ctx, c, h)
	res := porcupine.CheckOperationsTimeout(register, h.ops, 20*time.Second)
	if res != porcupine.Ok {
		for _, line := range append(h.stale(), h.illegal()...) {
			t.Log(line)
		}
		t.Fatalf("history of %d operations: %v", len(h.ops), res)
	}
	reads := 0
	for _, o := range h.ops {
		if !o.Input.(op).write {
			reads++
		}
	}
	t.Logf("%d operations, %d of them reads", len(h.ops), reads)
	if reads < 20 || len(h.ops)-reads < 20 {
		t.Errorf("too little was done to prove anything")
	}
}

// stale lists the plainest violations: reads of a value that an answered write
// had replaced before the read began, or that nobody wrote.
func (h *history) stale() (out []string) {
	for _, r := range h.ops {
		ri := r.Input.(op)
		if ri.write {
			continue
		}
		v := r.Output.(uint64)
		wrote := porcupine.Operation{Return: -1, Input: op{node: "birth"}}
		for _, w := range h.ops {
			if wi := w.Input.(op); wi.write && wi.value == v && wi.block == ri.block {
				wrote = w
			}
		}
		for _, w := range h.ops {
			if wi := w.Input.(op); wi.write && wi.block == ri.block && w.Call > wrote.Return && w.Return < r.Call && wi.value != v {
				out = append(out, fmt.Sprintf("block %d: read %d at %s [%d,%d] us; it was written at %s [%d,%d] and replaced by %d at %s [%d,%d]",
					ri.block, v, ri.node, r.Call/1000, r.Return/1000, wrote.Input.(op).node, wrote.Call/1000, wrote.Return/1000,
					wi.value, wi.node, w.Call/1000, w.Return/1000))
				break
			}
		}
	}
	return out[:min(len(out), 20)]
}

// illegal tells the whole history of the blocks that no disk could have had.
func (h *history) illegal() (out []string) {
	for b, part := range register.Partition(h.ops) {
		if porcupine.CheckOperationsTimeout(register, part, 5*time.Second) == porcupine.Ok {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		for _, o := range part {
			out = append(out, fmt.Sprintf("block %d: [%d,%d] us %s at %s", b, o.Call/1000, o.Return/1000,
				register.DescribeOperation(o.Input, o.Output), o.Input.(op).node))
		}
	}
	return out
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// torment does one thing to the cluster and undoes it after a while.
func torment(t *testing.T, ctx context.Context, c *Cluster, rng *rand.Rand, power bool) {
	n := c.Nodes[rng.IntN(len(c.Nodes))]
	switch k := rng.IntN(4); {
	case k == 0:
		c.Net.Isolate(n.ID)
		pause(ctx, time.Duration(100+rng.IntN(600))*time.Millisecond)
		c.Net.Rejoin(n.ID)
	case k == 1:
		m := c.Nodes[(rng.IntN(2)+1+int(n.ID[0]-1))%len(c.Nodes)]
		c.Net.Cut(n.ID, m.ID)
		pause(ctx, time.Duration(100+rng.IntN(600))*time.Millisecond)
		c.Net.Heal(n.ID, m.ID)
	case k == 2 && power:
		for _, m := range c.Nodes { // the lights go out
			m.Kill(false)
		}
		for _, i := range rng.Perm(len(c.Nodes)) {
			if err := c.Nodes[i].Start(); err != nil {
				t.Errorf("node does not come back after a power cut: %v", err)
			}
			pause(ctx, time.Duration(rng.IntN(100))*time.Millisecond)
		}
	default:
		n.Kill(!power || rng.IntN(2) == 0)
		pause(ctx, time.Duration(rng.IntN(500))*time.Millisecond)
		if err := n.Start(); err != nil {
			t.Errorf("node does not come back: %v", err)
		}
	}
}

// client works until stop on whatever node lets it. With fua every write asks
// for durability, so that power cuts may come.
func client(ctx context.Context, c *Cluster, h *history, id int, seed uint64, fua bool, stop chan struct{}) {
	rng := rand.New(rand.NewPCG(seed, uint64(100+id)))
	var s target.Session
	var node string
	for {
		select {
		case <-stop:
			if s != nil {
				s.Close()
			}
			return
		default:
		}
		if s == nil {
			s, node = connect(ctx, c, rng, id)
			continue
		}
		if !act(ctx, s, h, id, node, rng, fua) || rng.IntN(40) == 0 {
			s.Close()
			s = nil
		}
	}
}

func connect(ctx context.Context, c *Cluster, rng *rand.Rand, id int) (target.Session, string) {
	n := c.Nodes[rng.IntN(len(c.Nodes))]
	m, boot := n.Serving()
	if m == nil {
		pause(ctx, 10*time.Millisecond)
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if rng.IntN(6) == 0 {
		if _, err := m.Attach(ctx, "v", true); err != nil {
			return nil, ""
		}
	}
	s, _, err := m.Open(ctx, "v", fmt.Sprint("client-", id))
	if err != nil {
		pause(ctx, 10*time.Millisecond)
		return nil, ""
	}
	return s, fmt.Sprintf("n%d epoch %d boot %d", n.ID[0], s.(interface{ Epoch() uint64 }).Epoch(), boot)
}

// act does one operation and records it; false if the session is over.
func act(ctx context.Context, s target.Session, h *history, id int, node string, rng *rand.Rand, fua bool) bool {
	block := rng.IntN(linBlocks)
	if rng.IntN(2) == 0 {
		return read(ctx, s, h, id, node, block, fua)
	}
	v := h.next()
	p := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v), 512)
	call := h.now()
	got := make(chan error, 1)
	s.Write(p, int64(block)*4096, fua, func(err error) { got <- err })
	s.Kick()
	if rng.IntN(8) == 0 {
		s.Flush(func(error) {})
		s.Kick()
	}
	err := <-got
	ret := h.now()
	if err != nil {
		ret = 1 << 60 // it may still happen, at any later time
	}
	h.add(porcupine.Operation{ClientId: id, Input: op{true, block, v, node}, Call: call, Output: nil, Return: ret})
	return err == nil
}

// read reads a block and records what it saw. Where power cuts come it flushes
// before it believes its eyes: what was seen but not flushed may go.
func read(ctx context.Context, s target.Session, h *history, id int, node string, block int, flush bool) bool {
	p := make([]byte, 4096)
	call := h.now()
	if !s.TryReadAt(p, int64(block)*4096) {
		if err := s.ReadAt(ctx, p, int64(block)*4096); err != nil {
			return false
		}
	}
	if flush {
		got := make(chan error, 1)
		s.Flush(func(err error) { got <- err })
		s.Kick()
		if <-got != nil {
			return false
		}
	}
	ret := h.now()
	v := binary.LittleEndian.Uint64(p)
	if !bytes.Equal(p, bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v), 512)) {
		v = 1 << 62 // torn: no write wrote this
	}
	h.add(porcupine.Operation{ClientId: id, Input: op{false, block, 0, node}, Call: call, Output: v, Return: ret})
	return true
}

// finish reads every block once more, through a node that lets it.
func finish(t *testing.T, ctx context.Context, c *Cluster, h *history) {
	t.Helper()
	for {
		var why error
		for _, n := range c.Nodes {
			actx, cancel := context.WithTimeout(ctx, 10*time.Second)
			s, _, err := n.Manager.Open(actx, "v", "finish")
			cancel()
			if err != nil {
				why = err
				continue
			}
			ok := true
			for b := range linBlocks {
				ok = ok && read(ctx, s, h, linClients, "finish", b, false)
			}
			s.Close()
			if ok {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("the volume does not come back: %v", why)
		}
		if !fault.Is(why, fault.Busy) {
			pause(ctx, 50*time.Millisecond)
		}
	}
}
