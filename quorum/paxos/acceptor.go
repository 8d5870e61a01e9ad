package paxos

import (
	"fmt"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// Hard is the part of an acceptor that lives in its stable store. The shell
// writes it whenever an effect says so and before anything is answered.
type Hard struct {
	Promised   Ballot
	Cuts       []Cut // may be ahead of the journal; see Replayer
	Checkpoint Checkpoint
	// Since is the version of the configuration by which this brick left the group
	// before it came again, or 0. What it knew then is gone except for its
	// promise, so it counts in configurations of higher versions only.
	Since   uint64
	Witness bool // this copy keeps no bodies of data entries; never changes
}

// Effects are what the shell must do, in this order, before it answers.
type Effects struct {
	Persist bool // write Hard to the stable store
	Sync    bool // make the whole journal durable
}

// Acceptor is one member's copy of one group. It is not safe for concurrent
// use. Every entry is in the journal before the acceptor counts it as received; it counts as
// durable when the shell says so through Synced.
//
// Invariants:
//  1. opened <= promised.
//  2. Nothing at a ballot below promised is ever taken.
//  3. No entry is dead by a cut (no ghosts).
//  4. log.base < slot <= Received() holds exactly what ballot opened proposed there.
//  5. Durable() <= Received().
type Acceptor struct {
	promised Ballot
	opened   Ballot // lastCut(cuts).Ballot
	cuts     []Cut
	openPos  int64 // of the RecordOpen that the stable store does not have yet, or -1
	ckpt     Checkpoint
	log      slotLog
	durable  uint64
	commit   uint64
	since    uint64
	witness  bool
	rec      Record // reused
}

// NewAcceptor makes the acceptor of a group whose journal holds nothing.
func NewAcceptor(h Hard) *Acceptor {
	a := &Acceptor{promised: h.Promised, opened: lastCut(h.Cuts).Ballot, cuts: h.Cuts, openPos: -1,
		ckpt: h.Checkpoint, since: h.Since, witness: h.Witness}
	a.log.base, a.durable, a.commit = h.Checkpoint.UpTo, h.Checkpoint.UpTo, h.Checkpoint.UpTo
	return a
}

// Hard is what the stable store must hold now.
func (a *Acceptor) Hard() Hard {
	promised := a.promised
	if mutant.On("forget-promise") {
		promised = Ballot{}
	}
	return Hard{Promised: promised, Cuts: a.cuts, Checkpoint: a.ckpt, Since: a.since, Witness: a.witness}
}

func (a *Acceptor) Promised() Ballot       { return a.promised }
func (a *Acceptor) Checkpoint() Checkpoint { return a.ckpt }
func (a *Acceptor) Opened() Ballot         { return a.opened }
func (a *Acceptor) Commit() uint64         { return a.commit }
func (a *Acceptor) Last() uint64           { return a.log.last() }
func (a *Acceptor) LogBytes() int64        { return a.log.bytes }
func (a *Acceptor) Witness() bool          { return a.witness }

// Recovered is the last slot that the opened ballot learnt in its phase 1.
func (a *Acceptor) Recovered() uint64 { return lastCut(a.cuts).Slot }

// Received is the last slot of the contiguous run at the opened ballot.
func (a *Acceptor) Received() uint64 {
	if len(a.log.runs) > 0 && a.log.runs[0].Ballot == a.opened {
		return a.log.runs[0].To
	}
	return a.log.base
}

// Durable is the last slot of that run known to be durable.
func (a *Acceptor) Durable() uint64 { return a.durable }

// Config is the newest configuration in checkpoint or log, chosen or not.
func (a *Acceptor) Config() Config { return a.configAt(a.log.last()) }

// Settled is the newest configuration that is known here to be settled: a later
// slot is chosen too, so that any majority of its voters knows that it is
// chosen (see Promise.decides). The members of older ones are not needed any more.
func (a *Acceptor) Settled() Config { return a.configAt(max(a.commit, 1) - 1) }

// Prepare promises ballot b. When it returns OK the shell carries out the effects and then answers with
// Promise, provided the promise still stands. holderMayLive tells whether the promised ballot's node
// may be alive.
func (a *Acceptor) Prepare(b Ballot, force, holderMayLive bool) (Status, Effects) {
	switch {
	case b.Less(a.promised):
		return Fenced, Effects{}
	case a.promised.Less(b):
		if !force && holderMayLive && !a.promised.IsZero() && a.promised.Node != b.Node {
			return Busy, Effects{}
		}
		a.promised = b
	}
	return OK, Effects{Persist: true, Sync: !mutant.On("skip-sync")}
}

// Promise is the phase 1 answer. The caller has made all of it durable.
func (a *Acceptor) Promise() Promise {
	p := Promise{Checkpoint: a.ckpt, Cuts: a.cuts, Commit: a.commit,
		Runs: append([]Run(nil), a.log.runs...), Since: a.since, Witness: a.witness}
	for _, s := range a.log.special {
		if s.kind == EntryConfig {
			p.Configs = append(p.Configs, ConfigAt{s.slot, s.config})
		}
	}
	if a.witness {
		p.Full = a.full()
	}
	return p
}

// full lists the slots that are not data.
func (a *Acceptor) full() (runs []Run) {
	for s := a.log.base + 1; s <= a.log.last(); s++ {
		if a.log.at(s).kind == EntryData {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].To+1 == s {
			runs[n-1].To = s
		} else if n < RunsMax {
			runs = append(runs, Run{From: s, To: s})
		}
	}
	return runs
}

// State answers a probe by ballot b, which takes this copy for one with data or,
// if bare, for a witness.
func (a *Acceptor) State(b Ballot, bare bool) (Status, State) {
	if !a.Admits(b) {
		return Fenced, State{}
	}
	if bare != a.witness {
		return Removed, State{}
	}
	if a.opened == b {
		s := State{Opened: true, Received: a.Received(), Durable: a.durable}
		for _, r := range a.log.runs {
			if r.Ballot != b {
				s.Runs = append(s.Runs, r)
			}
		}
		return OK, s
	}
	return OK, State{Received: a.log.base, Durable: a.log.base, Runs: append([]Run(nil), a.log.runs...)}
}

// Admits tells whether ballot b is not below the promise.
func (a *Acceptor) Admits(b Ballot) bool {
	return mutant.On("ignore-ballot") || !b.Less(a.promised)
}

// Open meets a ballot that has finished its phase 1, before any of its entries.
// What its cuts kill goes, so that no later phase 1 can find it either.
func (a *Acceptor) Open(b Ballot, cuts []Cut, j Journal) (Status, error) {
	switch {
	case !a.Admits(b):
		return Fenced, nil
	case a.opened == b:
		return OK, nil
	case lastCut(cuts).Ballot != b || b.Less(a.opened):
		return Gap, nil
	}
	cuts = addCuts(a.cuts, cuts)
	if len(cuts) > RunsMax {
		return Full, nil
	}
	a.rec = Record{Kind: RecordOpen, Ballot: b, Commit: a.commit, Cuts: cuts}
	pos, _, err := j.Append(&a.rec)
	if err != nil {
		return Full, err
	}
	if a.promised.Less(b) {
		a.promised = b
	}
	a.opened, a.cuts, a.openPos = b, cuts, pos
	if !mutant.On("carry-stale") {
		for _, c := range cuts {
			a.log.kill(c)
		}
	}
	a.durable = a.log.base
	return OK, nil
}

// Accept takes one entry; the shell has checked it with CheckBody. The error is the
// journal's; then nothing but the commit may have changed.
func (a *Acceptor) Accept(m *Accept, j Journal) (Status, error) {
	if !a.Admits(m.Ballot) {
		return Fenced, nil
	}
	if m.Bare != a.witness {
		return Removed, nil
	}
	if a.opened != m.Ballot {
		return Gap, nil
	}
	received := a.Received()
	if m.Slot <= received {
		return OK, a.Learn(m.Ballot, m.Commit, j)
	}
	if m.Slot > received+1 {
		return Gap, nil
	}
	if len(a.log.runs) >= RunsMax && a.log.runs[0].Ballot != m.Ballot {
		return Full, nil
	}
	var sp *special
	if isSpecial(m.Kind) {
		s, err := newSpecial(m.Slot, m.Kind, m.Body)
		if err != nil {
			return Gap, err
		}
		sp = &s
	}
	commit := max(a.commit, min(m.Commit, m.Slot))
	a.rec = Record{Kind: RecordAccept, Ballot: m.Ballot, Commit: commit,
		Slot: m.Slot, EntryKind: m.Kind, Body: m.Body}
	pos, size, err := j.Append(&a.rec)
	a.rec.Body = nil
	if err != nil {
		// A checkpoint that is known to be chosen is what makes room.
		a.commit = max(a.commit, min(m.Commit, received))
		return Full, err
	}
	a.log.put(m.Slot, m.Ballot, slotMeta{pos, int32(size), int32(len(m.Body)), m.Kind}, sp)
	a.commit = commit
	return OK, nil
}

// Renew takes again, at a higher ballot, what is already here. It takes as much
// as it can and answers Gap where that ends early.
func (a *Acceptor) Renew(m *Renew, j Journal) (Status, error) {
	if !a.Admits(m.Ballot) {
		return Fenced, nil
	}
	if a.opened != m.Ballot {
		return Gap, nil
	}
	to := a.Received()
	var taken []Run
	status := OK
	for _, r := range m.Runs {
		end := r.To
		if end <= to {
			continue
		}
		have := a.log.runAt(to + 1)
		if r.From > to+1 || have.Ballot != r.Ballot || have.Ballot.IsZero() {
			status = Gap
			break
		}
		taken = append(taken, Run{From: to + 1, To: min(end, have.To), Ballot: r.Ballot})
		to = min(end, have.To)
		if to < end {
			status = Gap
			break
		}
	}
	if len(taken) == 0 {
		return status, nil
	}
	commit := max(a.commit, min(m.Commit, to))
	a.rec = Record{Kind: RecordRenew, Ballot: m.Ballot, Commit: commit, Runs: taken}
	if _, _, err := j.Append(&a.rec); err != nil {
		return Full, err
	}
	a.log.raise(to, m.Ballot)
	a.commit = commit
	return status, nil
}

// Learn hears from ballot b that slots up to commit are chosen. It is written
// down only when it decides a configuration: the next phase 1 then need not ask
// the members of the one before.
func (a *Acceptor) Learn(b Ballot, commit uint64, j Journal) error {
	if a.opened != b {
		return nil
	}
	commit = min(commit, a.Received())
	if commit <= a.commit {
		return nil
	}
	before := a.commit
	a.commit = commit
	for _, s := range a.log.special {
		if s.kind == EntryConfig && s.slot > before && s.slot <= commit {
			a.rec = Record{Kind: RecordCommit, Ballot: a.opened, Commit: commit}
			_, _, err := j.Append(&a.rec)
			return err
		}
	}
	return nil
}

// Synced tells that everything journaled when Received() was received, at
// ballot b, has become durable. It reports whether Durable rose.
func (a *Acceptor) Synced(b Ballot, received uint64) bool {
	received = min(received, a.Received())
	if a.opened != b || received <= a.durable {
		return false
	}
	a.durable = received
	return true
}

// Due returns the checkpoint that a chosen entry allows to take, if it is newer
// than the present one. The shell persists Hard with it and then calls Persisted.
func (a *Acceptor) Due() (Checkpoint, bool) {
	for i := len(a.log.special) - 1; i >= 0; i-- {
		s := a.log.special[i]
		if s.kind == EntryCheckpoint && s.slot <= a.commit && s.upTo > a.ckpt.UpTo {
			return Checkpoint{UpTo: s.upTo, Value: s.value, Config: a.configAt(s.upTo)}, true
		}
	}
	return Checkpoint{}, false
}

// configAt is the newest configuration up to a slot. Versions ascend along a log,
// but for what a forced configuration in the checkpoint has made void.
func (a *Acceptor) configAt(slot uint64) Config {
	c := a.ckpt.Config
	for _, s := range a.log.special {
		if s.kind == EntryConfig && s.slot <= slot && s.config.Version > c.Version {
			c = s.config
		}
	}
	return c
}

// Persisted tells that the stable store holds h: an earlier Hard, perhaps with a
// newer chosen checkpoint, its own (Due) or one installed. The log up to
// the checkpoint goes.
func (a *Acceptor) Persisted(h Hard) {
	if lastCut(h.Cuts).Ballot == a.opened {
		a.openPos = -1
	}
	c := h.Checkpoint
	if c.UpTo <= a.ckpt.UpTo {
		return
	}
	a.ckpt = c
	a.log.advance(c.UpTo)
	a.durable = max(a.durable, c.UpTo)
	a.commit = max(a.commit, c.UpTo)
}

// Where is an entry's place: the journal record and what it was accepted as.
type Where struct {
	Slot   uint64
	Ballot Ballot
	Kind   EntryKind
	Pos    int64
	Size   int // of the record
	Body   int // bytes of the body
}

// Locate returns where slot is; false if it is not in the log.
func (a *Acceptor) Locate(slot uint64) (Where, bool) {
	if slot <= a.log.base || slot > a.log.last() {
		return Where{}, false
	}
	m := a.log.at(slot)
	return Where{slot, a.log.runAt(slot).Ballot, m.kind, m.pos, int(m.size), int(m.n)}, true
}

// OpenPos is the place of a record that only Hard can replace: before the journal
// is trimmed beyond it, Hard must be persisted.
func (a *Acceptor) OpenPos() (pos int64, ok bool) { return a.openPos, a.openPos >= 0 }

// OldestPos is the lowest journal position of an entry.
func (a *Acceptor) OldestPos() (pos int64, ok bool) {
	for i, m := range a.log.entries[a.log.head:] {
		if i == 0 || m.pos < pos {
			pos, ok = m.pos, true
		}
	}
	return pos, ok
}

// Below lists up to n entries whose records lie before pos.
func (a *Acceptor) Below(pos int64, n int) []Where {
	var ws []Where
	for s := a.log.base + 1; s <= a.log.last() && len(ws) < n; s++ {
		if a.log.at(s).pos < pos {
			w, _ := a.Locate(s)
			ws = append(ws, w)
		}
	}
	return ws
}

// Move copies one entry to the end of the journal, as it is now, if it still is where w says.
func (a *Acceptor) Move(w Where, body []byte, j Journal) error {
	if now, ok := a.Locate(w.Slot); !ok || now != w {
		return nil
	}
	a.rec = Record{Kind: RecordMove, Ballot: a.opened, Commit: a.commit,
		Slot: w.Slot, EntryKind: w.Kind, EntryBallot: w.Ballot, Body: body}
	pos, size, err := j.Append(&a.rec)
	a.rec.Body = nil
	if err != nil {
		return err
	}
	m := a.log.at(w.Slot)
	a.log.bytes += int64(size) - int64(m.size)
	m.pos, m.size = pos, int32(size)
	return nil
}

// Check panics if an invariant does not hold.
func (a *Acceptor) Check() {
	must := func(ok bool, what string) {
		if !ok && mutant.None() {
			panic(fmt.Sprintf("paxos: acceptor: %s: %+v", what, *a))
		}
	}
	must(!a.promised.Less(a.opened), "opened above promised")
	must(a.durable <= a.Received() && a.durable >= a.log.base, "durable out of range")
	must(lastCut(a.cuts).Ballot == a.opened, "cuts do not end at the opened ballot")
	next := a.log.base + 1
	for i, r := range a.log.runs {
		must(r.From == next && r.To >= r.From, "runs not contiguous")
		must(i == 0 || r.Ballot.Less(a.log.runs[i-1].Ballot), "runs not descending")
		for _, c := range a.cuts {
			must(!c.kills(r.To, r.Ballot), "ghost")
		}
		next = r.To + 1
	}
	must(next == a.log.last()+1, "runs do not cover the log")
}
