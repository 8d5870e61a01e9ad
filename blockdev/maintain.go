package blockdev

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// Maintenance keeps an attached volume's redundancy complete: it grows the
// map block's quorum towards the wanted number of voters and reconciles bricks
// with the extent table by difference of sets. It runs when something happened
// (attached, a node came or went, the lane table changed, a holder missed a
// put) and not otherwise.

const (
	maintainRetryMin = 500 * time.Millisecond
	maintainRetryMax = 30 * time.Second
	// joinPause is how long a node that could not join is passed over.
	joinPause = 2 * time.Minute
)

type maintenance struct {
	mu    sync.Mutex
	clean map[overlay.BrickRef]uint64 // lane table version at which the brick was last complete
	lapse map[overlay.BrickRef]uint64 // counts what the brick missed
	avoid map[ident.NodeID]time.Time  // nodes that could not join, until when
	// Extents numbered below barrier may have been put by an older lane table
	// than version.
	version, barrier uint64
	seen             map[overlay.BrickRef]uint64 // lapse when that version was met
	base             *placing                    // nil: not known since the volume was attached
	cleared          map[overlay.BrickRef]uint64 // lane table version for which a brick's surplus copies were removed
	wake             chan struct{}
	idle             bool
	progress         repairProgress
	wakeMembers      chan struct{} // see members.go
	settled          bool          // nothing to do about the members
	stuck            string        // what was said last of members that cannot move
}

func (m *maintenance) init() {
	m.clean, m.lapse, m.cleared = map[overlay.BrickRef]uint64{}, map[overlay.BrickRef]uint64{}, map[overlay.BrickRef]uint64{}
	m.avoid = map[ident.NodeID]time.Time{}
	m.wake, m.wakeMembers = make(chan struct{}, 1), make(chan struct{}, 1)
}

// request asks for a run.
func (m *maintenance) request() {
	m.mu.Lock()
	m.idle, m.settled = false, false
	m.mu.Unlock()
	for _, wake := range []chan struct{}{m.wake, m.wakeMembers} {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// missed notes bricks that did not take what they should hold.
func (m *maintenance) missed(bs []overlay.BrickRef) {
	if len(bs) == 0 {
		return
	}
	m.mu.Lock()
	for _, b := range bs {
		delete(m.clean, b)
		m.lapse[b]++
	}
	m.mu.Unlock()
	m.request()
}

// tight reports whether the journal of a member is getting full.
func (v *Volume) tight() bool {
	for _, m := range v.log.Status() {
		if m.Tight {
			return true
		}
	}
	return false
}

// until runs once when it is woken, and again after growing pauses while it is not
// done; until the volume is gone.
func (v *Volume) until(wake <-chan struct{}, once func() (done bool)) {
	retry := maintainRetryMin
	var again <-chan time.Time
	for {
		select {
		case <-v.gone:
			return
		case <-wake:
			retry = maintainRetryMin
		case <-again:
		}
		again = nil
		if !once() {
			again = time.After(retry)
			retry = min(2*retry, maintainRetryMax)
		}
	}
}

func (v *Volume) maintainLoop() {
	v.until(v.maintain.wake, func() bool {
		complete, err := v.maintainOnce(v.ctx)
		if err != nil && v.ctx.Err() == nil {
			v.cfg.Log.Info("maintenance will be tried again", "volume", v.cfg.Name, "error", err)
		}
		v.maintain.mu.Lock()
		v.maintain.idle = complete
		v.maintain.mu.Unlock()
		return complete
	})
}

// maintainOnce does what can be done now. complete is false when more would be
// possible later without any further event, such as after an error.
func (v *Volume) maintainOnce(ctx context.Context) (complete bool, err error) {
	if v.tight() {
		v.startCheckpoint() // lets the members' logs go
	}
	gerr := v.publishSnapshots(ctx)
	complete, err = v.reconcile(ctx)
	return complete && gerr == nil, errors.Join(gerr, err)
}

// WaitMaintained waits until maintenance has nothing left to do.
func (v *Volume) WaitMaintained(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		v.maintain.mu.Lock()
		idle := v.maintain.idle && v.maintain.settled
		v.maintain.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Timeout, "volume.maintain", v.cfg.Name, ctx.Err())
		case <-v.gone:
			return v.Err()
		case <-t.C:
		}
	}
}
