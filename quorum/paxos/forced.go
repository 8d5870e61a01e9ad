package paxos

import (
	"slices"

	"github.com/gabion-storage/gabion/internal/mutant"
)

// ForcedVersions is how far a forced recovery goes beyond all that was met, in
// versions and in epochs: so far that nothing of those who were given up comes near.
// Both go to the same multiple of it, so that an epoch tells which version is behind it.
const ForcedVersions = 1 << 32

// ForcedVersion is the least version that the forced configuration can have which
// one of the given version goes back to, 0 if none was ever forced. The same of an epoch.
func ForcedVersion(version uint64) uint64 { return version / ForcedVersions * ForcedVersions }

// Force puts c in force at this member by the word of a person, who holds that the
// quorum is gone for good: its majorities alone count from now on, here and
// wherever it is met, since no other configuration has so high a version. What is
// here is taken for chosen once the next holder has proposed it again.
// Everything received must be durable before; the shell persists the
// result and then calls Forced. Fenced: b is not above the promise.
func (a *Acceptor) Force(m Member, b Ballot, c Config) (Hard, Status) {
	at := c.Find(m.Node, m.Brick)
	switch {
	case !a.promised.Less(b):
		return Hard{}, Fenced
	case at < 0 || c.Members[at].Role != Voter || a.witness || c.Sound() != nil || c.Version <= a.Config().Version:
		return Hard{}, Removed
	}
	a.promised = b
	h := a.Hard()
	h.Checkpoint.Config = c
	return h, OK
}

// Forced tells that the stable store holds what Force returned. A checkpoint
// taken meanwhile stays.
func (a *Acceptor) Forced(h Hard) { a.ckpt.Config = h.Checkpoint.Config }

// counted are the promises without what a forced recovery gave up: who knows of none of the
// configurations that go back to the last one met, and is named by none, has only what came
// from ballots beyond it. Slots of the same number are not the same there, checkpoints and commits
// included.
func (o *Opening) counted() []promised {
	var forced uint64
	for _, pr := range o.promises {
		forced = max(forced, pr.p.lineage())
	}
	if forced == 0 || mutant.On("count-given-up") {
		return o.promises
	}
	named := func(m Member) bool {
		return slices.ContainsFunc(o.promises, func(pr promised) bool {
			return slices.ContainsFunc(pr.p.configs(), func(c Config) bool {
				return ForcedVersion(c.Version) == forced && c.Find(m.Node, m.Brick) >= 0
			})
		})
	}
	out := slices.Clone(o.promises)
	for i, pr := range out {
		if pr.p.lineage() < forced && !named(pr.from) {
			out[i].p = pr.p.since(forced)
		}
	}
	return out
}

// configs are all that the promise names, chosen or not.
func (p *Promise) configs() []Config {
	cs := []Config{p.Checkpoint.Config}
	for _, c := range p.Configs {
		cs = append(cs, c.Config)
	}
	return cs
}

// lineage is the ForcedVersion of the newest of them.
func (p *Promise) lineage() (v uint64) {
	for _, c := range p.configs() {
		v = max(v, ForcedVersion(c.Version))
	}
	return v
}

// since is what is left of p by ballots whose epochs are not below forced. No configuration is.
func (p *Promise) since(forced uint64) *Promise {
	rest := &Promise{Since: p.Since, Witness: p.Witness, Full: p.Full}
	for _, r := range p.Runs {
		if r.Ballot.Epoch >= forced {
			rest.Runs = append(rest.Runs, r)
		}
	}
	for _, c := range p.Cuts {
		if c.Ballot.Epoch >= forced {
			rest.Cuts = append(rest.Cuts, c)
		}
	}
	return rest
}
