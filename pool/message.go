package pool

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
)

// Messages. Documents are packed as in codec.go.
const (
	typeSubmit link.Type = 0x50 // call: Command -> submitAnswer
	typePull   link.Type = 0x51 // call: version u64 little-endian -> snapshot if newer, else empty
	typeNews   link.Type = 0x52 // one way, from the leader: version u64 little-endian of the newest state
	typeAhead  link.Type = 0x53 // one way, to a node that has an older state: version u64 little-endian
	typeWant   link.Type = 0x54 // one way, the answer of a node that cannot pull: version u64 little-endian that it has
	typeGive   link.Type = 0x55 // call: snapshot -> empty
)

// snapshot is the state as it is pulled and saved.
type snapshot struct {
	State  *State         `json:"state"`
	Voters []ident.NodeID `json:"voters"` // of the pool block
	// AtLeast is the oldest configuration of the pool block that may lead: that of
	// the last forced recovery.
	AtLeast uint64 `json:"at_least,omitempty"`
}

func (p *Pool) decodeSnapshot(b []byte) (snapshot, error) {
	const op = "pool.decode"
	var s snapshot
	if err := unpack(op, b, &s); err != nil {
		return s, err
	}
	if s.State == nil || len(s.Voters) > VotersMax {
		return s, fault.Newf(fault.Corrupt, op, "", "a snapshot without a state, or with more than %d voters", VotersMax)
	}
	if err := s.State.check(); err != nil {
		return s, err
	}
	if s.State.Pool != p.cfg.Pool {
		return s, fault.Newf(fault.Denied, op, s.State.Name, "the state is of pool %s, this node of pool %s", s.State.Pool.Short(), p.cfg.Pool.Short())
	}
	return s, nil
}

// submitAnswer is what became of a command at the node it was sent to.
type submitAnswer struct {
	// Version of the state that has the command's effect; 0 if there is none.
	Version uint64 `json:"version,omitempty"`
	// Refusal is Apply's, and final.
	Refusal *refusal `json:"refusal,omitempty"`
	// Pending: the command was proposed and may still be chosen.
	Pending bool `json:"pending,omitempty"`
	// Leader is whom to ask instead; zero: nobody is known, try again.
	Leader ident.NodeID `json:"leader"`
	Why    string       `json:"why,omitempty"` // of an answer that is neither
}

type refusal struct {
	Kind    fault.Kind `json:"kind"`
	Op      string     `json:"op"`
	Subject string     `json:"subject"`
	Text    string     `json:"text"`
}

// onSubmit answers a node that takes this one for the leader.
func (p *Pool) onSubmit(ctx context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	c, err := decodeCommand(body)
	if err != nil {
		return nil, err
	}
	return pack(p.submitHere(ctx, c)), nil
}

// onPull gives the state to a node that has an older one.
func (p *Pool) onPull(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	if len(body) != 8 {
		return nil, fault.Newf(fault.Invalid, "pool.pull", "", "message of %d bytes", len(body))
	}
	s := p.State()
	if s.Version <= binary.LittleEndian.Uint64(body) {
		return nil, nil
	}
	return pack(p.snapshot()), nil
}

func (p *Pool) snapshot() snapshot {
	return snapshot{State: p.State(), Voters: p.Voters(), AtLeast: p.atLeast.Load()}
}

func (p *Pool) onNews(from link.Peer, body []byte, _ bool) {
	if len(body) != 8 {
		return
	}
	p.mu.Lock()
	p.hint = from.ID()
	p.mu.Unlock()
	p.Notice(from.ID(), binary.LittleEndian.Uint64(body))
}

// spread tells all nodes that there is a new state. Who misses it learns it from
// a ping.
func (p *Pool) spread(s *State) {
	msg := binary.LittleEndian.AppendUint64(nil, s.Version)
	for _, n := range s.Nodes {
		if n.ID != p.self {
			_ = p.cfg.Transport.Send(n.ID, typeNews, msg) // not connected: see above
		}
	}
}

// Notice is told which version of the state another node has; the node's pings
// carry it. It never blocks: a newer state is pulled in the background, and who has an
// older one is told.
func (p *Pool) Notice(from ident.NodeID, version uint64) {
	if version <= p.State().Version {
		p.tellAhead(from, version)
		return
	}
	p.mu.Lock()
	if len(p.heard) < NodesMax {
		p.heard[from] = max(version, p.heard[from])
	}
	p.mu.Unlock()
	wake(p.pulls)
}

// onConnect makes a node that knows nothing yet ask those it meets.
func (p *Pool) onConnect(to ident.NodeID, up bool) {
	if !up || p.State().Version > 0 {
		return
	}
	p.mu.Lock()
	if len(p.met) < SeedsMax && !slices.Contains(p.met, to) {
		p.met = append(p.met, to)
	}
	p.mu.Unlock()
	p.Notice(to, 1)
}

// askAround asks again.
func (p *Pool) askAround() {
	p.mu.Lock()
	met := slices.Clone(p.met)
	p.mu.Unlock()
	for _, id := range met {
		p.Notice(id, 1)
	}
}

// pullLoop fetches newer states, from the node with the newest.
func (p *Pool) pullLoop(ctx context.Context) {
	loop(ctx, p.pulls, func() {
		for ctx.Err() == nil {
			from, ok := p.newest()
			if !ok {
				return
			}
			if err := p.pull(ctx, from); err != nil {
				p.log.Debug("state not pulled; the next ping tries again", "node", from.Short(), "err", err)
			}
		}
	})
}

// newest picks whom to pull from and forgets what it said: if pulling fails,
// its next ping says it again.
func (p *Pool) newest() (from ident.NodeID, ok bool) {
	has := p.State().Version
	p.mu.Lock()
	defer p.mu.Unlock()
	var best uint64
	for id, v := range p.heard {
		if v <= has {
			delete(p.heard, id)
		} else if v > best || v == best && id.Compare(from) < 0 {
			from, best = id, v
		}
	}
	delete(p.heard, from)
	return from, best > 0
}

// pull fetches the state of another node if it is newer.
func (p *Pool) pull(ctx context.Context, from ident.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, pullMax)
	defer cancel()
	b, err := p.cfg.Transport.Call(ctx, from, typePull, binary.LittleEndian.AppendUint64(nil, p.State().Version))
	if err != nil || len(b) == 0 {
		return err
	}
	s, err := p.decodeSnapshot(b)
	if err != nil {
		return err
	}
	p.take(s)
	return nil
}

// take takes over what another node has.
func (p *Pool) take(s snapshot) {
	p.bound(s.AtLeast)
	if len(s.Voters) > 0 && !p.votes() {
		p.mu.Lock()
		p.voters = slices.Clone(s.Voters)
		p.mu.Unlock()
	}
	p.publish(s.State)
}
