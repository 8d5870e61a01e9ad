package blockdev

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/overlay"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

const (
	// attachMax is how long an attach goes on trying while nothing gets on. A takeover
	// from a dead holder needs the lease to run out first.
	attachMax = 12 * time.Second
	// openMax bounds all of it. A log of some hundred megabytes that must be fetched, and sent
	// to the others again, over a slow network takes longer than attachMax; who gave
	// up would begin again from nothing, for ever.
	openMax = 10 * time.Minute
	// attachRetry is the pause between tries.
	attachRetry = 100 * time.Millisecond
	// refreshMax bounds the wait for the newest catalog.
	refreshMax = 2 * time.Second
)

// attach makes the attachment a, or ends it with an error.
func (m *Manager) attach(ctx context.Context, d pool.Volume, a *attached, by claim) {
	ctx, progress, cancel := patience(ctx, attachMax, openMax)
	defer cancel()
	by.progress = progress
	began := time.Now()
	vol, err := m.tryAttach(ctx, d, by)
	m.mu.Lock()
	orphan := err == nil && (m.closed || m.resign || m.vols[d.ID] != a) // detached meanwhile
	if orphan {
		err = fault.Newf(fault.Unavailable, "volume attach", d.Name, "it was detached while it was being attached")
	}
	a.err = err
	switch {
	case err == nil:
		a.vol = vol
		if by.takeover {
			a.keep = time.Now().Add(takeoverKeep)
		}
	case m.vols[d.ID] == a:
		delete(m.vols, d.ID)
	}
	m.mu.Unlock()
	if orphan {
		vol.Close()
	} else if err == nil {
		// What Sync was told while there was no volume yet to tell it to.
		if now, there := m.cfg.Catalog().Volume(d.ID); there {
			m.keep(vol, now)
		}
	}
	close(a.ready)
	if err != nil {
		m.cfg.Log.Info("attach failed", "volume", d.Name, "error", err)
		return
	}
	m.cfg.Log.Info("volume attached", "volume", d.Name, "epoch", vol.epoch, "took", time.Since(began).Round(time.Millisecond))
	m.members(vol) // they may have changed under the holder before
	go m.watch(d, a)
}

// patience is a context that ends when progress was not called for a time of idle, and
// after most in any case.
func patience(ctx context.Context, idle, most time.Duration) (_ context.Context, progress, cancel func()) {
	ctx, stop := context.WithTimeout(ctx, most)
	t := time.AfterFunc(idle, stop)
	return ctx, func() { t.Reset(idle) }, func() { t.Stop(); stop() }
}

// watch forgets an attachment when it is over.
func (m *Manager) watch(d pool.Volume, a *attached) {
	<-a.vol.Gone()
	m.mu.Lock()
	if m.vols[d.ID] == a {
		delete(m.vols, d.ID)
	}
	m.mu.Unlock()
	a.vol.Close()
}

// tryAttach repeats until it has the volume, the holder refuses, or ctx ends.
func (m *Manager) tryAttach(ctx context.Context, d pool.Volume, by claim) (*Volume, error) {
	known := m.refresh(ctx, d)
	for {
		vol, err := m.attachOnce(ctx, d, by, known)
		if err == nil {
			return vol, nil
		}
		final := fault.Is(err, fault.NotFound) || fault.Is(err, fault.Corrupt) || isHolderRefusal(err)
		if final || ctx.Err() != nil {
			return nil, err
		}
		t := time.NewTimer(attachRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-t.C:
		}
		if m.cfg.Refresh != nil && !m.heard.Load() {
			known = m.refresh(ctx, d)
		}
		var there bool
		if d, there = m.cfg.Catalog().Volume(d.ID); !there {
			return nil, fault.Newf(fault.NotFound, "volume attach", d.Name, "it was deleted meanwhile")
		}
	}
}

// refresh has the catalog brought up to date while the volume is being opened: a
// node that was away may not know yet that the volume's configuration was replaced
// by force, and the members that it knows may all have been away with it: they
// would open what was given up. The channel is closed when the catalog is the
// newest, or could not be had in time. A pool without its quorum does not keep a
// volume with its own from being attached, unless by a node that has not heard the
// pool once since it was started: what it knows may be of any age.
func (m *Manager) refresh(ctx context.Context, d pool.Volume) <-chan struct{} {
	known := make(chan struct{})
	if m.cfg.Refresh == nil {
		close(known)
		return known
	}
	go func() {
		defer close(known)
		ctx, cancel := context.WithTimeout(ctx, refreshMax)
		defer cancel()
		err := m.cfg.Refresh(ctx)
		if err == nil {
			m.heard.Store(true)
		} else if m.heard.Load() {
			m.cfg.Log.Warn("attaching by a catalog that may be old", "volume", d.Name, "err", err)
		}
	}()
	return known
}

