package quorum

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// Recovered is what Open found, all of it chosen.
type Recovered struct {
	Checkpoint Checkpoint
	// Entries are the slots Checkpoint.UpTo+1 .. Next()-1, all kinds, in order;
	// the last is this holder's own EntryOpen. Bodies are read only.
	Entries []Entry
	Config  Config
}

// surveyMax bounds one round of asking who objects to a new holder.
const surveyMax = 700 * time.Millisecond

// everybodyInterval is how long the nodes of Fallback are left alone when they were asked
// while some member was known.
const everybodyInterval = 3 * time.Second

// consentMax bounds the wait for a holder's word that it let go.
const consentMax = 300 * time.Millisecond

// restMax bounds how long an opening that has its majority waits for the other members that
// are connected. See learning.pending.
const restMax = 100 * time.Millisecond

// duelDelayMax bounds the random wait after another opener got ahead.
const duelDelayMax = 100 * time.Millisecond

// Open takes the group over: it asks the members, claims a higher ballot,
// learns the tail, proposes it again and returns once all of it is durable on a
// majority. Members that do not answer are asked again until ctx ends. Kinds:
// Busy (the holder may be alive; Subject is its node id), NotFound (every seed
// answered and none has the group), Unavailable (no majority answered in time),
// Fenced (another opener won, with Force).
func Open(ctx context.Context, cfg ProposerConfig) (*Proposer, *Recovered, error) {
	const op = "quorum.open"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnOpening == nil {
		cfg.OnOpening = func() {}
	}
	if cfg.Local == nil || cfg.Transport == nil || cfg.Self.IsZero() {
		return nil, nil, fault.New(fault.Invalid, op, cfg.Group.String(), errors.New("transport, acceptors and node are required"))
	}
	cfg.Local.opening(cfg.Group, 1)
	defer cfg.Local.opening(cfg.Group, -1) // by then the proposer is known, or nothing came of it
	o := &opener{cfg: cfg, over: map[Ballot]bool{cfg.Over: true}}
	for {
		p, rec, err := o.attempt(ctx)
		if err == nil {
			return p, rec, nil
		}
		if !errors.Is(err, errBehind) {
			return nil, nil, o.explain(ctx, err)
		}
		if ended := pause(ctx, rand.N(duelDelayMax)); ended != nil {
			return nil, nil, o.explain(ctx, fmt.Errorf("%w; %w", err, ended))
		}
	}
}

// pause waits; it fails only with ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errBehind: another opener's ballot is higher than the one tried.
var errBehind = errors.New("another opener is ahead")

type opener struct {
	cfg     ProposerConfig
	over    map[Ballot]bool   // the holders of these are not at work
	objects map[Member]Ballot // what each voter that objected had promised
	highest Ballot            // met by the last survey
	ahead   Ballot            // what an attempt lost to
	config  Config
	copies  []Config  // what else was named, and who named it
	asked   time.Time // when everybody was, while some member was known
	last    error     // what a member said last
}

// explain gives every failure a kind.
func (o *opener) explain(ctx context.Context, err error) error {
	const op = "quorum.open"
	var f *fault.Error
	if ctx.Err() == nil && errors.As(err, &f) {
		return f
	}
	if f != nil && f.Kind == fault.Busy {
		return f
	}
	text := errors.New("too few members answered in time")
	return fault.New(fault.Unavailable, op, o.cfg.Group.String(), errors.Join(text, o.last, err))
}

func (o *opener) attempt(ctx context.Context) (*Proposer, *Recovered, error) {
	if err := o.survey(ctx); err != nil {
		return nil, nil, err
	}
	highest := o.highest // the survey need not have asked who is ahead
	if highest.Less(o.ahead) && !mutant.On("forget-ahead") {
		highest = o.ahead
	}
	ballot := o.cfg.Local.claim(o.cfg.Group, highest, o.cfg.Boot)
	plan, entries, err := o.learn(ctx, ballot)
	if err != nil {
		return nil, nil, err
	}
	core, err := paxos.NewProposer(plan, entries)
	if err != nil {
		return nil, nil, fault.New(fault.Corrupt, "quorum.open", o.cfg.Group.String(), err)
	}
	p := newProposer(o.cfg, core)
	seen, last := core.Commit(), core.Next()-1
	p.pump()
	err = p.until(ctx, func() bool {
		if c := core.Commit(); c != seen {
			seen = c
			o.cfg.OnOpening()
		}
		return seen >= last
	})
	if o.overtaken(p) {
		err = errBehind
	}
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	return p, p.begin(), nil
}

