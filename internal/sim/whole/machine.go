package whole

import (
	"context"
	"errors"
	"fmt"
	mrand "math/rand"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gabion-storage/gabion/blockdev"
	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/node"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/overlay/kouncil"
)

// machine is a computer with one disk: it outlives the processes that run on it.
type machine struct {
	w     *World
	id    ident.NodeID
	name  string
	first bool
	rate  float64 // at which its clock runs

	mu     sync.Mutex
	disk   *vfs.Mem
	stable *brick.MemStable
	state  *stateFile
	boot   uint64
	proc   *process      // nil: none runs
	frozen chan struct{} // non-nil while everything on it is stopped; closed when it goes on
	coin   *rand.Rand    // how long its disk takes
	busy   bool          // a fault has it

	gone, leaving bool          // for good; while it is emptied
	doomed        bool          // it is down and will not come back, which nobody was told yet
	word          atomic.Uint64 // how many decisions the operator made about it
}

// process is one life of a node.
type process struct {
	m     *machine
	core  *node.Core
	link  *link.MemoryNode
	brick *brick.Brick
	dead  chan struct{} // closed with it
}

// stateFile is where a node keeps its copy of the pool's state.
type stateFile struct {
	mu    sync.Mutex
	bytes []byte
}

func (f *stateFile) Load() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.bytes), nil
}

func (f *stateFile) Save(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes = slices.Clone(b)
	return nil
}

// errDead is what everything says to a process that was killed: from then on
// nothing of it reaches what the next one finds.
var errDead = fault.New(fault.Unavailable, "sim", "", errors.New("the process is dead"))

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// mortalStable and mortalFile are what a dead process cannot change.
type mortalStable struct {
	*brick.MemStable
	p *process
}

func (s mortalStable) Set(key string, v []byte) error {
	s.p.m.disturb(s.p, "vote", "")
	if s.p.isDead() {
		return errDead
	}
	return s.MemStable.Set(key, v)
}

type mortalFile struct {
	*stateFile
	p *process
}

func (f mortalFile) Save(b []byte) error {
	if f.p.isDead() {
		return errDead
	}
	return f.stateFile.Save(b)
}

func (w *World) newMachine(i int) *machine {
	m := &machine{w: w, id: ident.NodeID{byte(i + 1)}, name: fmt.Sprintf("n%d", i+1), first: i == 0,
		stable: brick.NewMemStable(), state: &stateFile{}, coin: w.stream(forDisks + uint64(i+1)<<8)}
	m.disk = vfs.NewMemSeed(m.coin.Int64())
	m.rate = 1 + (m.coin.Float64()-0.5)/50
	return m
}

// disturb is the time that a disk takes: most of it to sync.
func (m *machine) disturb(p *process, op, name string) {
	if op == "sync" || op == "syncdir" || op == "vote" {
		m.mu.Lock()
		d := time.Duration(200+m.coin.IntN(1500)) * time.Microsecond
		m.mu.Unlock()
		time.Sleep(d)
	}
	if at := diskMoment(op, name); at != "" && !p.isDead() {
		m.w.came(at, nil, m)
	}
	m.thaw(p)
}

// thaw waits while the machine is stopped.
func (m *machine) thaw(p *process) {
	for {
		m.mu.Lock()
		f := m.frozen
		m.mu.Unlock()
		if f == nil {
			return
		}
		select {
		case <-f:
		case <-p.dead:
			return
		}
	}
}

func (m *machine) addr() string { return fmt.Sprintf("10.0.0.%d:7000", m.id[0]) }

// start runs a node on the machine.
func (m *machine) start(peers map[ident.NodeID]string) error {
	m.mu.Lock()
	if m.proc != nil {
		m.mu.Unlock()
		return nil
	}
	m.boot++
	p := &process{m: m, dead: make(chan struct{})}
	disk, boot := m.disk, m.boot
	m.mu.Unlock()
	disk.SetHook(func(op, name string) error {
		m.disturb(p, op, name)
		if p.isDead() {
			return errDead
		}
		return nil
	})
	if err := p.open(disk, boot); err != nil {
		return err
	}
	m.mu.Lock()
	m.proc = p
	m.mu.Unlock()
	p.link.Start()
	p.core.Meet(peers)
	return p.core.Start(context.Background())
}