func (m *Manager) attachOnce(ctx context.Context, d pool.Volume, by claim, known <-chan struct{}) (*Volume, error) {
	seeds := m.seeds(d)
	group := ident.MapBlock(d.ID)
	ballot, _, err := quorum.Holder(ctx, m.cfg.Transport, seeds, group, m.everybody()...)
	if err != nil {
		return nil, err
	}
	atLeast := quorum.ForcedVersion(d.VotersVersion)
	var over quorum.Ballot
	if !ballot.IsZero() && ballot.Node != m.cfg.Self {
		released, err := m.askRelease(ctx, d, ballot.Node, by)
		if err != nil {
			return nil, err
		}
		if released {
			over = ballot
		}
	}
	v := newVolume(m.volumeConfig(d))
	p, rec, err := quorum.Open(ctx, quorum.ProposerConfig{
		Group: group, Transport: m.cfg.Transport, Local: m.cfg.Acceptors, Self: m.cfg.Self, Boot: m.cfg.Boot,
		Seeds: seeds, Fallback: m.everybody(), AtLeast: atLeast, Over: over, OnOpening: by.progress, OnProgress: v.pend.progress, OnFenced: v.fenced,
		OnMembers: func() { m.members(v) }, Log: m.cfg.Log,
	})
	if err != nil {
		v.cancel()
		return nil, m.askBlocker(ctx, d, ballot.Node, by, err)
	}
	<-known
	if err := m.outdated(d, atLeast); err != nil {
		v.fail(err)
		p.Close()
		return nil, err
	}
	var alive []ident.NodeID
	for _, n := range m.cfg.View.Nodes() {
		if n.State == overlay.Alive {
			alive = append(alive, n.ID)
		}
	}
	if _, err := m.cfg.Extents.Seal(ctx, d.ID, p.Ballot().Epoch, alive); err != nil {
		v.fail(err)
		p.Close()
		return nil, err
	}
	by.progress()
	if err := v.open(ctx, p, rec); err != nil {
		v.fail(err)
		p.Close()
		return nil, damaged(err)
	}
	_ = v.spawn(v.maintainLoop) // a volume fenced already needs none
	_ = v.spawn(v.membersLoop)
	v.maintain.request()
	return v, nil
}

// errDamaged is an attach that took the volume from everybody and then found that what
// its log names cannot be read.
type errDamaged struct{ error }

func (e errDamaged) Unwrap() error { return e.error }

// damaged marks err, of the opening of a volume, if trying again cannot help.
func damaged(err error) error {
	if fault.Is(err, fault.Corrupt) || fault.Is(err, fault.NotFound) {
		return errDamaged{err}
	}
	return err
}

// IsDamaged tells whether an attach failed because of what the volume's bricks hold, and
// not because of somebody who uses it or does not answer: nobody has it attached then.
func IsDamaged(err error) bool {
	var d errDamaged
	return errors.As(err, &d)
}

// outdated tells whether what the newest catalog says of a volume forbids to serve
// what was opened with the one that there was before.
func (m *Manager) outdated(d pool.Volume, atLeast uint64) error {
	now, there := m.cfg.Catalog().Volume(d.ID)
	switch {
	case m.cfg.Refresh != nil && !m.heard.Load() && !mutant.On("open-given-up"):
		return fault.Newf(fault.Unavailable, "volume attach", d.Name, "this node was started and has not heard the pool since, which may have decided on the volume: see gabion status; if the pool's quorum is gone for good: gabion pool recover")
	case !there:
		return fault.Newf(fault.NotFound, "volume attach", d.Name, "it was deleted meanwhile")
	case quorum.ForcedVersion(now.VotersVersion) > atLeast && !mutant.On("open-given-up"):
		return fault.Newf(fault.Unavailable, "volume attach", d.Name, "those who answered were given up by a forced recovery; the others must answer")
	}
	return nil
}

// keep goes on with an attachment by what the catalog says now. One whose voters were
// given up by a forced recovery ends: they may come back, and would be a majority that
// says yes to all that it does.
func (m *Manager) keep(v *Volume, d pool.Volume) {
	if quorum.ForcedVersion(d.VotersVersion) > v.log.Members().Version && !mutant.On("hold-given-up") {
		v.fail(fault.Newf(fault.Fenced, "volume", d.Name, "it was recovered by force, without those who voted for this attachment"))
		return
	}
	if v.Grow(d.Size) {
		m.recall(v)
	}
}

func (m *Manager) volumeConfig(d pool.Volume) Config {
	c := Config{
		ID: d.ID, Name: d.Name, Size: d.Size, BlockSize: d.BlockSize, Replicas: d.Replicas,
		Extents: m.cfg.Extents, View: m.cfg.View, Log: m.cfg.Log, WriteCache: WriteCache(d.WriteCache), Pace: m.pace,
		Publish: func(ctx context.Context, list []SnapshotInfo, revision uint64) error {
			return m.publish(ctx, d.ID, list, revision)
		},
	}
	if m.cfg.Tune != nil {
		m.cfg.Tune(&c)
	}
	return c
}

// seeds is where to ask for a volume's map block: the members that the catalog
// and this node's own acceptor know of.
func (m *Manager) seeds(d pool.Volume) []ident.NodeID {
	var out []ident.NodeID
	add := func(n ident.NodeID) {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if g, ok := m.cfg.Acceptors.Group(ident.MapBlock(d.ID)); ok {
		for _, x := range g.Config.Members {
			add(x.Node)
		}
	}
	for _, n := range d.Seeds {
		add(n)
	}
	if len(d.Seeds) == 0 {
		for _, x := range d.Voters {
			add(x.Node)
		}
	}
	return out
}
