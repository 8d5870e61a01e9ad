package client

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// session is one connection in transmission. Fields below mu's line belong to
// Engine.mu.
type session struct {
	e    *Engine
	node Node
	nc   net.Conn
	in   *bufio.Reader
	out  *bufio.Writer // the sender's
	wg   sync.WaitGroup
	wake chan struct{} // to the writer; one fits

	// Under Engine.mu.
	queue    []*op // admitted, not written yet
	spare    []*op
	sending  bool
	parting  bool          // DISC is the last that is sent
	dead     chan struct{} // closed by fail
	why      error
	heard    time.Time // the last answer, or when requests began to be under way
	probed   time.Time // the last probe that went well
	probing  bool
	watching bool // a tick is coming
}

func newSession(e *Engine, w *wire) *session {
	return &session{
		e: e, node: w.node, nc: w.nc, in: w.in, out: bufio.NewWriterSize(w.nc, 128<<10),
		wake: make(chan struct{}, 1), dead: make(chan struct{}), heard: time.Now(),
	}
}

func (s *session) start() {
	s.wg.Add(2)
	go s.receive()
	go s.writer()
}

// fail ends the session, under Engine.mu. The first reason counts.
func (s *session) fail(why error) {
	if s.why != nil {
		return
	}
	s.why = why
	close(s.dead)
	s.nc.Close()
}

func (s *session) lost(err error) {
	s.e.mu.Lock()
	s.fail(err)
	s.e.mu.Unlock()
}

// writer sends for those who must not wait for the socket: the receiver, whose
// waiting would keep the server from reading, and completions.
func (s *session) writer() {
	defer s.wg.Done()
	for {
		select {
		case <-s.wake:
			s.send()
		case <-s.dead:
			return
		}
	}
}

// call has the writer send what is queued.
func (s *session) call() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// send writes what is queued, unless somebody else is at it. It may wait for
// the socket.
func (s *session) send() {
	e := s.e
	e.mu.Lock()
	for !s.sending && !s.parting && s.why == nil && len(s.queue) > 0 {
		s.sending = true
		batch := s.queue
		s.queue = s.spare[:0]
		e.mu.Unlock()
		err := s.write(batch)
		e.mu.Lock()
		clear(batch)
		s.spare = batch[:0]
		s.sending = false
		if err != nil {
			s.fail(err)
		}
		e.sent.Broadcast()
	}
	e.mu.Unlock()
}

// write puts a batch on the wire. Each op in it is held by a reference of its own.
func (s *session) write(batch []*op) (err error) {
	var h [proto.RequestSize]byte
	for _, o := range batch {
		r := proto.Request{Flags: o.flags, Cmd: o.cmd, Cookie: o.cookie, Offset: uint64(o.off), Length: uint64(o.n)}
		if err == nil {
			_, err = s.out.Write(proto.Simple.AppendRequest(h[:0], r))
		}
		if err == nil && o.cmd == proto.CmdWrite {
			_, err = s.out.Write(o.buf.b)
		}
		o.release()
	}
	if err == nil {
		err = s.out.Flush()
	}
	return err
}

// receive takes answers until the session ends.
func (s *session) receive() {
	defer s.wg.Done()
	for {
		if err := s.answer(); err != nil {
			s.lost(err)
			return
		}
		if s.in.Buffered() < proto.SimpleReplySize {
			s.e.mu.Lock()
			more := s.e.advance()
			s.e.mu.Unlock()
			if more {
				s.call()
			}
		}
	}
}

// answer takes one answer.
func (s *session) answer() error {
	h, err := s.in.Peek(proto.SimpleReplySize)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return fault.Newf(fault.Unavailable, "attach", s.node.String(), "the node closed the connection")
		}
		return err
	}
	errno, cookie, err := proto.DecodeSimpleReply(h)
	if err != nil {
		return err
	}
	_, _ = s.in.Discard(proto.SimpleReplySize) // buffered
	o := s.e.find(cookie)
	switch {
	case o == nil:
		return fault.Newf(fault.Invalid, "attach", s.node.String(), "an answer to a request that was not made")
	case errno == proto.ESHUTDOWN:
		return fault.Newf(fault.Fenced, "attach", s.node.String(), "the node no longer serves the volume")
	case errno != proto.OK:
		s.e.finish(s, o, errnoError(s.e.cfg.Volume, errno))
		return nil
	}
	if o.cmd == proto.CmdRead {
		if _, err := io.ReadFull(s.in, o.buf.b); err != nil {
			return err
		}
	}
	s.e.finish(s, o, nil)
	return nil
}

// errnoError turns an answer back into the failure that it stands for.
func errnoError(volume string, e proto.Errno) error {
	kind := fault.Internal
	switch e {
	case proto.EINVAL:
		kind = fault.Invalid
	case proto.ENOSPC:
		kind = fault.NoSpace
	case proto.EPERM:
		kind = fault.ReadOnly
	}
	return fault.Newf(kind, "attach", volume, "the node answers %v; its log says why", e)
}

// watch makes sure that the clock looks at the session while requests are under
// way, and not at all when there are none. Under Engine.mu.
func (s *session) watch() {
	if !s.watching {
		s.watching = true
		time.AfterFunc(s.e.cfg.ProbeAfter/2, s.tick)
	}
}

// oldFactor is how many times StuckAfter one request may wait while others are
// answered: less than what a node takes to fail it.
const oldFactor = 4

// tick looks for how long nothing was answered.
func (s *session) tick() {
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.why != nil || e.inflight == 0 {
		s.watching = false
		return
	}
	time.AfterFunc(e.cfg.ProbeAfter/2, s.tick)
	now := time.Now()
	quiet := now.Sub(s.heard)
	switch {
	case quiet >= e.cfg.StuckAfter:
		s.fail(errSilent{fmt.Errorf("%s greets but has answered nothing for %v", s.node, quiet.Round(time.Millisecond))})
	case e.oldest(now) >= oldFactor*e.cfg.StuckAfter:
		s.fail(errSilent{fmt.Errorf("%s has not answered a request for %v", s.node, oldFactor*e.cfg.StuckAfter)})
	case quiet >= e.cfg.ProbeAfter && !s.probing && now.Sub(s.probed) >= e.cfg.ProbeAfter:
		s.probing = true
		e.wg.Go(s.probe)
	}
}

// errSilent is the reason of a session whose node may live and yet be of no use.
type errSilent struct{ error }

func (s *session) probe() {
	err := probe(s.e.ctx, s.node, s.e.cfg.TLS, s.e.cfg.Volume, s.e.cfg.DialTimeout)
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.probing, s.probed = false, time.Now()
	// An answer meanwhile says more than a greeting that did not come.
	if err != nil && s.e.inflight > 0 && time.Since(s.heard) >= s.e.cfg.ProbeAfter {
		s.fail(errSilent{fmt.Errorf("%s answers nothing: %w", s.node, err)})
	}
}