func (p *process) open(disk *vfs.Mem, boot uint64) (err error) {
	m, w := p.m, p.m.w
	log := w.log.With("node", m.name, "boot", boot)
	p.brick, err = brick.Open(brick.Config{
		FS: disk, Pool: w.pool, Node: m.id, Stable: mortalStable{m.stable, p},
		JournalSegmentSize: journalSegment, JournalMax: journalMax, ExtentSegmentSize: extentSegment, Reserve: -1,
		Log: log, OnBroken: func(err error) { w.background.Go(func() { m.broke(p, err) }) },
	})
	if err != nil {
		return err
	}
	p.link = w.net.Node(m.id)
	began := time.Now()
	p.core, err = node.NewCore(node.CoreConfig{
		Pool: w.pool, Name: m.name, Addr: m.addr(), Boot: boot, Transport: p.link, Bricks: []*brick.Brick{p.brick},
		StateFile: mortalFile{m.state, p}, First: m.first && boot == 1, PoolName: "sim", OnPeers: p.link.SetPeers,
		Tune: w.tune, Log: log,
		Kouncil: kouncil.Config{Clock: func() time.Duration { return time.Duration(float64(time.Since(began)) * m.rate) }},
	})
	return err
}

// Sizes are those of a real node made small, so that everything that happens at
// a limit happens often.
const (
	journalSegment = 256 << 10
	journalMax     = 32 << 20
	extentSegment  = 1 << 20
)

func (w *World) tune(c *blockdev.Config) {
	c.CheckpointBytes, c.TailBytes = 256<<10, 1<<20
	c.CheckpointIdle = 3 * time.Second
	c.IOTimeout = 20 * time.Second
	c.LargeWrite = 64 << 10
	c.Pages = 8
	c.EagerLarge = w.mood.eager
}

// stop ends the machine's process: killed, with what it had written in the page
// cache, or by the power, with the loss of what was not synced.
func (m *machine) stop(power bool) {
	m.mu.Lock()
	p := m.proc
	m.proc = nil
	if p != nil {
		close(p.dead)
		m.w.net.Crash(m.id)
	}
	if power {
		m.disk = m.disk.Crash(mrand.New(mrand.NewSource(m.coin.Int64())))
	} else {
		m.disk = m.disk.Kill()
	}
	m.mu.Unlock()
	if p != nil {
		m.w.background.Go(p.bury)
	}
}

// bury lets the goroutines of a dead process end.
func (p *process) bury() {
	p.core.Close()
	_ = p.brick.Close()
	p.link.Close()
}

// broke ends the process whose only disk failed, as internal/node does.
func (m *machine) broke(p *process, err error) {
	m.mu.Lock()
	mine := m.proc == p
	m.mu.Unlock()
	if mine {
		m.w.event("%s: its brick broke: %v", m.name, err)
		m.stop(false)
	}
}

// running is the process that serves clients now, or nil.
func (m *machine) running() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

// take reserves the machine for a fault.
func (m *machine) take() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return false
	}
	m.busy = true
	return true
}

func (m *machine) release() {
	m.mu.Lock()
	m.busy = false
	m.mu.Unlock()
}

// revive starts the machine's node until that works.
func (m *machine) revive() {
	for {
		err := m.start(m.w.peersOf(m))
		if err == nil {
			return
		}
		if fault.Is(err, fault.Corrupt) && (!m.w.lies || m != m.w.victim()) {
			m.w.violated("%s does not start on an honest disk: %v", m.name, err)
		}
		m.w.event("%s: does not start: %v", m.name, err)
		m.stop(false)
		if !m.w.sleep(time.Second) {
			return
		}
	}
}
