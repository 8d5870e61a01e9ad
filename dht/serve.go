package dht

import (
	"context"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// handle registers the server's half. Peers are authenticated members of the
// pool; every length they send is still bounded before it is used.
func (s *Store) handle() {
	for typ, gentle := range map[link.Type]bool{typePut: false, typePutGently: true} {
		s.cfg.Transport.HandleCall(typ, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
			r, err := decodePut(body)
			if err != nil {
				return nil, err
			}
			r.gentle = gentle
			if mutant.On("lend-early") {
				lend.Put(body)
			}
			return nil, s.servePut(r, func() { lend.Put(body) })
		})
	}
	for _, way := range []readWay{quickly, s.gently()} {
		s.cfg.Transport.HandleCallLent(way.typ, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
			r, err := decodeRead(body)
			if err != nil {
				return nil, err
			}
			return s.serveRead(r, way)
		})
	}
	register(s, typeDelete, decodeDelete, func(r deleteRequest) ([]byte, error) { return nil, s.serveDelete(r) })
	register(s, typeList, decodeList, func(r listRequest) ([]byte, error) {
		page, err := s.serveList(r)
		if err != nil {
			return nil, err
		}
		return page.encode(), nil
	})
	register(s, typeStat, decodeStat, func(r statRequest) ([]byte, error) {
		sizes, err := s.serveStat(r)
		return encodeSizes(sizes), err
	})
	register(s, typeSeal, decodeSeal, func(r sealRequest) ([]byte, error) { return nil, s.serveSeal(r) })
	register(s, typeCheck, decodeCheck, func(r checkRequest) ([]byte, error) { return nil, s.serveCheck(r) })
}

// atOnce is how what somebody waits for is run: as Config.Gently, but in place.
func atOnce(f func()) { f() }

func register[R any](s *Store, typ link.Type, decode func([]byte) (R, error), serve func(R) ([]byte, error)) {
	s.cfg.Transport.HandleCall(typ, func(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
		r, err := decode(body)
		if err != nil {
			return nil, err
		}
		return serve(r)
	})
}

// enter finds a brick of this node for a change by a holder of that epoch, which is
// not fenced off before leave is called.
func (s *Store) enter(op string, brick ident.BrickID, v ident.VolumeID, epoch uint64) (l *localBrick, leave func(), err error) {
	if l, err = s.brick(op, brick); err != nil {
		return nil, nil, err
	}
	leave, err = l.fences.enter(v, epoch)
	return l, leave, err
}

// servePut stores a batch, durable on return. The brick compares every extent with
// its checksum, or with its address if it has none, before it writes; but for what this
// node has just hashed.
// done is called when the disk has let go of the bytes; not if it was not asked.
func (s *Store) servePut(r putRequest, done func()) error {
	l, leave, err := s.enter("dht.put", r.brick, r.volume, r.epoch)
	if err != nil {
		return err
	}
	return l.unlessStalled(func() error {
		defer done()
		defer leave()
		if !r.gentle {
			return l.PutExtents(r.extents)
		}
		var err error
		s.cfg.Gently(func() { err = l.PutExtentsGently(r.extents) })
		return err
	})
}

// unlessStalled runs f, which waits for the disk, and lets go of it when the disk
// is known to hang. f must touch nothing of the caller's.
func (l *localBrick) unlessStalled(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-l.Stalled():
		return fault.Newf(fault.Unavailable, "dht", l.ref.Brick.Short(), "the disk of the brick does not answer")
	}
}

func (s *Store) serveRead(r readRequest, way readWay) ([]byte, error) {
	l, err := s.brick("dht.read", r.brick)
	if err != nil {
		return nil, err
	}
	got := make(chan []byte, 1)
	err = l.unlessStalled(func() error {
		var p []byte
		var err error
		way.run(func() { p, err = readRange(l, r, way) })
		got <- p
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

// readRange reads what r asks for, unverified. The bytes are lent to the caller.
func readRange(l *localBrick, r readRequest, way readWay) ([]byte, error) {
	if r.length == 0 {
		return readWhole(l, r.addr, way)
	}
	size, ok := l.StatExtent(r.addr)
	if !ok {
		return nil, absent(l, r.addr)
	}
	if r.off+int64(r.length) > size {
		return nil, fault.Newf(fault.Invalid, "dht.read", r.addr.Short(), "bytes [%d, %d) of an extent of %d", r.off, r.off+int64(r.length), size)
	}
	p := lend.Get(r.length)
	return p, l.ReadExtent(r.addr, p, r.off)
}

func absent(l *localBrick, addr ident.Addr) error {
	return fault.Newf(fault.NotFound, "dht.read", addr.Short(), "not on brick %s", l.ref.Brick.Short())
}

// readWhole reads a whole extent of a local brick, unverified. The bytes are lent to the caller.
func readWhole(l *localBrick, addr ident.Addr, way readWay) ([]byte, error) {
	size, ok := l.StatExtent(addr)
	if !ok {
		return nil, absent(l, addr)
	}
	if size > ExtentMax {
		return nil, fault.Newf(fault.Corrupt, "dht.read", addr.Short(), "an extent of %d bytes", size)
	}
	p := lend.Get(int(size))
	return p, way.disk(l, addr, p)
}

func (s *Store) serveDelete(r deleteRequest) error {
	l, leave, err := s.enter("dht.delete", r.brick, r.volume, r.epoch)
	if err != nil {
		return err
	}
	return l.unlessStalled(func() error {
		defer leave()
		return l.DeleteExtents(r.addrs)
	})
}

func (s *Store) serveStat(r statRequest) ([]int64, error) {
	l, err := s.brick("dht.stat", r.brick)
	if err != nil {
		return nil, err
	}
	sizes := make([]int64, len(r.addrs))
	for i, a := range r.addrs {
		size, ok := l.StatExtent(a)
		if !ok {
			size = -1
		}
		sizes[i] = size
	}
	return sizes, nil
}

// serveSeal raises the epoch on all bricks of this node; the first error is told
// after all were tried, Fenced before others.
func (s *Store) serveSeal(r sealRequest) error {
	var worst error
	for _, l := range *s.local.Load() {
		err := l.fences.raise(r.volume, r.epoch)
		if err != nil && (worst == nil || fault.Is(err, fault.Fenced)) {
			worst = err
		}
	}
	return worst
}

// serveCheck queues the verification of a copy that a reader found damaged.
func (s *Store) serveCheck(r checkRequest) error {
	l, err := s.brick("dht.check", r.brick)
	if err != nil {
		return err
	}
	s.wantRepair(repair{addr: r.addr, brick: l.ref})
	return nil
}
