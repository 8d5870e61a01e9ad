package paxos

// Peer is the proposer's view of one member.
type Peer struct {
	Member
	state                  peerState
	connected              bool
	witness                bool   // it gets no bodies of data entries, whatever its role is now
	insync                 bool   // little was missing, and it has kept up since
	heard                  bool   // since the last tick
	tight                  bool   // its journal is getting full
	opened                 bool   // it met this ballot, or will before anything else that is sent
	repeat                 bool   // the probe is a repetition: an answer to the first will do
	stream                 uint32 // of messages; a gap ends it
	next                   uint64 // slot to send
	received               uint64
	durable                uint64
	renew                  []Run  // slots that the peer has already at the tail's ballots
	syncWant               uint64 // wanted durable
	syncSent               uint64 // asked in this stream
	commitWant, commitSent uint64
	trouble                Status // why it is stuck
}

type peerState uint8

const (
	// peerProbe: a probe must be sent.
	peerProbe peerState = iota
	// peerProbing: its answer is awaited.
	peerProbing
	// peerStreaming: entries are sent without waiting.
	peerStreaming
	// peerBehind: it needs the checkpoint.
	peerBehind
	// peerInstalling: the shell is installing it.
	peerInstalling
	// peerStuck: it cannot take anything now; the next tick probes.
	peerStuck
)

// PeerView is a Peer for people and for the shell's decisions.
type PeerView struct {
	Member            Member
	Connected         bool
	Received, Durable uint64
	Lagging, Tight    bool
	Owes, Heard       bool // an answer is due; one came since the last tick
	State             string
}

// OutKind tells what to send.
type OutKind uint8

const (
	OutProbe OutKind = iota
	OutOpen
	OutAccept
	OutRenew
	OutSync
	OutInstall
)

// Out is one message for one peer.
type Out struct {
	Kind       OutKind
	EntryKind  EntryKind
	Sync       bool // OutAccept, OutRenew, OutSync: make durable what came so far
	Bare       bool // the peer is a witness; OutAccept of data has no body
	Stream     uint32
	Slot       uint64 // OutAccept
	Commit     uint64
	Body       []byte      // OutAccept; as proposed, or nothing if Bare
	Runs       []Run       // OutRenew
	Cuts       []Cut       // OutOpen; shared, read only
	Checkpoint *Checkpoint // OutInstall: report back with OnInstalled
}

// Peers counts the peers. Their indexes change only in calls that change
// members: Propose of a configuration, AddLearner, RemoveLearner, and Advance, Tick
// and On... that choose one.
func (p *Proposer) Peers() int { return len(p.peers) }

// Member is the identity of peer i.
func (p *Proposer) Member(i int) Member { return p.peers[i].Member }

// Index finds a peer, or -1.
func (p *Proposer) Index(m Member) int {
	for i := range p.peers {
		if p.peers[i].Member.Same(m) {
			return i
		}
	}
	return -1
}

// View describes peer i.
func (p *Proposer) View(i int) PeerView {
	q := &p.peers[i]
	v := PeerView{Member: q.Member, Connected: q.connected, Received: q.received,
		Durable: q.durable, Tight: q.tight, Owes: p.owes(q), Heard: q.heard}
	v.Lagging = q.state != peerStreaming || p.tail.between(q.received, p.tail.last()) >= WindowBytesMax
	switch {
	case !q.connected:
		v.State = "down"
	case q.state == peerStuck:
		v.State = q.trouble.String()
	case q.state == peerProbe || q.state == peerProbing:
		v.State = "probing"
	case q.state == peerBehind || q.state == peerInstalling:
		v.State = "installing"
	default:
		v.State = "ok"
	}
	return v
}

func (p *Proposer) addPeer(m Member) {
	if i := p.Index(m); i >= 0 {
		p.peers[i].Member.Role = m.Role
		return
	}
	p.peers = append(p.peers, Peer{Member: m, witness: m.Role == Witness, syncWant: p.commit})
}

// dropPeers removes the peers that no view has, learners apart.
func (p *Proposer) dropPeers() {
	kept := p.peers[:0]
	for _, q := range p.peers {
		found := q.Member.Role == Learner
		for _, v := range p.views {
			found = found || v.config.Find(q.Member.Node, q.Member.Brick) >= 0
		}
		if found {
			kept = append(kept, q)
		}
	}
	clear(p.peers[len(kept):])
	p.peers = kept
}

