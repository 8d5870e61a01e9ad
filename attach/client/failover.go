package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

const (
	// preferFor is how long the best node may take to greet before another that
	// has greeted is taken.
	preferFor = 150 * time.Millisecond
	// retryMin and retryMax bound the pause between rounds of attempts.
	retryMin, retryMax = 50 * time.Millisecond, time.Second
	// dialFactor is how many times DialTimeout a round may take when others failed.
	dialFactor = 8
	// nodesMax bounds the nodes that are tried in one round.
	nodesMax = 64
)

// run keeps the engine in a session until Close.
func (e *Engine) run(s *session) {
	for s != nil {
		<-s.dead
		s.wg.Wait()
		e.mu.Lock()
		for s.sending {
			e.sent.Wait()
		}
		e.lostAt = time.Now()
		if e.inflight > 0 {
			e.lostAt = s.heard // the pause began when answers ceased
		}
		e.lose(s)
		cause := s.why
		closed := e.closed
		e.state.Node, e.state.Since, e.state.Cause = Node{}, e.lostAt, cause.Error()
		e.mu.Unlock()
		e.changedState()
		if closed {
			return
		}
		e.cfg.Log.Warn("session lost", "node", s.node.String(), "cause", cause)
		s = e.reconnect(s.node, cause)
	}
}

// reconnect repeats rounds until there is a session; nil after Close.
func (e *Engine) reconnect(left Node, cause error) *session {
	// The node left behind is the first choice, for the volume need not move
	// then, unless it said itself that it is over or does not answer.
	var silent errSilent
	last := errors.As(cause, &silent) || fault.Is(cause, fault.Fenced)
	pause, dial := retryMin, e.cfg.DialTimeout
	for {
		w, x, err := e.round(e.ctx, left, last, dial)
		if err == nil {
			if x.size > e.Size() {
				e.size.Store(x.size)
			}
			return e.begin(w)
		}
		if e.ctx.Err() != nil {
			return nil
		}
		e.cfg.Log.Info("no session yet", "error", err)
		if e.cfg.RequestTimeout > 0 {
			e.mu.Lock()
			old := e.expire(time.Now().Add(-e.cfg.RequestTimeout))
			e.mu.Unlock()
			end(old, fault.Newf(fault.Timeout, "attach", e.cfg.Volume, "no node served it for %v: %w", e.cfg.RequestTimeout, err))
		}
		t := time.NewTimer(pause)
		select {
		case <-e.ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		// On machines that are short of processor time even greetings are late.
		pause, dial = min(2*pause, retryMax), min(2*dial, dialFactor*e.cfg.DialTimeout)
	}
}

// begin starts a session on a connection and what is to be repeated on it.
func (e *Engine) begin(w *wire) *session {
	s := newSession(e, w)
	e.mu.Lock()
	e.sess = s
	e.resent = e.again.len()
	if e.closed { // part has seen no session
		s.fail(errClosed(e.cfg.Volume))
	}
	e.advance()
	e.mu.Unlock()
	s.start()
	s.call()
	return s
}

// serving notes that everything is repeated, under Engine.mu.
func (e *Engine) serving(s *session) {
	e.state.Node, e.state.Since = s.node, time.Now()
	if !e.lostAt.IsZero() {
		pause := time.Since(e.lostAt)
		e.state.Moves++
		e.state.LastPause, e.state.LongestPause = pause, max(pause, e.state.LongestPause)
		e.cfg.Log.Warn("session resumed", "node", s.node.String(), "pause_ms", pause.Milliseconds(),
			"changes_repeated", e.resent, "waiting", e.waiting.len())
	}
	e.changedState()
}

// changedState has OnChange told. It never waits.
func (e *Engine) changedState() {
	select {
	case e.notify <- struct{}{}:
	default:
	}
}

func (e *Engine) tell() {
	for {
		select {
		case <-e.notify:
			if e.cfg.OnChange != nil {
				e.cfg.OnChange(e.State())
			}
		case <-e.ctx.Done():
			return
		}
	}
}

// candidates are the nodes to try, best first.
func (e *Engine) candidates(left Node, last bool) []Node {
	var out []Node
	for _, n := range e.cfg.Nodes() {
		if n.Addr != "" && !slices.ContainsFunc(out, func(x Node) bool { return x.Addr == n.Addr }) && len(out) < nodesMax {
			out = append(out, n)
		}
	}
	i := slices.IndexFunc(out, func(x Node) bool { return x.Addr == left.Addr })
	switch {
	case left.Addr == "":
	case i < 0 && last:
	case i < 0:
		out = slices.Insert(out, 0, left)
	case last:
		out = append(slices.Delete(out, i, i+1), left)
	default:
		out = slices.Insert(slices.Delete(out, i, i+1), 0, left)
	}
	return out
}

// greeting is what became of connecting to candidate i.
type greeting struct {
	i   int
	w   *wire
	err error
}

// staleShare is the part of OpenTimeout for which a connection that greeted is
// good: a node gives a client some time for its handshake, and does not wait for
// those that ask elsewhere meanwhile.
const staleShare = 3

// round greets all candidates at once, so that those that are silent cost
// nothing, and asks those that greeted for a session, one after the other, for
// asking makes a node take the volume over. It returns a connection with a
// session, or why there is none.
func (e *Engine) round(ctx context.Context, left Node, last bool, dial time.Duration) (*wire, export, error) {
	nodes := e.candidates(left, last)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan greeting, len(nodes))
	for i, n := range nodes {
		e.wg.Go(func() {
			w, err := greet(ctx, n, e.cfg.TLS, dial)
			results <- greeting{i, w, err}
		})
	}
	began := time.Now()
	tried := make([]error, len(nodes))
	ready := make([]*wire, len(nodes))
	pending := len(nodes)
	defer func() { // what greeted and was not taken
		for _, w := range ready {
			if w != nil {
				w.nc.Close()
			}
		}
		for range pending {
			e.wg.Go(func() {
				if g := <-results; g.w != nil {
					g.w.nc.Close()
				}
			})
		}
	}()
	patience := time.NewTimer(preferFor)
	defer patience.Stop()
	waited := false
	for {
		i := choose(ready, tried, waited || pending == 0)
		if i >= 0 {
			w := ready[i]
			ready[i] = nil
			if time.Since(began) > e.cfg.OpenTimeout/staleShare {
				w.nc.Close()
				if w, tried[i] = greet(ctx, nodes[i], e.cfg.TLS, dial); w == nil {
					continue
				}
			}
			x, err := e.ask(ctx, w)
			if err == nil {
				return w, x, nil
			}
			w.nc.Close()
			tried[i] = err
			continue
		}
		if pending == 0 {
			return nil, export{}, e.verdict(tried)
		}
		select {
		case g := <-results:
			pending--
			ready[g.i], tried[g.i] = g.w, g.err
		case <-patience.C:
			waited = true
		}
	}
}