// overtaken tells whether p, which is being opened, has met a higher ballot, or a member on this
// node has promised one. Since p is known, such a member objects to others; until then it let
// them in. Whoever was faster may have got no further: the next survey tells. With Force nobody
// asks.
func (o *opener) overtaken(p *Proposer) bool {
	if o.cfg.Force || mutant.On("lost-to-nobody") {
		return false
	}
	p.mu.Lock()
	by := p.core.Fenced()
	p.mu.Unlock()
	if mine := o.cfg.Local.query(o.cfg.Group, o.cfg.Self).promised; by.Less(mine) {
		by = mine
	}
	if !p.Ballot().Less(by) {
		return false
	}
	o.ahead = by
	return true
}

// begin ends the opening: from here on, callbacks are made.
func (p *Proposer) begin() *Recovered {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec := &Recovered{Checkpoint: p.core.Checkpoint(), Config: p.core.Config()}
	for slot := rec.Checkpoint.UpTo + 1; slot < p.core.Next(); slot++ {
		rec.Entries = append(rec.Entries, p.core.Entry(slot))
	}
	p.opened = true
	p.told.received, p.told.durable = p.core.Received(), p.core.Commit()
	p.told.members = p.members
	return rec
}

// survey finds the members and whether they let a new holder in.
func (o *opener) survey(ctx context.Context) error {
	const op = "quorum.open"
	s := o.newSurvey()
	may := len(s.fallback) > 0
	var verdict error
	round, cancel := context.WithTimeout(ctx, surveyMax)
	defer cancel()
	err := s.run(round, func() bool {
		o.last = s.oneFailure()
		if s.dropped && !s.anywhere() && s.settled() {
			verdict = fault.New(fault.NotFound, op, o.cfg.Group.String(), errors.New("the group was dropped"))
			return true
		}
		if s.nowhere() {
			verdict = fault.New(fault.NotFound, op, o.cfg.Group.String(), errors.New("no node asked has the group"))
			return true
		}
		need := s.config.Voters()/2 + 1
		found, _ := s.voters()
		if s.config.Members == nil || found < need {
			return false
		}
		if o.cfg.Force || o.willing(s) >= need {
			return true
		}
		if s.settled() {
			verdict = busy(o.blocker(s))
			return true
		}
		return false
	})
	if may && s.fallback == nil && s.anywhere() {
		o.asked = time.Now()
	}
	o.highest, o.config, o.objects, o.copies = s.highest, s.config, s.objections(), s.copies()
	if verdict == nil && err != nil && ctx.Err() == nil {
		// Silence is an answer too: what is known after surveyMax decides. A
		// member that objected may not do so the next time it is asked.
		if found, _ := s.voters(); s.config.Members != nil && found > s.config.Voters()/2 {
			verdict = busy(o.blocker(s))
		} else {
			return o.survey(ctx)
		}
	}
	if verdict != nil && fault.Is(verdict, fault.Busy) && o.consents(ctx, s) {
		return nil
	}
	if verdict != nil {
		return verdict
	}
	return err
}

// newSurvey begins with all that is known.
func (o *opener) newSurvey() *survey {
	seeds := slices.Clone(o.cfg.Seeds)
	for _, m := range o.config.Members {
		if !slices.Contains(seeds, m.Node) {
			seeds = append(seeds, m.Node)
		}
	}
	fallback := o.cfg.Fallback
	if !o.asked.IsZero() && time.Since(o.asked) < everybodyInterval {
		fallback = nil
	}
	s := newSurvey(o.cfg.Transport, o.cfg.Group, seeds, fallback)
	s.majority = true
	return s
}

// consents asks the holders of the promises for whose sake members object
// whether they are at work; true if a majority no longer objects then. Each
// question comes after the promise was learnt: a "no" is about it and earlier
// ones of that node, since what the node opens later has another ballot. It says
// nothing of other nodes' promises, lower ones included: such a holder may well
// be at work with a majority that the asked one never had.
func (o *opener) consents(ctx context.Context, s *survey) bool {
	ctx, cancel := context.WithTimeout(ctx, consentMax)
	defer cancel()
	for _, b := range o.objects {
		o.isOver(ctx, b)
	}
	return o.willing(s) > o.config.Voters()/2
}

// isOver asks the holder of b, if it has not said so before, whether it let go.
func (o *opener) isOver(ctx context.Context, b Ballot) bool {
	if !o.over[b] {
		ctx, cancel := context.WithTimeout(ctx, consentMax)
		defer cancel()
		q, err := queryNode(ctx, o.cfg.Transport, b.Node, o.cfg.Group)
		o.over[b] = err == nil && !q.holding
	}
	return o.over[b]
}

