package quorum

import (
	"context"
	"errors"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// mayLive tells whether the holder of a promise may be at work.
func (a *Acceptors) mayLive(group ident.GroupID, b Ballot) bool {
	switch {
	case b.IsZero():
		return false
	case b.Node == a.cfg.Transport.Self():
		return a.proposer(group, b) != nil
	}
	return a.cfg.HolderMayLive != nil && a.cfg.HolderMayLive(b.Node)
}

// holding tells whether a proposer of this node holds the group, or is about to:
// an opening under way may already have its promises.
func (a *Acceptors) holding(group ident.GroupID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.openings[group] > 0 {
		return true
	}
	for k := range a.proposers {
		if k.group == group {
			return true
		}
	}
	return false
}

// opening counts the openings of a group that are under way on this node.
func (a *Acceptors) opening(group ident.GroupID, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.openings[group] += n; a.openings[group] == 0 {
		delete(a.openings, group)
	}
}

func invalid(op string, err error) error { return fault.New(fault.Invalid, op, "", err) }

func (a *Acceptors) onQuery(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
	if len(body) != 32 {
		return nil, invalid("quorum.query", errShort)
	}
	q := a.query(ident.GroupID(body[:16]), from)
	q.feeds = a.feeds(q.holding, ident.GroupID(body[:16]), Member{Node: from, Brick: ident.BrickID(body[16:])})
	return appendQueryReply(nil, &q), nil
}

// query tells what this node knows of a group; with several copies, of the one
// with the highest promise. A copy on a brick that fails counts as absent: it can
// promise nothing, and what it has promised says nothing of who is at work now.
func (a *Acceptors) query(id ident.GroupID, from ident.NodeID) queryReply {
	var q queryReply
	broken := false
	for _, g := range a.all() {
		if g.id != id {
			continue
		}
		g.mu.Lock()
		if g.broken != nil {
			broken = true
			g.mu.Unlock()
			continue
		}
		if c := g.core; !q.found || q.promised.Less(c.Promised()) {
			q = queryReply{found: true, brick: g.brick.id, promised: c.Promised(),
				upTo: c.Checkpoint().UpTo, last: c.Last(), config: c.Config(),
				settled: c.Config().Version == c.Settled().Version}
		}
		g.mu.Unlock()
	}
	q.holding, q.broken = a.holding(id), broken && !q.found
	if !q.found {
		a.mu.RLock()
		bricks := make([]ident.BrickID, 0, len(a.bricks))
		for b := range a.bricks {
			bricks = append(bricks, b)
		}
		a.mu.RUnlock()
		for _, b := range bricks {
			q.dropped = q.dropped || a.absent(id, b) == paxos.Dropped
			if t := a.tomb(id, b); t != nil && t.Config.Version > q.config.Version {
				q.removed, q.settled, q.config = true, true, t.Config
			}
		}
	}
	q.objects = q.promised.Node != from && a.mayLive(id, q.promised)
	return q
}

func (a *Acceptors) onPrepare(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
	m, err := decodePrepare(body)
	if err != nil || m.ballot.Node != from {
		return nil, invalid("quorum.prepare", errors.Join(err, errors.New("a ballot belongs to its sender")))
	}
	r, err := a.prepare(&m)
	if err != nil {
		return nil, err
	}
	return appendPrepareReply(nil, &r), nil
}

// prepare promises: in memory, so that nothing lower is taken from now on; then
// durably, together with everything received; and then tells.
func (a *Acceptors) prepare(m *prepareCall) (prepareReply, error) {
	g := a.group(m.group, m.brick)
	if g == nil {
		r := prepareReply{status: a.absent(m.group, m.brick)}
		if t := a.tomb(m.group, m.brick); t != nil && r.status == paxos.Removed {
			r.promised, r.left = t.Promised, t.Config
		}
		return r, nil
	}
	g.mu.Lock()
	broken := g.broken
	g.mu.Unlock()
	if broken != nil {
		return prepareReply{}, fault.Newf(fault.Unavailable, "quorum.prepare", m.brick.Short(),
			"the brick fails and can promise nothing: %w", broken)
	}
	status, effects := a.promise(g, m)
	g.mu.Lock()
	r := prepareReply{status: status, promised: g.core.Promised()}
	dropped := g.dropped
	g.mu.Unlock()
	if dropped {
		return prepareReply{status: paxos.Dropped}, nil // asked again, it says what of
	}
	if status != paxos.OK {
		return r, nil
	}
	if effects.Persist {
		if err := g.persist(nil); err != nil {
			return r, err
		}
	}
	if effects.Sync {
		if err := syncNow(g.brick.j); err != nil {
			return r, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dropped {
		return prepareReply{status: paxos.Dropped}, nil
	}
	if r.promised = g.core.Promised(); r.promised != m.ballot {
		r.status = paxos.Fenced
		return r, nil
	}
	r.promise = g.core.Promise()
	return r, nil
}

// promise steps the core. The holder's liveness is asked without the lock, about
// the promise that then still stands.
func (a *Acceptors) promise(g *group, m *prepareCall) (paxos.Status, paxos.Effects) {
	for {
		g.mu.Lock()
		promised := g.core.Promised()
		g.mu.Unlock()
		live := a.mayLive(m.group, promised)
		g.mu.Lock()
		if g.core.Promised() == promised {
			defer g.mu.Unlock()
			consented := m.over == promised
			return g.core.Prepare(m.ballot, m.force || consented, live)
		}
		g.mu.Unlock()
	}
}

func (a *Acceptors) onFetch(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	m, err := decodeFetch(body)
	if err != nil {
		return nil, invalid("quorum.fetch", err)
	}
	status, fs, err := a.fetch(&m)
	if err != nil {
		return nil, err
	}
	out := []byte{byte(status)}
	for i := range fs {
		out = appendFetched(out, &fs[i])
	}
	return out, nil
}

// fetchTries bounds how often entries may move from under a fetch.
const fetchTries = 8

// fetch reads as many entries as fit into FetchBytesMax, at least one. Gap: the
// first is not here.
func (a *Acceptors) fetch(m *fetchCall) (paxos.Status, []fetched, error) {
	g := a.group(m.group, m.brick)
	if g == nil {
		return a.absent(m.group, m.brick), nil, nil
	}
	if err := g.brick.j.Write(); err != nil {
		return paxos.Broken, nil, nil
	}
	var fs []fetched
	total := 0
	for slot := m.from; slot <= m.to; slot++ {
		f, ok, err := g.read(slot)
		if err != nil {
			return paxos.Broken, nil, err
		}
		if !ok {
			break
		}
		total += len(f.entry.Body)
		if len(fs) > 0 && total > FetchBytesMax || len(fs) >= fetchEntriesMax {
			break
		}
		fs = append(fs, f)
	}
	if len(fs) == 0 {
		return paxos.Gap, nil, nil
	}
	return paxos.OK, fs, nil
}

// fetchEntriesMax bounds one answer's entries, whose bodies may be empty.
const fetchEntriesMax = 8192

// read gets one entry from the journal. It may be moved meanwhile, so a failure
// counts only if the entry is still where it was looked for.
func (g *group) read(slot uint64) (fetched, bool, error) {
	var failed error
	for range fetchTries {
		g.mu.Lock()
		w, ok := g.core.Locate(slot)
		g.mu.Unlock()
		if !ok {
			return fetched{}, false, nil
		}
		rec, err := g.brick.j.ReadAt(w.Pos, w.Size)
		if err == nil {
			id, r, err := decodeRecord(rec)
			if err != nil || id != g.id || r.Slot != slot || len(r.Body) != w.Body {
				return fetched{}, false, fault.Newf(fault.Corrupt, "quorum.fetch", g.id.String(),
					"the journal record of slot %d is not the one written: %v", slot, err)
			}
			return fetched{Entry{Slot: slot, Kind: r.EntryKind, Body: r.Body}, w.Ballot}, true, nil
		}
		if failed = err; !g.movedFrom(w) {
			break
		}
	}
	return fetched{}, false, failed
}

func (g *group) movedFrom(w paxos.Where) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, ok := g.core.Locate(w.Slot)
	return !ok || now.Pos != w.Pos
}

func (a *Acceptors) onInstall(_ context.Context, from ident.NodeID, body []byte) ([]byte, error) {
	m, err := decodeInstall(body)
	if err != nil || m.ballot.Node != from {
		return nil, invalid("quorum.install", errors.Join(err, errors.New("a ballot belongs to its sender")))
	}
	status, promised, err := a.install(&m)
	if err != nil {
		return nil, err
	}
	return appendInstallReply(nil, status, promised), nil
}

// install takes a chosen checkpoint, and makes the group if need be.
func (a *Acceptors) install(m *installCall) (paxos.Status, Ballot, error) {
	g := a.group(m.group, m.brick)
	if g == nil {
		s := a.absent(m.group, m.brick)
		a.mu.RLock()
		b := a.bricks[m.brick]
		a.mu.RUnlock()
		if s == paxos.Removed {
			return a.revive(b, m)
		}
		if s != paxos.NoGroup {
			return s, Ballot{}, nil
		}
		hard := paxos.Hard{Promised: m.ballot, Checkpoint: m.checkpoint, Witness: m.witness}
		if _, err := a.birth(b, m.group, hard, [32]byte{}); err != nil {
			return paxos.Broken, Ballot{}, err
		}
		return paxos.OK, m.ballot, nil
	}
	g.mu.Lock()
	promised, witness := g.core.Promised(), g.core.Witness()
	g.fed = true
	g.mu.Unlock()
	if m.ballot.Less(promised) {
		return paxos.Fenced, promised, nil
	}
	if witness != m.witness {
		return paxos.Removed, promised, nil
	}
	if err := g.persist(&m.checkpoint); err != nil {
		return paxos.Broken, Ballot{}, err
	}
	a.appended(g.brick, 0)
	return paxos.OK, promised, nil
}

func (a *Acceptors) onCreate(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	group, cfg, value, err := decodeCreate(body)
	if err != nil {
		return nil, invalid("quorum.create", err)
	}
	return nil, a.Create(group, cfg, value)
}

// CreateOn is Create at another node, or at this one.
func CreateOn(ctx context.Context, t link.Transport, node ident.NodeID, group ident.GroupID, cfg Config, value []byte) error {
	_, err := t.Call(ctx, node, typeCreate, appendCreate(nil, group, cfg, value))
	return err
}