// AddLearner feeds m, which shall have m.Role, without counting it.
func (p *Proposer) AddLearner(m Member) {
	if p.Index(m) < 0 {
		p.addPeer(m)
		p.peers[len(p.peers)-1].Role = Learner
		p.recount()
	}
}

// RemoveLearner stops feeding a learner that no configuration names.
func (p *Proposer) RemoveLearner(m Member) {
	i := p.Index(m)
	if i < 0 || p.peers[i].Member.Role != Learner {
		return
	}
	for _, v := range p.views {
		if v.config.Find(m.Node, m.Brick) >= 0 {
			return
		}
	}
	p.peers = append(p.peers[:i], p.peers[i+1:]...)
	p.recount()
}

// CaughtUp tells whether a peer has durably all but the last few entries. (All
// of what is chosen would be too much to ask: under load there is always more.)
func (p *Proposer) CaughtUp(i int) bool {
	q := &p.peers[i]
	return q.state == peerStreaming && q.durable >= p.tail.base &&
		p.tail.between(q.durable, p.tail.last()) < WindowBytesMax/4
}

// Connect tells that the way to peer i came up or went down. Call Advance
// afterwards, since nothing waits for a peer that is away.
func (p *Proposer) Connect(i int, up bool) {
	q := &p.peers[i]
	q.connected, q.insync = up, false
	q.received = q.durable // the rest may be lost by a power cut until it says otherwise
	if q.state != peerInstalling {
		q.state, q.repeat = peerProbe, false
	}
}

// Advance draws the consequences of Connect. It reports whether a watermark rose.
func (p *Proposer) Advance() bool { return p.advance() }

// Pull says what to send to peer i next; false when nothing is due.
func (p *Proposer) Pull(i int) (Out, bool) {
	q := &p.peers[i]
	if !q.connected || !p.fenced.IsZero() {
		return Out{}, false
	}
	switch q.state {
	case peerProbe:
		if !q.repeat {
			q.stream, q.syncSent, q.commitSent = q.stream+1, 0, 0
		}
		q.state, q.repeat = peerProbing, false
		return Out{Kind: OutProbe, Stream: q.stream, Bare: q.witness, Commit: p.commit}, true
	case peerBehind:
		q.state = peerInstalling
		c := p.ckpt
		return Out{Kind: OutInstall, Stream: q.stream, Bare: q.witness, Checkpoint: &c}, true
	case peerStreaming:
		return p.pullStream(q)
	}
	return Out{}, false
}

func (p *Proposer) pullStream(q *Peer) (Out, bool) {
	if q.next <= p.tail.base {
		q.state = peerInstalling
		c := p.ckpt
		return Out{Kind: OutInstall, Stream: q.stream, Bare: q.witness, Checkpoint: &c}, true
	}
	out := Out{Stream: q.stream, Bare: q.witness, Commit: p.commit}
	if !q.opened {
		q.opened = true
		out.Kind, out.Cuts = OutOpen, p.cuts
		return out, true
	}
	limit := p.sendLimit()
	want := min(q.syncWant, limit) // what is held back cannot be synced yet
	if q.next <= limit {
		if p.tail.between(q.received, q.next-1) >= WindowBytesMax {
			return Out{}, false
		}
		var last uint64
		out.Runs, last = q.renewable(q.next)
		if len(out.Runs) > 0 {
			out.Kind = OutRenew
		} else {
			last = q.next
			e := p.tail.at(q.next)
			out.Kind, out.Slot, out.EntryKind, out.Body = OutAccept, q.next, e.kind, e.body
			if q.witness && e.kind == EntryData {
				out.Body = nil
			}
		}
		q.next = last + 1
		if p.eager || (want > max(q.syncSent, q.durable) && last >= want) {
			out.Sync = true
			q.syncSent = last
		}
		q.commitSent = p.commit
		return out, true
	}
	out.Kind = OutSync
	switch {
	case want > max(q.syncSent, q.durable) && want < q.next:
		out.Sync = true
		q.syncSent = q.next - 1
	case q.commitWant <= q.commitSent:
		return Out{}, false
	}
	q.commitSent = p.commit
	return out, true
}

// renewable takes the runs from slot on that the peer already has.
func (q *Peer) renewable(slot uint64) (runs []Run, last uint64) {
	for len(q.renew) > 0 {
		r := &q.renew[0]
		if r.To < slot {
			q.renew = q.renew[1:]
			continue
		}
		if r.From > slot || len(runs) == RunsMax {
			break
		}
		runs = append(runs, Run{From: slot, To: r.To, Ballot: r.Ballot})
		slot = r.To + 1
	}
	return runs, slot - 1
}

