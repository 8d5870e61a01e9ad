package blockdev

import (
	"context"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/quorum"
)

var threeNodes = []ident.NodeID{{1}, {2}, {3}}

// threeLog is a log of three voters, some of which have met the ballot.
type threeLog struct {
	*memLog
	mu  sync.Mutex
	met map[ident.NodeID]bool
}

func (l *threeLog) Members() quorum.Config {
	c := quorum.Config{Version: 1}
	for _, n := range threeNodes {
		c.Members = append(c.Members, quorum.Member{Node: n, Role: quorum.Voter})
	}
	return c
}

func (l *threeLog) Status() (out []quorum.MemberStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.Members().Members {
		s := quorum.MemberStatus{Member: m}
		if l.met[m.Node] {
			s.Received, s.Durable = l.Next()-1, l.Next()-1
		}
		out = append(out, s)
	}
	return out
}

// leaseView is an overlay in which the test says who is in touch.
type leaseView struct {
	loneView
	mu    sync.Mutex
	fresh map[ident.NodeID]bool
	gaps  map[ident.NodeID]uint64
}

func (v *leaseView) LeaseMark(nodes []ident.NodeID) (mark uint64, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, id := range nodes {
		mark += v.gaps[id]
		if v.fresh[id] || id == v.Self() {
			n++
		}
	}
	return mark, 2*n > len(nodes)
}

var _ overlay.View = (*leaseView)(nil)

// TestReadsNeedALease takes away what the right to answer reads rests on, one
// thing after the other.
func TestReadsNeedALease(t *testing.T) {
	view := &leaseView{fresh: map[ident.NodeID]bool{}, gaps: map[ident.NodeID]uint64{}}
	r := newRig(t, 1<<20, func(c *Config) { c.View = view })
	r.crashOnly()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(true)
	l := &threeLog{memLog: r.log, met: map[ident.NodeID]bool{{1}: true, {2}: true}}
	r.attachTo(l, rec)
	mustWrite(t, r.v, make([]byte, 4096), 0)

	p := make([]byte, 4096)
	try := func() bool { return r.v.TryReadAt(p, 0) }
	read := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // waits for nothing that is not there
		return r.v.ReadAt(ctx, p, 0)
	}
	renewed := func() bool { return r.v.renew(t.Context()) == nil && try() }
	set := func(m map[ident.NodeID]bool, id ident.NodeID, on bool) {
		l.mu.Lock()
		view.mu.Lock()
		m[id] = on
		view.mu.Unlock()
		l.mu.Unlock()
	}
	if try() || !fault.Is(read(), fault.Timeout) {
		t.Fatal("read without a lease")
	}
	if renewed() {
		t.Fatal("a lease that nobody gives")
	}
	set(view.fresh, threeNodes[1], true)
	if !renewed() || read() != nil {
		t.Fatal("no lease from a majority that met the ballot")
	}
	set(view.fresh, threeNodes[1], false)
	if try() || !fault.Is(read(), fault.Timeout) {
		t.Fatal("the lease outlives the contact")
	}
	set(view.fresh, threeNodes[2], true) // in touch, but it has not met the ballot
	if try() || renewed() {
		t.Fatal("a voter that would let another holder in gives a lease")
	}
	set(l.met, threeNodes[2], true)
	if !renewed() {
		t.Fatal("no lease once it has met the ballot")
	}
	view.mu.Lock()
	view.gaps[threeNodes[2]]++
	view.mu.Unlock()
	if try() {
		t.Fatal("the lease outlives a gap in the contact")
	}
	if !renewed() {
		t.Fatal("no new lease after the gap")
	}
}
