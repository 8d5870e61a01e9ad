package iscsi_test

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// walker makes random requests in one session after the other and tells a model.
type walker struct {
	t     *testing.T
	r     *rig
	m     *targettest.Model
	rng   *rand.Rand
	cfg   iscsiclient.Config
	c     *iscsiclient.Client
	under map[uint32]*walk // commands under way, by tag
}

// walk is one request under way.
type walk struct {
	cmd  *iscsiclient.Command
	op   *targettest.Op
	kind string
	fua  bool
}

const (
	walkBlock = 4096
	walkSize  = 64 * walkBlock
	walkSteps = 250
	walkDepth = 12
)

// begin logs in, in a random way. Sessions of the same port replace each other: when
// the login is over, so is everything that the last session had begun.
func (w *walker) begin() {
	pick := func(v ...string) string { return v[w.rng.Intn(len(v))] }
	w.cfg.Keys = keys("InitialR2T", pick("Yes", "No"), "ImmediateData", pick("Yes", "No"), "HeaderDigest", pick("None", "CRC32C"),
		"DataDigest", pick("None", "CRC32C"), "MaxRecvDataSegmentLength", pick("512", "8192", "262144"), "MaxBurstLength", pick("4096", "65536"),
		"FirstBurstLength", pick("512", "4096", "65536"), "MaxOutstandingR2T", pick("1", "8"))
	w.c = w.r.ready(w.cfg)
	w.c.Params.SendMax = min(w.c.Params.SendMax, uint32(512<<w.rng.Intn(6)))
	for _, x := range w.under {
		if x.kind == "read" || x.kind == "flush" {
			if x.kind == "read" {
				x.op.Forget()
			}
			continue
		}
		x.op.Lost()
	}
	w.under = map[uint32]*walk{}
}

// step begins one request.
func (w *walker) step() error {
	n := 1 + w.rng.Intn(16)
	block := w.rng.Intn(walkSize/walkBlock - n + 1)
	off, size := int64(block*walkBlock), n*walkBlock
	x := &walk{fua: w.rng.Intn(4) == 0}
	switch k := w.rng.Intn(10); {
	case k < 4:
		p := make([]byte, size)
		x.kind, x.op = "write", w.m.BeginWrite(p, off)
		x.cmd = &iscsiclient.Command{CDB: iscsiclient.Write10(uint32(block), n, x.fua), Out: p}
	case k < 7:
		x.kind, x.op = "read", w.m.BeginRead(off, size)
		x.cmd = &iscsiclient.Command{CDB: iscsiclient.Read10(uint32(block), n), In: make([]byte, size)}
	case k < 8:
		x.kind, x.op = "flush", w.m.BeginFlush()
		x.cmd = &iscsiclient.Command{CDB: []byte{0x35, 9: 0}}
	case k < 9:
		x.kind, x.fua, x.op = "unmap", false, w.m.BeginZero(off, size, true)
		p := make([]byte, 24)
		binary.BigEndian.PutUint16(p, 22)
		binary.BigEndian.PutUint16(p[2:], 16)
		binary.BigEndian.PutUint64(p[8:], uint64(block))
		binary.BigEndian.PutUint32(p[16:], uint32(n))
		x.cmd = &iscsiclient.Command{CDB: []byte{0x42, 8: 24, 9: 0}, Out: p}
	default:
		x.kind, x.fua, x.op = "zero", false, w.m.BeginZero(off, size, false)
		cdb := iscsiclient.Write10(uint32(block), n, false)
		cdb[0] = 0x41
		x.cmd = &iscsiclient.Command{CDB: cdb, Out: make([]byte, walkBlock)}
	}
	if err := w.c.Start(x.cmd); err != nil {
		return err
	}
	w.under[x.cmd.ITT] = x
	return nil
}

// next takes the end of one request.
func (w *walker) next() error {
	cmd, err := w.c.Next()
	if err != nil {
		return err
	}
	x := w.under[cmd.ITT]
	delete(w.under, cmd.ITT)
	if cmd.Status != 0 {
		return fmt.Errorf("%s: %v", x.kind, cmd)
	}
	switch x.kind {
	case "read":
		if cmd.Got != len(cmd.In) {
			return fmt.Errorf("%d of %d bytes", cmd.Got, len(cmd.In))
		}
		return x.op.Check(cmd.In)
	case "flush":
		x.op.Flushed()
	default:
		x.op.Done(x.fua)
	}
	return nil
}

// abort ends a request that is under way, if it is, by task management.
func (w *walker) abort() error {
	for itt, x := range w.under {
		got, err := w.c.Manage(pdu.AbortTask, 0, itt)
		if err != nil {
			return err
		}
		if got == pdu.FunctionNoTask || x.cmd.Done {
			return w.settle(x) // its response came first
		}
		delete(w.under, itt)
		delete(w.c.Commands, itt)
		switch x.kind {
		case "read":
			x.op.Forget()
		case "flush":
		default:
			x.op.Lost()
		}
		return nil
	}
	return nil
}

// settle takes note of a request whose response was taken while waiting for another.
func (w *walker) settle(x *walk) error {
	if !x.cmd.Done {
		return nil // the response is still to come
	}
	delete(w.under, x.cmd.ITT)
	switch x.kind {
	case "read":
		return x.op.Check(x.cmd.In)
	case "flush":
		x.op.Flushed()
	default:
		x.op.Done(x.fua)
	}
	return nil
}

func (w *walker) walk() error {
	w.begin()
	for i := range walkSteps {
		if err := w.step(); err != nil {
			return err
		}
		switch k := w.rng.Intn(100); {
		case k == 0:
			w.c.Close() // everything under way is left to its fate
			w.begin()
		case k < 5:
			if err := w.abort(); err != nil {
				return fmt.Errorf("step %d: abort: %w", i, err)
			}
			for _, x := range w.under {
				if err := w.settle(x); err != nil {
					return err
				}
			}
		}
		for len(w.under) > w.rng.Intn(walkDepth) {
			if err := w.next(); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
	}
	for len(w.under) > 0 {
		if err := w.next(); err != nil {
			return err
		}
	}
	return w.c.Logout()
}

// TestRandomRequestsFollowTheModel has three initiator ports make overlapping
// requests, abort some, lose their connections and come back; then the power is cut.
func TestRandomRequestsFollowTheModel(t *testing.T) {
	for seed := range int64(2) {
		mem := targettest.NewMemory(walkSize, walkBlock)
		mem.Volatile = true
		mem.Delay = time.Duration(seed%2) * 100 * time.Microsecond
		s := newShelf()
		s.add("v", mem)
		r := serve(t, s, func(c *iscsi.Config) { c.CommandsMax = 32 })
		m := targettest.NewModel(walkSize, walkBlock)
		var wg sync.WaitGroup
		errs := make([]error, 3)
		for i := range errs {
			w := &walker{t: t, r: r, m: m, rng: rand.New(rand.NewSource(seed*100 + int64(i))), cfg: iscsiclient.Config{ISID: pdu.ISID{byte(i + 1)}}}
			wg.Go(func() { errs[i] = w.walk() })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				t.Fatalf("seed %d, port %d: %v", seed, i, err)
			}
		}
		rng := rand.New(rand.NewSource(seed))
		mem.Crash(func(int64) bool { return rng.Intn(2) == 0 })
		p := make([]byte, walkSize)
		if !mem.TryReadAt(p, 0) {
			mem.Delay = 0
			mem.TryReadAt(p, 0)
		}
		if err := m.Recovered(p); err != nil {
			t.Fatalf("seed %d: after the power cut: %v", seed, err)
		}
	}
}