// choose is the candidate to ask: the best one unless it is still awaited, or,
// after some waiting, the best of those that are ready; -1 for none yet.
func choose(ready []*wire, tried []error, waited bool) int {
	for i, w := range ready {
		switch {
		case w != nil:
			return i
		case tried[i] == nil && !waited:
			return -1
		}
	}
	return -1
}

// ask asks a node that greeted for a session.
func (e *Engine) ask(ctx context.Context, w *wire) (export, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.OpenTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { w.nc.Close() })
	e.mu.Lock()
	e.attempt++
	who := proto.SessionOption{ID: e.cfg.ID, Session: uint64(e.cfg.Start)<<32 | uint64(e.attempt),
		Force: e.cfg.Force && e.first.size == 0}
	e.mu.Unlock()
	x, err := w.enter(e.cfg.Volume, who)
	switch {
	case err == nil && !stop():
		return x, fault.New(fault.Timeout, "attach", w.node.String(), ctx.Err())
	case err == nil:
		return x, e.same(w.node, x)
	case ctx.Err() != nil:
		stop()
		return x, fault.Newf(fault.Timeout, "attach", w.node.String(), "no session within %v", e.cfg.OpenTimeout)
	}
	stop()
	var f *fault.Error
	if errors.As(err, &f) {
		return x, err
	}
	return x, fault.New(fault.Unavailable, "attach", w.node.String(), err)
}

// same refuses what is not the volume that was attached at first, and a node
// that does not know yet how large it has become.
func (e *Engine) same(n Node, x export) error {
	f := e.first
	if f.size == 0 || x.description == f.description && x.blockSize == f.blockSize && x.size >= e.Size() &&
		x.flags&proto.FlagReadOnly == f.flags&proto.FlagReadOnly {
		return nil
	}
	return fault.Newf(fault.Conflict, "attach", n.String(), "the volume there is another one of the same name: %q, %d bytes; it was %q, %d bytes",
		x.description, x.size, f.description, e.Size())
}

// verdict makes one error of what all candidates said. A reason says more than
// a node that is out of reach.
func (e *Engine) verdict(tried []error) error {
	if len(tried) == 0 {
		return fault.Newf(fault.Unavailable, "attach", e.cfg.Volume, "no node's NBD address is known; name one with --node HOST:PORT")
	}
	best := tried[0]
	var texts []string
	for _, err := range tried {
		if fault.Is(best, fault.Unavailable) {
			best = err
		}
		texts = append(texts, fmt.Sprint(err))
	}
	return fault.Newf(fault.KindOf(best), "attach", e.cfg.Volume, "%s", strings.Join(texts, "; "))
}
