package node

import (
	"context"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/pool"
	"github.com/gabion-storage/gabion/quorum"
)

// VolumeSurvivors lists the copies of a volume's map block that answer, the one to go
// on from first: see quorum.Survivors.
func (c *Core) VolumeSurvivors(ctx context.Context, d pool.Volume) ([]quorum.Survivor, error) {
	return quorum.Survivors(ctx, c.cfg.Transport, c.everybody(known(d)), ident.MapBlock(d.ID))
}

// everybody is first and then all other nodes of the pool.
func (c *Core) everybody(first []ident.NodeID) []ident.NodeID {
	out := slices.Clone(first)
	for _, r := range c.Pool.State().Nodes {
		if !slices.Contains(out, r.ID) {
			out = append(out, r.ID)
		}
	}
	return out
}

// ChooseSurvivor chooses the survivor to go on from, the best of those that may be
// it, and the voters: that one, and others with data on different nodes, at most most
// in all. best is an index of found; -1: there is none.
func ChooseSurvivor(found []quorum.Survivor, may func(quorum.Survivor) bool, most int) (best int, voters []quorum.Member) {
	best = slices.IndexFunc(found, func(s quorum.Survivor) bool { return !s.Witness && may(s) })
	if best < 0 {
		return best, nil
	}
	voters = []quorum.Member{found[best].Member}
	for _, s := range found {
		taken := slices.ContainsFunc(voters, func(m quorum.Member) bool { return m.Node == s.Member.Node })
		if !taken && !s.Witness && len(voters) < most {
			voters = append(voters, s.Member)
		}
	}
	return best, voters
}

// ForceVolume goes on with a volume from one survivor, by a person's word: see
// quorum.Recover. The record a comes first, and needs the pool. After an error the
// volume may have been recovered nevertheless.
func (c *Core) ForceVolume(ctx context.Context, d pool.Volume, from quorum.Member, voters []quorum.Member, a pool.Audit) (quorum.Recovery, error) {
	if ss, err := c.Pool.Survivors(ctx); err != nil || !quorum.Quorate(ss) {
		return quorum.Recovery{}, fault.Newf(fault.Unavailable, a.What, d.Name, "the pool's own quorum is gone; first: gabion pool recover")
	}
	if err := c.Pool.Submit(ctx, pool.Command{Audit: &a}); err != nil {
		return quorum.Recovery{}, err
	}
	c.cfg.Log.Error("a volume's quorum is replaced by an operator's word", "volume", d.Name, "from", from, "voters", voters)
	r, err := quorum.Recover(ctx, c.cfg.Transport, c.everybody(known(d)), ident.MapBlock(d.ID), from, voters, c.cfg.Boot)
	if err != nil {
		return quorum.Recovery{}, err
	}
	return r, c.recordForced(ctx, d, r.Config)
}

// FinishForced does what is left of a forced recovery of which the pool does not know:
// whoever did it died, or the pool did not answer. Those who were given up would still
// be asked when they come back. False: there is none.
func (c *Core) FinishForced(ctx context.Context, d pool.Volume, found []quorum.Survivor) (bool, error) {
	var forced quorum.Config
	for _, s := range found {
		if quorum.ForcedVersion(s.Config.Version) > max(quorum.ForcedVersion(d.VotersVersion), forced.Version) {
			forced = s.Config
		}
	}
	if forced.Version == 0 {
		return false, nil
	}
	return true, c.recordForced(ctx, d, forced)
}

// recordForced has the pool know a configuration that was forced: from then on nobody
// who looks into the catalog opens the volume with the old members.
func (c *Core) recordForced(ctx context.Context, d pool.Volume, forced quorum.Config) error {
	var ids []ident.NodeID
	for _, m := range forced.Members {
		ids = append(ids, m.Node)
	}
	return c.Pool.Submit(ctx, pool.Command{SetVoters: &pool.SetVoters{ID: d.ID, Voters: ids, Version: forced.Version}})
}
