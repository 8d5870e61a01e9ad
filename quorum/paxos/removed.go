package paxos

import "github.com/gabion-storage/gabion/internal/mutant"

// Tomb is what a member that left a group keeps for ever: enough that it can do
// no harm when it is asked, or comes again. What it knew otherwise is forgotten.
type Tomb struct {
	// Promised stays promised: an opener may count on it.
	Promised Ballot
	// Config is the chosen configuration by which it left. It is told to whoever
	// asks here for the group, and its version is the Since of a copy that
	// comes again.
	Config Config
}

// Retire decides on the word of the holder of b that c is settled and that m, the
// member here, is not in it: if ok, the group is forgotten here as soon as the tomb is
// durable. A lower ballot than the promise is not listened to: its word may be late, and
// a later holder counts on the copy by now. An older configuration than the newest known here says nothing: m may
// have joined anew since. What was acknowledged in configurations up to c
// rests on a majority of c, which does not have m; in later ones m cannot have
// acknowledged anything, or it would know them.
func (a *Acceptor) Retire(m Member, b Ballot, c Config) (t Tomb, ok bool) {
	old := b.Less(a.promised) || c.Version <= a.since || c.Version < a.Config().Version
	if c.Find(m.Node, m.Brick) >= 0 || old && !mutant.On("retire-late") {
		return Tomb{}, false
	}
	if mutant.On("forget-tomb") {
		return Tomb{Config: c}, true
	}
	return Tomb{Promised: a.promised, Config: c}, true
}

// Revive is the stable state of a copy that joins anew, by ballot b and from a
// chosen checkpoint; Fenced if b is below what was promised before.
func (t Tomb) Revive(b Ballot, c Checkpoint, witness bool) (Hard, Status) {
	if b.Less(t.Promised) {
		return Hard{}, Fenced
	}
	h := Hard{Promised: b, Checkpoint: c, Since: t.Config.Version, Witness: witness}
	if mutant.On("removed-votes") {
		h.Since = 0
	}
	return h, OK
}