// OnState takes a member's answer to the probe of stream; s is meaningful if status is OK. It reports
// whether a watermark rose.
func (p *Proposer) OnState(i int, stream uint32, status Status, s State) bool {
	q := &p.peers[i]
	if q.state != peerProbing || stream != q.stream {
		return false
	}
	q.heard = true
	switch status {
	case OK:
	case NoGroup:
		q.state, q.received, q.durable, q.insync = peerBehind, 0, 0, false
		return p.advance()
	default:
		q.state, q.trouble, q.insync = peerStuck, status, false
		return p.advance()
	}
	if s.Received > p.tail.last() || s.Durable > s.Received {
		q.state, q.trouble, q.insync = peerStuck, Broken, false
		return p.advance()
	}
	q.received, q.durable = s.Received, max(q.durable, s.Durable)
	if s.Received < p.ckpt.UpTo {
		q.state, q.insync = peerBehind, false
		return p.advance()
	}
	q.state, q.next, q.opened = peerStreaming, s.Received+1, s.Opened
	q.renew = q.renew[:0]
	for _, have := range s.Runs {
		for _, want := range p.origin {
			r := Run{max(have.From, want.From, q.next), min(have.To, want.To), want.Ballot}
			if have.Ballot == want.Ballot && r.From <= r.To {
				q.renew = append(q.renew, r)
			}
		}
	}
	return p.advance()
}

// OnAccepted takes a member's watermarks, contiguous at this ballot. It reports
// whether a majority watermark rose.
func (p *Proposer) OnAccepted(i int, stream uint32, status Status, received, durable uint64) bool {
	q := &p.peers[i]
	if received > p.tail.last() || durable > received {
		return false
	}
	q.heard = true
	q.durable = max(q.durable, durable)
	// What an earlier stream received may have been lost by a power cut since.
	if stream == q.stream && q.state == peerStreaming {
		q.received = max(q.received, received)
		switch status {
		case OK:
		case Full, Broken:
			q.state, q.trouble, q.insync = peerStuck, status, false
		default:
			q.state = peerProbe
		}
	}
	q.received = max(q.received, q.durable)
	if q.connected && q.state == peerStreaming && p.tail.between(q.received, p.tail.last()) < WindowBytesMax/4 {
		q.insync = true
	}
	return p.advance()
}

// SetTight notes what a member says of its journal, and reports whether it is news.
func (p *Proposer) SetTight(i int, tight bool) bool {
	q := &p.peers[i]
	news := q.tight != tight
	q.tight = tight
	return news
}

// OnFenced tells of a higher ballot: this proposer is over. It reports whether that is news.
func (p *Proposer) OnFenced(by Ballot) bool {
	if !p.ballot.Less(by) || !p.fenced.IsZero() {
		return false
	}
	p.fenced = by
	return true
}

// OnInstalled ends an OutInstall.
func (p *Proposer) OnInstalled(i int, status Status) {
	q := &p.peers[i]
	if q.state != peerInstalling {
		return
	}
	q.heard = true
	if q.state = peerProbe; status != OK {
		q.state, q.trouble = peerStuck, status
	}
}

// Tick is called at a steady pace while Busy: a peer that owes an answer and
// gave none since the last tick, or that was stuck, is probed again. It reports
// whether a watermark rose, since nothing waits for a peer that is silent.
func (p *Proposer) Tick() bool {
	for i := range p.peers {
		q := &p.peers[i]
		if q.connected && p.owes(q) && !q.heard || q.state == peerStuck {
			// A member slower than the ticks must still come through.
			q.repeat = q.state == peerProbing
			q.state, q.insync = peerProbe, false
		}
		q.heard = false
	}
	return p.advance()
}

func (p *Proposer) owes(q *Peer) bool {
	switch q.state {
	case peerProbing:
		return true
	case peerStreaming:
		return q.received+1 < q.next || q.syncSent > q.durable
	}
	return false
}

// Busy tells whether a tick may have something to do.
func (p *Proposer) Busy() bool {
	for i := range p.peers {
		if q := &p.peers[i]; q.connected && (p.owes(q) || q.state == peerStuck) {
			return true
		}
	}
	return false
}
