package dht

import (
	"sync"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// repair is the replacement of one damaged copy, by the brick's own node.
type repair struct {
	addr  ident.Addr
	brick overlay.BrickRef
	// onDisk: the disk was read past the page cache, whose bytes may be good.
	onDisk bool
}

// repairQueue holds what waits and what runs.
type repairQueue struct {
	mu      sync.Mutex
	wanted  map[repair]bool // waiting or running
	waiting []repair
	workers int
}

// foundCorrupt tells of a damaged copy that a reader met.
func (s *Store) foundCorrupt(addr ident.Addr, b overlay.BrickRef, err error) {
	s.cfg.Log.Warn("damaged copy of an extent", "extent", addr.Short(), "node", b.Node.Short(), "brick", b.Brick.Short(), "err", err)
	s.cfg.OnCorrupt(addr, b)
}

// wantRepair queues a repair, once.
func (s *Store) wantRepair(r repair) {
	q := &s.repairs
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.wanted[r] || len(q.wanted) >= RepairQueueMax {
		return
	}
	if q.workers < RepairsMax {
		if !s.spawn(s.repairWorker) {
			return
		}
		q.workers++
	}
	q.wanted[r] = true
	q.waiting = append(q.waiting, r)
}

// repairWorker works until nothing waits.
func (s *Store) repairWorker() {
	q := &s.repairs
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 || s.ctx.Err() != nil {
			q.workers--
			q.mu.Unlock()
			return
		}
		r := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		s.runRepair(r)
		q.mu.Lock()
		delete(q.wanted, r)
		q.mu.Unlock()
	}
}

func (s *Store) runRepair(r repair) {
	if r.brick.Node != s.self {
		if _, err := s.call(s.ctx, r.brick.Node, typeCheck, checkRequest{brick: r.brick.Brick, addr: r.addr}.encode()); err != nil {
			s.cfg.Log.Warn("node not told of its damaged copy", "extent", r.addr.Short(), "node", r.brick.Node.Short(), "err", err)
		}
		return
	}
	replaced, err := s.replace(r)
	switch {
	case err != nil:
		s.stats.repairsFailed.Add(1)
		s.cfg.Log.Error("damaged copy not replaced; the next read tries again", "extent", r.addr.Short(), "brick", r.brick.Brick.Short(), "err", err)
	case replaced:
		s.stats.repaired.Add(1)
		s.cfg.Log.Info("damaged copy replaced", "extent", r.addr.Short(), "brick", r.brick.Brick.Short())
	}
}

// replace puts good bytes in place of a damaged copy on a local brick. The
// damaged one goes only after the good one is durable.
func (s *Store) replace(r repair) (replaced bool, err error) {
	l, err := s.brick("dht.repair", r.brick.Brick)
	if err != nil {
		return false, err
	}
	data, err := readWhole(l, r.addr, quickly)
	if fault.Is(err, fault.NotFound) {
		return false, nil // deleted meanwhile
	}
	good := err == nil && ident.AddrOf(data) == r.addr
	if good && !r.onDisk {
		return false, nil // a reader's mistake, or replaced already
	}
	if good { // the page cache has what the disk lost
		return true, s.replaceWith(l, r.addr, data)
	}
	l.NoteDamage(r.addr, fault.Newf(fault.Corrupt, "dht.repair", r.addr.Short(), "a copy was found damaged"))
	data, err = s.getWith(s.ctx, &tries{store: s, addr: r.addr, repairing: true, tried: []overlay.BrickRef{r.brick}})
	if err != nil {
		return false, err
	}
	return true, s.replaceWith(l, r.addr, data)
}

// replaceWith puts good bytes in a new place of a local brick. An extent that was
// deleted meanwhile stays deleted.
func (s *Store) replaceWith(l *localBrick, addr ident.Addr, data []byte) error {
	h, err := extent.ParseHeader(data)
	if err != nil {
		return err
	}
	leave, err := l.fences.enterAny(h.Volume)
	if err != nil {
		return err
	}
	defer leave()
	err = l.ReplaceExtent(brick.Extent{Addr: addr, Volume: h.Volume, Number: h.Number, Epoch: h.Epoch, Data: data})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Repair replaces a copy on a brick of this node that its disk has damaged, even
// if the page cache has good bytes. It returns when that is durable. Kinds:
// Unavailable and Corrupt (no good copy was found), NoSpace.
func (s *Store) Repair(b ident.BrickID, addr ident.Addr) error {
	r := repair{addr: addr, brick: overlay.BrickRef{Node: s.self, Brick: b}, onDisk: true}
	_, err := s.replace(r)
	if err != nil {
		s.stats.repairsFailed.Add(1)
		return err
	}
	s.stats.repaired.Add(1)
	return nil
}
