package quorum

import (
	"context"
	"errors"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// survey is what asking around has found about a group.
type survey struct {
	t       link.Transport
	group   ident.GroupID
	seeds   []ident.NodeID
	answers map[ident.NodeID]queryReply
	failed  map[ident.NodeID]error
	// fallback are asked, once, when the seeds do not lead to the group; or, if
	// majority, to no majority of the members they name.
	fallback []ident.NodeID
	majority bool
	config   Config // newest named
	highest  Ballot // promised
	dropped  bool
}

func newSurvey(t link.Transport, group ident.GroupID, seeds, fallback []ident.NodeID) *survey {
	return &survey{t: t, group: group, seeds: seeds, fallback: fallback, answers: make(map[ident.NodeID]queryReply),
		failed: make(map[ident.NodeID]error)}
}

// run asks the seeds, the members they name and the highest promise's holder
// until enough says so or ctx ends.
func (s *survey) run(ctx context.Context, enough func() bool) error {
	q := newAsking[queryReply](ctx)
	defer q.stop()
	ask := func(node ident.NodeID) {
		q.ask(Member{Node: node}, func(ctx context.Context) (queryReply, error) {
			return queryNode(ctx, s.t, node, s.group)
		})
	}
	for _, node := range s.seeds {
		ask(node)
	}
	for {
		select {
		case r := <-q.results:
			s.add(r)
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, m := range s.config.Members {
			ask(m.Node)
		}
		if !s.highest.IsZero() {
			ask(s.highest.Node)
		}
		if len(s.fallback) > 0 && s.settled() && s.astray() {
			s.seeds = append(append([]ident.NodeID(nil), s.seeds...), s.fallback...)
			s.fallback = nil
			for _, node := range s.seeds {
				ask(node)
			}
		}
		if enough() {
			return nil
		}
	}
}

// astray tells whether those asked do not lead to the group. A member that was away may
// name members that have been replaced since, and are gone, while others decide.
func (s *survey) astray() bool {
	if !s.anywhere() {
		return true
	}
	found, _ := s.voters()
	return s.majority && found <= s.config.Voters()/2 && !mutant.On("ask-old-members")
}

// anywhere tells whether a node asked has the group.
func (s *survey) anywhere() bool {
	for _, q := range s.answers {
		if q.found {
			return true
		}
	}
	return false
}

func (s *survey) add(r result[queryReply]) {
	if r.err != nil {
		s.failed[r.from.Node] = r.err
		return
	}
	delete(s.failed, r.from.Node)
	s.answers[r.from.Node] = r.value
	s.dropped = s.dropped || r.value.dropped
	if !r.value.found && !r.value.removed {
		return
	}
	if s.config.Members == nil || r.value.config.Version > s.config.Version {
		s.config = r.value.config
	}
	if s.highest.Less(r.value.promised) {
		s.highest = r.value.promised
	}
}

// copies are the configurations named, and whoever has a copy. The newest one may be
// waiting to be chosen, unknown to its own members: those who named it know.
func (s *survey) copies() (out []Config) {
	for node, q := range s.answers {
		if q.found {
			out = append(out, q.config, Config{Members: []Member{{Node: node, Brick: q.brick}}})
		}
	}
	return out
}

// voters counts the voters of the newest configuration that have the group, and
// those of them that do not object to a new holder.
func (s *survey) voters() (found, willing int) {
	for _, m := range s.config.Members {
		if m.Role == Learner {
			continue
		}
		if q, ok := s.answers[m.Node]; ok && q.found {
			found++
			if !q.objects {
				willing++
			}
		}
	}
	return found, willing
}

// objections are the promises of the voters that object to a new holder.
func (s *survey) objections() map[Member]Ballot {
	out := make(map[Member]Ballot)
	for _, m := range s.config.Members {
		if q, ok := s.answers[m.Node]; ok && m.Role != Learner && q.found && q.objects {
			out[m] = q.promised
		}
	}
	return out
}

// settled tells whether every node in question has answered or failed.
func (s *survey) settled() bool {
	known := func(n ident.NodeID) bool {
		_, ok := s.answers[n]
		return ok || s.failed[n] != nil
	}
	for _, n := range s.seeds {
		if !known(n) {
			return false
		}
	}
	for _, m := range s.config.Members {
		if !known(m.Node) {
			return false
		}
	}
	return s.highest.IsZero() || known(s.highest.Node)
}

// nowhere tells whether all seeds answered and none has the group.
func (s *survey) nowhere() bool {
	for _, n := range s.seeds {
		if q, ok := s.answers[n]; !ok || q.found || q.broken {
			return false
		}
	}
	return s.config.Members == nil
}

// Holder asks who holds the highest promise of a group: of the seeds, and of the
// members they name. It returns when a majority of the newest configuration has
// answered, or with the best of what did when ctx ends; NotFound when no seed
// has the group, Unavailable when nothing answered. The fallback nodes are asked when
// the seeds do not lead to the group.
func Holder(ctx context.Context, t link.Transport, seeds []ident.NodeID, group ident.GroupID, fallback ...ident.NodeID) (Ballot, Config, error) {
	const op = "quorum.holder"
	s := newSurvey(t, group, seeds, fallback)
	nowhere := false
	err := s.run(ctx, func() bool {
		nowhere = s.nowhere()
		found, _ := s.voters()
		return nowhere || s.config.Members != nil && (found > s.config.Voters()/2 || s.settled())
	})
	switch {
	case nowhere:
		return Ballot{}, Config{}, fault.New(fault.NotFound, op, group.String(), errors.New("no node asked has the group"))
	case s.config.Members == nil:
		return Ballot{}, Config{}, fault.Newf(fault.Unavailable, op, group.String(), "no member answered: %w", errors.Join(err, s.oneFailure()))
	}
	return s.highest, s.config, nil
}

// oneFailure is an example of what went wrong; nil if nothing did.
func (s *survey) oneFailure() error {
	for _, n := range s.seeds {
		if err := s.failed[n]; err != nil {
			return err
		}
	}
	for _, m := range s.config.Members {
		if err := s.failed[m.Node]; err != nil {
			return err
		}
	}
	return nil
}