// willing counts the voters that let this holder in.
func (o *opener) willing(s *survey) int {
	_, n := s.voters()
	for _, b := range s.objections() {
		if o.over[b] {
			n++
		}
	}
	return n
}

// blocker is the node for whose sake members object.
func (o *opener) blocker(s *survey) ident.NodeID {
	var top Ballot
	for _, b := range s.objections() {
		if !o.over[b] && top.Less(b) {
			top = b
		}
	}
	return top.Node
}

func busy(holder ident.NodeID) error {
	return fault.Newf(fault.Busy, "quorum.open", holder.String(),
		"node %s holds it and may be alive; wait until it is known to be gone, or force", holder)
}

// learn is phase 1 and the fetching of what it found.
func (o *opener) learn(ctx context.Context, b Ballot) (*paxos.Plan, []Entry, error) {
	l := &learning{opener: o, ballot: b, opening: o.opening(b), q: newAsking[prepareReply](ctx),
		objections: make(map[Member]bool), told: make(map[Member]Ballot), answered: make(map[Member]bool)}
	defer l.q.stop()
	for {
		if err := l.promises(ctx); err != nil {
			return nil, nil, err
		}
		plan := l.opening.Plan()
		entries, lost, err := o.fetchAll(ctx, plan)
		if err == nil {
			return plan, entries, nil
		}
		// A member promised and went away with something that only it has. Its
		// promise counts for nothing until it gives it; other majorities do.
		o.last = err
		for _, m := range lost {
			l.opening.Remove(m)
			l.q.again(m)
		}
		if err := pause(ctx, AskInterval); err != nil {
			return nil, nil, err
		}
	}
}

// learning is one phase 1. Its members are identities.
type learning struct {
	*opener
	ballot     Ballot
	opening    *paxos.Opening
	q          *asking[prepareReply]
	objections map[Member]bool
	told       map[Member]Ballot // that the holder of this one let go
	answered   map[Member]bool   // or failed to
	blocker    ident.NodeID
	late       <-chan time.Time // the others do not make up for an objection
	rest       <-chan time.Time // see pending
	rested     bool
}

// promises asks until those who promised decide.
func (l *learning) promises(ctx context.Context) error {
	for {
		for _, m := range l.opening.Ask() {
			over := cmp.Or(l.told[identity(m)], l.ended(m))
			l.q.ask(m, func(ctx context.Context) (prepareReply, error) { return l.prepare(ctx, m, l.ballot, over) })
		}
		select {
		case r := <-l.q.results:
			if err := l.hear(ctx, r); err != nil {
				return err
			}
		case <-l.rest:
			l.rested = true
		case <-l.late:
			if !l.enough(l.opening, l.ballot) {
				return busy(l.blocker)
			}
			l.rested = true
		case <-ctx.Done():
			return ctx.Err()
		}
		if !l.enough(l.opening, l.ballot) {
			continue
		}
		if l.rested || !l.pending() {
			return nil
		}
		if l.rest == nil {
			l.rest = time.After(restMax)
		}
	}
}

// hear takes what one member said; an error ends the phase.
func (l *learning) hear(ctx context.Context, r result[prepareReply]) error {
	l.answered[r.from] = true
	switch {
	case r.err != nil:
		l.last = r.err
		if r.value.status == paxos.Removed {
			l.opening.Hint(r.value.left)
		}
	case r.value.status == paxos.OK:
		l.opening.Add(r.from, &r.value.promise)
	case r.value.status == paxos.Fenced:
		l.ahead = r.value.promised
		return errBehind
	case r.value.status == paxos.Busy:
		// The survey asked the holders for whose sake members of the newest configuration
		// object. If that one was never chosen, others decide.
		if p := r.value.promised; l.told[r.from] != p && !mutant.On("consent-of-newest") && l.isOver(ctx, p) {
			l.told[r.from] = p
			delete(l.answered, r.from)
			l.q.again(r.from)
			return nil
		} else if !l.voter(r.from) {
			return nil // its word does not count
		}
		l.objections[r.from] = true
		l.blocker = r.value.promised.Node
		if l.late == nil {
			l.late = time.After(surveyMax)
		}
		if 2*len(l.objections) >= l.config.Voters() {
			return busy(l.blocker)
		}
	}
	return nil
}

