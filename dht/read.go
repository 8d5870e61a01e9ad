package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/dht/extent"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
)

// TryReadAt fills p from byte off of a local copy if that needs no waiting, and
// reports whether it did. The bytes are not verified: the caller must.
func (s *Store) TryReadAt(addr ident.Addr, off int64, p []byte) bool {
	for _, l := range *s.local.Load() {
		if l.TryReadExtent(addr, p, off) {
			return true
		}
	}
	return false
}

// ReadAt fills p from byte off of an extent. It asks this node's bricks first,
// then the other holders by liveness, and goes on to the next one when a brick
// lacks the extent, fails, or gives bytes that verify rejects. verify runs on
// the caller's goroutine and may be called several times; nil accepts all. Kinds:
// Corrupt (copies were found, none of them good, and nobody else can be asked),
// NotFound (everybody answered, nobody has it), Unavailable (some holder did not
// answer), Timeout (ctx ended), Invalid.
func (s *Store) ReadAt(ctx context.Context, replicas int, addr ident.Addr, off int64, p []byte, verify func([]byte) bool) error {
	if len(p) == 0 || off < 0 || int64(len(p)) > ExtentMax-off {
		return fault.Newf(fault.Invalid, "dht.read", addr.Short(), "bytes [%d, %d+%d) are not within an extent", off, off, len(p))
	}
	t := &tries{store: s, addr: addr}
	fetch := func(ctx context.Context, b overlay.BrickRef) ([]byte, error) {
		return s.rangeFrom(ctx, b, addr, off, len(p))
	}
	return s.fromHolders(ctx, replicas, t, fetch, func(got []byte) error {
		if verify != nil && !verify(got) && !mutant.On("accept-unverified") {
			return fault.Newf(fault.Corrupt, "dht.read", addr.Short(), "bytes [%d, %d) do not match their checksum", off, off+int64(len(p)))
		}
		copy(p, got)
		lend.Put(got)
		return nil
	})
}

// Get returns a whole extent, verified against its address, from any holder.
// The result is the caller's, who may give it back (lend.Put). Kinds as for ReadAt.
func (s *Store) Get(ctx context.Context, addr ident.Addr) ([]byte, error) {
	return s.getWith(ctx, &tries{store: s, addr: addr})
}

// GetGently is Get for a copy that nobody waits for. sum is Checksum of the bytes.
func (s *Store) GetGently(ctx context.Context, addr ident.Addr) (data []byte, sum uint32, err error) {
	data, err = s.getWith(ctx, &tries{store: s, addr: addr, kind: gentlePulse})
	if err == nil {
		s.cfg.Gently(func() { sum = extent.Checksum(data) })
	}
	return data, sum, err
}

func (s *Store) getWith(ctx context.Context, t *tries) ([]byte, error) {
	var data []byte
	way := quickly
	if t.kind == gentlePulse {
		way = s.gently()
	}
	fetch := func(ctx context.Context, b overlay.BrickRef) ([]byte, error) {
		return s.wholeFrom(ctx, b, t.addr, way)
	}
	err := s.fromHolders(ctx, len(s.lane(t.addr)), t, fetch, func(got []byte) error { data = got; return nil })
	return data, err
}

// readWay is how an extent is read: for somebody who waits, or gently.
type readWay struct {
	typ  link.Type
	kind pulseKind
	run  func(func())
	disk func(l *localBrick, addr ident.Addr, p []byte) error // from the first byte on
}

var quickly = readWay{typeRead, readPulse, atOnce, func(l *localBrick, addr ident.Addr, p []byte) error { return l.ReadExtent(addr, p, 0) }}

func (s *Store) gently() readWay {
	return readWay{typeReadGently, gentlePulse, s.cfg.Gently, func(l *localBrick, addr ident.Addr, p []byte) error { return l.ReadExtentGently(addr, p) }}
}

// rangeFrom reads n bytes from off from one brick, unverified.
func (s *Store) rangeFrom(ctx context.Context, b overlay.BrickRef, addr ident.Addr, off int64, n int) ([]byte, error) {
	if b.Node == s.self {
		l, err := s.brick("dht.read", b.Brick)
		if err != nil {
			return nil, err
		}
		return s.readHere(ctx, b, readPulse, func() ([]byte, error) {
			p := lend.Get(n)
			return p, l.ReadExtent(addr, p, off)
		})
	}
	req := readRequest{brick: b.Brick, addr: addr, off: off, length: n}
	got, err := s.call(ctx, b.Node, typeRead, req.encode())
	if err == nil && len(got) != n {
		err = fault.Newf(fault.Corrupt, "dht.read", addr.Short(), "%d bytes came for %d", len(got), n)
	}
	return got, err
}

