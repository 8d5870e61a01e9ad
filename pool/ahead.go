package pool

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
)

// A node that was away may find nobody alive but nodes that joined meanwhile. They have
// its address; it has none of theirs, and so cannot pull from them. Whoever hears an older
// version than its own says so, the other asks back on the same connection, and is
// given the state.

// wantInterval is the least time between two questions for the state.
const wantInterval = time.Second

// tellAhead tells a node that this one has a newer state.
func (p *Pool) tellAhead(to ident.NodeID, has uint64) {
	if mine := p.State().Version; has < mine && !mutant.On("pull-only") {
		_ = p.cfg.Transport.Send(to, typeAhead, binary.LittleEndian.AppendUint64(nil, mine)) // else the next ping
	}
}

// onAhead pulls from a node that has a newer state, or asks for it if this node cannot
// call that one.
func (p *Pool) onAhead(from link.Peer, body []byte, _ bool) {
	mine := p.State().Version
	if len(body) != 8 || binary.LittleEndian.Uint64(body) <= mine {
		return
	}
	if p.cfg.Transport.Connected(from.ID()) {
		p.Notice(from.ID(), binary.LittleEndian.Uint64(body))
		return
	}
	p.mu.Lock()
	early := !p.wanted.IsZero() && time.Since(p.wanted) < wantInterval
	if !early {
		p.wanted = time.Now()
	}
	p.mu.Unlock()
	if !early {
		_ = from.Send(typeWant, binary.LittleEndian.AppendUint64(nil, mine))
	}
}

// onWant notes that a node wants to be given the state.
func (p *Pool) onWant(from link.Peer, body []byte, _ bool) {
	if len(body) != 8 || binary.LittleEndian.Uint64(body) >= p.State().Version {
		return
	}
	p.mu.Lock()
	if len(p.wants) < NodesMax {
		p.wants[from.ID()] = struct{}{}
	}
	p.mu.Unlock()
	wake(p.gives)
}

// giveLoop gives the state to those who want it.
func (p *Pool) giveLoop(ctx context.Context) {
	loop(ctx, p.gives, func() {
		p.mu.Lock()
		to := p.wants
		p.wants = map[ident.NodeID]struct{}{}
		p.mu.Unlock()
		for id := range to {
			if err := p.give(ctx, id); err != nil {
				p.log.Debug("state not given; it will ask again", "node", id.Short(), "err", err)
			}
		}
	})
}

func (p *Pool) give(ctx context.Context, to ident.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, pullMax)
	defer cancel()
	_, err := p.cfg.Transport.Call(ctx, to, typeGive, pack(p.snapshot()))
	return err
}

// onGive takes over the state of another node if it is newer.
func (p *Pool) onGive(_ context.Context, _ ident.NodeID, body []byte) ([]byte, error) {
	s, err := p.decodeSnapshot(body)
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "pool.give", "", err)
	}
	p.take(s)
	return nil, nil
}