// pending tells whether a member that is connected has not answered yet. It may have promised
// to another opening that gets no further, because this one has a majority; that promise would
// fence this one when it is at work, and nobody would hold the group.
func (l *learning) pending() bool {
	return !mutant.On("bare-majority") && slices.ContainsFunc(l.opening.Ask(), func(m Member) bool {
		return !l.answered[identity(m)] && (m.Node == l.cfg.Self || l.cfg.Transport.Connected(m.Node))
	})
}

// ended is the ballot for whose sake m objected, if its holder let go; else zero.
func (o *opener) ended(m Member) Ballot {
	if p := o.objects[m]; o.over[p] {
		return p
	}
	return Ballot{}
}

// enough tells whether those who promised decide. A ballot that goes beyond a forced one is
// obeyed by those who were not given up: it must not carry on what was given up,
// which a majority of old may say.
func (o *opener) enough(opening *paxos.Opening, b Ballot) bool {
	forced := ForcedVersion(b.Epoch)
	return opening.Done() && (opening.Version() >= max(o.cfg.AtLeast, forced) || mutant.On("outbid-force"))
}

// opening is a phase 1 that asks whoever may be a member.
func (o *opener) opening(b Ballot) *paxos.Opening {
	opening := paxos.NewOpening(b)
	opening.Hint(o.config)
	for _, c := range o.copies {
		opening.Hint(c)
	}
	return opening
}

func (o *opener) voter(m Member) bool {
	i := o.config.Find(m.Node, m.Brick)
	return i >= 0 && o.config.Members[i].Role != Learner
}

// prepare asks one member to promise. A member without the group is asked again, after
// AskInterval: it may be installed meanwhile, one that left too.
func (o *opener) prepare(ctx context.Context, m Member, b, over Ballot) (prepareReply, error) {
	call := prepareCall{group: o.cfg.Group, brick: m.Brick, ballot: b, force: o.cfg.Force, over: over}
	reply, err := o.cfg.Transport.Call(ctx, m.Node, typePrepare, appendPrepare(nil, &call))
	if err != nil {
		return prepareReply{}, err
	}
	r, err := decodePrepareReply(reply)
	switch {
	case err != nil:
		return r, err
	case r.status == paxos.OK && r.promised != b:
		return r, errValue
	case r.status != paxos.OK && r.status != paxos.Fenced && r.status != paxos.Busy:
		return r, fmt.Errorf("node %s cannot promise: %v", m.Node.Short(), r.status)
	}
	return r, nil
}

// fetchAll gets the bodies of the plan, from this node where it has them. On
// failure it names the members that did not give what they promised.
func (o *opener) fetchAll(ctx context.Context, plan *paxos.Plan) (entries []Entry, lost []Member, err error) {
	for _, seg := range plan.Segments {
		sources := append([]Member(nil), seg.Sources...)
		for i, m := range sources {
			if m.Node == o.cfg.Self {
				sources[0], sources[i] = sources[i], sources[0]
			}
		}
		at := seg.From
		for at <= seg.To {
			if len(sources) == 0 {
				return nil, lost, fmt.Errorf("slots %d to %d cannot be fetched: %w", at, seg.To, err)
			}
			var got []Entry
			got, err = o.fetch(ctx, sources[0], at, seg)
			if err != nil {
				if ctx.Err() != nil {
					return nil, nil, ctx.Err()
				}
				lost = append(lost, sources[0])
				sources = sources[1:]
				continue
			}
			entries = append(entries, got...)
			at += uint64(len(got))
			o.cfg.OnOpening()
		}
	}
	return entries, nil, nil
}

// fetch gets entries from slot on, in order, of the segment's ballot.
func (o *opener) fetch(ctx context.Context, from Member, slot uint64, seg paxos.Segment) ([]Entry, error) {
	call := fetchCall{group: o.cfg.Group, brick: from.Brick, from: slot, to: seg.To}
	var status paxos.Status
	var fs []fetched
	var err error
	if from.Node == o.cfg.Self {
		status, fs, err = o.cfg.Local.fetch(&call)
	} else {
		var reply []byte
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if reply, err = o.cfg.Transport.Call(ctx, from.Node, typeFetch, appendFetch(nil, &call)); err == nil {
			status, fs, err = decodeFetchReply(reply)
		}
	}
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for i := range fs {
		if fs[i].entry.Slot != slot+uint64(i) || fs[i].entry.Slot > seg.To || fs[i].ballot != seg.Ballot {
			break // overwritten by another ballot since the promise
		}
		entries = append(entries, fs[i].entry)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("node %s no longer has slot %d at ballot %v: %v", from.Node.Short(), slot, seg.Ballot, status)
	}
	return entries, nil
}