// readHere reads from a disk of this node, which may hang.
func (s *Store) readHere(ctx context.Context, b overlay.BrickRef, kind pulseKind, read func() ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	got := make(chan []byte, 1)
	err := s.onDisk(ctx, func() error {
		end := s.health.begin(b, kind)
		p, err := read()
		end(err)
		got <- p
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

// wholeFrom reads a whole extent from one brick and verifies it.
func (s *Store) wholeFrom(ctx context.Context, b overlay.BrickRef, addr ident.Addr, way readWay) (data []byte, err error) {
	if b.Node == s.self {
		l, err := s.brick("dht.read", b.Brick)
		if err != nil {
			return nil, err
		}
		data, err = s.readHere(ctx, b, way.kind, func() (p []byte, err error) {
			way.run(func() { p, err = readWhole(l, addr, way) })
			return p, err
		})
		if err != nil {
			return nil, err
		}
	} else if data, err = s.call(ctx, b.Node, way.typ, readRequest{brick: b.Brick, addr: addr}.encode()); err != nil {
		return nil, err
	}
	var sum ident.Addr
	way.run(func() { sum = ident.AddrOf(data) })
	if sum != addr && !mutant.On("accept-unverified") {
		return nil, fault.Newf(fault.Corrupt, "dht.read", addr.Short(), "the bytes are not those of the address")
	}
	return data, nil
}

// call is a request of a read: bounded by ReadTimeout.
func (s *Store) call(ctx context.Context, to ident.NodeID, typ link.Type, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	return s.cfg.Transport.Call(ctx, to, typ, body)
}

// byLiveness orders bricks: those of live nodes first, and of them the quick ones.
func (s *Store) byLiveness(bs []overlay.BrickRef) []overlay.BrickRef {
	slow := s.health.slow(bs)
	rank := func(b overlay.BrickRef) int {
		r := 0
		if b.Node != s.self {
			r = int(s.cfg.View.State(b.Node)) * 4
			if !s.cfg.Transport.Connected(b.Node) {
				r += 2
			}
		}
		if slow[b] {
			r++
		}
		return r
	}
	bs = slices.Clone(bs)
	slices.SortStableFunc(bs, func(a, b overlay.BrickRef) int { return rank(a) - rank(b) })
	return bs
}

func (s *Store) allBricks() []overlay.BrickRef {
	var bs []overlay.BrickRef
	for _, n := range s.cfg.View.Nodes() {
		for _, b := range n.Bricks {
			bs = append(bs, overlay.BrickRef{Node: n.ID, Brick: b.ID})
		}
	}
	return bs
}

// tries is the course of one read over several bricks.
type tries struct {
	store *Store
	addr  ident.Addr
	// repairing: this read looks for good bytes in place of a damaged copy. It
	// asks for no repairs itself, or nodes with nothing but damaged copies would
	// ask each other for ever.
	repairing                   bool
	kind                        pulseKind // by whose times it is judged how long a brick takes
	tried                       []overlay.BrickRef
	count                       int
	absent, corrupt, unanswered int
	why                         []string
}

// failed notes why a brick gave no good bytes.
func (t *tries) failed(b overlay.BrickRef, err error) {
	s := t.store
	switch fault.KindOf(err) {
	case fault.NotFound:
		t.absent++
		return
	case fault.Corrupt:
		t.corrupt++
		s.foundCorrupt(t.addr, b, err)
		if !t.repairing {
			s.wantRepair(repair{addr: t.addr, brick: b})
		}
	default:
		t.unanswered++
	}
	t.why = append(t.why, fmt.Sprintf("brick %s of node %s: %v", b.Brick.Short(), b.Node.Short(), err))
}

func (t *tries) verdict(ctx context.Context) error {
	const op = "dht.read"
	why := errors.New(strings.Join(t.why, "; "))
	switch {
	case ctx.Err() != nil:
		return fault.New(fault.Timeout, op, t.addr.Short(), ctx.Err())
	case t.unanswered > 0 || t.count == 0:
		return fault.Newf(fault.Unavailable, op, t.addr.Short(), "%d bricks asked, none has good bytes, not all answered: %w", t.count, why)
	case t.corrupt > 0:
		return fault.Newf(fault.Corrupt, op, t.addr.Short(), "every copy is damaged: %w", why)
	}
	return fault.Newf(fault.NotFound, op, t.addr.Short(), "none of %d bricks has this extent", t.count)
}
