package blockdev

import (
	"context"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum"
	"github.com/gabion-storage/gabion/target"
)

// claim says for whom and with what right a volume is attached.
type claim struct {
	// takeover takes it from a holder that others use.
	takeover bool
	// client is who asks; the zero Client is nobody that is known.
	client target.Client
	// progress is called when the opening got on; attach sets it.
	progress func()
}

// known is what a session of a named client has beside its volume.
type known struct {
	client target.Client
	ended  chan struct{} // closed to end the session from here; guarded by Manager.mu
	told   bool          // ended is closed
	closed chan struct{} // closed when the client's server is done with the session
}

var (
	_ target.Ender = (*session)(nil)
	_ target.Able  = (*Manager)(nil)
)

// Able implements target.Able. Without a majority of its voters in touch a
// holder answers no write, nor a read once the lease has run out, and others may
// take the volume over at about that time.
func (m *Manager) Able(name string) error {
	if isSnapshot(name) {
		return nil
	}
	d, err := m.find(name)
	if err != nil {
		return nil // whoever opens it is told
	}
	m.mu.Lock()
	a := m.vols[d.ID]
	m.mu.Unlock()
	if a == nil {
		return nil
	}
	select {
	case <-a.ready:
	default:
		return nil // it is being attached
	}
	if a.vol == nil || a.vol.inTouch() {
		return nil
	}
	return fault.Newf(fault.Unavailable, "volume", name, "this node holds it and is cut off from most nodes that have its log")
}

// inTouch tells whether a majority of the voters has answered lately.
func (v *Volume) inTouch() bool {
	var voters []ident.NodeID
	for _, m := range v.log.Members().Members {
		if m.Role != quorum.Learner {
			voters = append(voters, m.Node)
		}
	}
	return v.cfg.View.LeaseValid(voters)
}

// Resume implements target.Resumer. A session is over for the protocol server
// only when the volume has completed whatever it had been given, so waiting for
// the earlier sessions' Close is waiting for the last of their operations.
// Those that another node holds end with its attachment: its ballot is fenced.
func (m *Manager) Resume(ctx context.Context, name, peer string, c target.Client) (target.Session, <-chan struct{}, error) {
	if isSnapshot(name) { // nothing of an earlier session can land on it
		return m.openSnapshot(ctx, name, peer)
	}
	d, err := m.find(name)
	if err != nil {
		return nil, nil, err
	}
	for {
		a, err := m.locked(ctx, d, claim{takeover: c.Force, client: c})
		if err != nil {
			return nil, nil, err
		}
		rivals, err := a.rivals(name, c)
		if err != nil {
			m.mu.Unlock()
			return nil, nil, err
		}
		if len(rivals) == 0 {
			s, gone := m.enter(a, peer, c)
			m.mu.Unlock()
			return s, gone, nil
		}
		for _, r := range rivals {
			r.known.end()
		}
		if mutant.On("resume-at-once") {
			s, gone := m.enter(a, peer, c)
			m.mu.Unlock()
			return s, gone, nil
		}
		m.mu.Unlock()
		for _, r := range rivals {
			select {
			case <-r.known.closed:
			case <-ctx.Done():
				return nil, nil, fault.Newf(fault.Timeout, "volume attach", name, "operations of an earlier session are still under way")
			}
		}
	}
}

// end has the session end, under Manager.mu.
func (k *known) end() {
	if !k.told {
		k.told = true
		close(k.ended)
	}
}

// recall ends the sessions of named clients with a volume that grew. They come
// back at once and are told the new size: NBD has no notice that would do it on
// a connection that stays.
func (m *Manager) recall(v *Volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.vols[v.cfg.ID]; a != nil && a.vol == v {
		for s := range a.named {
			s.known.end()
		}
	}
}

// rivals lists the sessions that must end before c may have one, under
// Manager.mu; an error when it is c that must not.
func (a *attached) rivals(name string, c target.Client) (out []*session, err error) {
	for s := range a.named {
		o := s.known.client
		switch {
		case o.ID == c.ID && o.Session > c.Session:
			return nil, fault.Newf(fault.Fenced, "volume attach", name, "the same client has a later session")
		case o.ID == c.ID && o.Session == c.Session:
		case o.ID == c.ID, c.Force:
			out = append(out, s)
		default:
			return nil, fault.Newf(fault.Busy, "volume attach", name,
				"another client has it attached; detach it there, or take it over with: gabion attach %s --takeover", name)
		}
	}
	return out, nil
}

// enter registers a session of a named client, under Manager.mu.
func (m *Manager) enter(a *attached, peer string, c target.Client) (*session, <-chan struct{}) {
	s := &session{Volume: a.vol, known: &known{client: c, ended: make(chan struct{}), closed: make(chan struct{})}}
	a.sessions++
	a.clients[peer]++
	a.named[s] = struct{}{}
	s.close = func() {
		m.mu.Lock()
		a.sessions--
		if a.clients[peer]--; a.clients[peer] <= 0 {
			delete(a.clients, peer)
		}
		delete(a.named, s)
		m.mu.Unlock()
		close(s.known.closed)
	}
	gone := make(chan struct{})
	go func() {
		select {
		case <-a.vol.Gone():
			close(gone)
		case <-s.known.ended:
			close(gone)
		case <-s.known.closed:
		}
	}()
	return s, gone
}

// onlyOf tells whether nobody but earlier sessions of the asking client uses
// the volume, under Manager.mu.
func (a *attached) onlyOf(req releaseRequest) bool {
	if len(req.Client) != len(target.Client{}.ID) || a.sessions == 0 || a.sessions != len(a.named) {
		return false
	}
	for s := range a.named {
		if s.known.client.ID != [16]byte(req.Client) || s.known.client.Session >= req.Session {
			return false
		}
	}
	return true
}
