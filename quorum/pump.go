package quorum

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// pump carries out what the core has to send until there is nothing more.
func (p *Proposer) pump() {
	p.mu.Lock()
	if p.pumping {
		p.mu.Unlock()
		return // the other one fills again before it ends
	}
	p.pumping = true
	p.pumpOn(shiftMax)
}

// pumpOn pumps for so many rounds; then another goroutine goes on, as this one
// has work of its own. Begins under mu, ends without.
func (p *Proposer) pumpOn(rounds int) {
	for ; ; rounds-- {
		p.fill()
		if len(p.batch) == 0 {
			break
		}
		if rounds == 0 {
			p.work.Add(1) // not closed, or there would be nothing to send
			p.mu.Unlock()
			go func() {
				defer p.work.Done()
				p.sendBatch()
				p.mu.Lock()
				p.pumpOn(shiftMax)
			}()
			return
		}
		p.mu.Unlock()
		p.sendBatch()
		p.mu.Lock()
	}
	p.pumping = false
	if !p.ticking && !p.closed && (p.failed || p.core.Busy()) {
		p.ticking = true
		p.timer.Reset(SilentMax)
	}
	p.mu.Unlock()
}

// fill takes messages for every member, the local one last. Under mu.
func (p *Proposer) fill() {
	p.batch = p.batch[:0]
	if p.closed {
		return
	}
	for pass := range 2 {
		for i := range p.core.Peers() {
			m := p.core.Member(i)
			if (m.Node == p.cfg.Self) != (pass == 1) {
				continue
			}
			for bytes := 0; bytes < pumpBytes; {
				out, ok := p.core.Pull(i)
				if !ok {
					break
				}
				p.batch = append(p.batch, send{m, out})
				bytes += len(out.Body) + acceptSize
			}
		}
	}
}

// sendBatch carries out the batch, which has the messages of one member after
// those of another. Without mu; only the pumping goroutine.
func (p *Proposer) sendBatch() {
	flusher, _ := p.cfg.Transport.(link.Flusher)
	var own *brick
	for k := range p.batch {
		s := &p.batch[k]
		switch {
		case s.out.Kind == paxos.OutInstall:
			p.startInstall(s)
		case s.to.Node == p.cfg.Self:
			own = p.toOwn(s, own)
		default:
			more := k+1 < len(p.batch) && p.batch[k+1].to.Node == s.to.Node &&
				p.batch[k+1].out.Kind != paxos.OutInstall
			p.sendOne(s, flusher, more)
		}
		s.out.Body, s.out.Runs, s.out.Cuts, s.out.Checkpoint = nil, nil, nil, nil
	}
	p.bufs[1] = nil
	if own != nil {
		p.local.start(own)
	}
}

// sendOne sends to another node, holding the message back if more follow.
func (p *Proposer) sendOne(s *send, flusher link.Flusher, more bool) {
	typ := p.encode(s)
	var err error
	if flusher != nil && more {
		err = flusher.SendLater(s.to.Node, typ, p.bufs[:]...)
	} else {
		err = p.cfg.Transport.Send(s.to.Node, typ, p.bufs[:]...)
	}
	if err != nil {
		p.sendFailed(s.to)
	}
}

// encode lays a message out in p.bufs.
func (p *Proposer) encode(s *send) link.Type {
	r := p.request(s)
	p.hdr, p.bufs[1] = appendRequest(p.hdr[:0], &r), nil
	typ := typeProbe
	switch s.out.Kind {
	case paxos.OutOpen:
		typ = typeOpen
		p.hdr = appendCuts(p.hdr, s.out.Cuts)
	case paxos.OutAccept:
		typ = typeAccept
		p.hdr = binary.LittleEndian.AppendUint64(p.hdr, s.out.Slot)
		p.bufs[1] = s.out.Body
	case paxos.OutRenew:
		typ = typeRenew
		p.hdr = appendRuns(p.hdr, s.out.Runs)
	case paxos.OutSync:
		typ = typeSync
	}
	p.bufs[0] = p.hdr
	return typ
}

// request is the common part of a message. The ballot never changes, so this
// needs no lock.
func (p *Proposer) request(s *send) request {
	return request{group: p.cfg.Group, brick: s.to.Brick, ballot: p.core.Ballot(),
		stream: s.out.Stream, sync: s.out.Sync, bare: s.out.Bare, kind: s.out.EntryKind, commit: s.out.Commit}
}

// toOwn hands a message to the brick of a member on this node. prev is the brick of
// the message before, if that has yet to be started.
func (p *Proposer) toOwn(s *send, prev *brick) *brick {
	b := p.local.brick(s.to.Brick)
	if prev != nil && prev != b {
		p.local.start(prev)
	}
	if b == nil {
		r := p.request(s)
		p.local.refuse(asker{local: p}, &r, s.answer())
		return nil
	}
	if mutant.On("own-disk-inline") {
		p.direct(b, s)
		b.conclude()
		return b
	}
	b.inbox.put(job{to: asker{local: p}, send: *s})
	return b
}

// answer is the type of the answer to s.
func (s *send) answer() link.Type {
	if s.out.Kind == paxos.OutProbe {
		return typeState
	}
	return typeAccepted
}

// direct carries a message out at the member on this node, on its brick's goroutine.
func (p *Proposer) direct(b *brick, s *send) {
	r := p.request(s)
	to := asker{local: p}
	typ := s.answer()
	g := p.local.group(r.group, r.brick)
	if g == nil {
		p.local.refuse(to, &r, typ)
		return
	}
	var ans *answer
	switch s.out.Kind {
	case paxos.OutOpen:
		ans = g.open(&r, s.out.Cuts, to)
	case paxos.OutAccept:
		ans = g.accept(&r, &paxos.Accept{Ballot: r.ballot, Commit: r.commit,
			Slot: s.out.Slot, Kind: s.out.EntryKind, Body: s.out.Body, Stream: r.stream, Sync: r.sync, Bare: r.bare}, to)
	case paxos.OutRenew:
		ans = g.renew(&r, &paxos.Renew{Ballot: r.ballot, Commit: r.commit,
			Runs: s.out.Runs, Stream: r.stream, Sync: r.sync}, to)
	case paxos.OutSync:
		ans = g.sync(&r, to)
	case paxos.OutProbe:
		b.conclude()
		ans = g.probe(&r, to)
	}
	p.local.reply(to, ans, typ)
}

func (p *Proposer) sendFailed(m Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	if i := p.core.Index(m); i >= 0 {
		p.core.Connect(i, false)
		p.core.Advance()
	}
	p.observe()
	p.woken()
}

// startInstall runs an Install beside everything else.
func (p *Proposer) startInstall(s *send) {
	m := installCall{group: p.cfg.Group, brick: s.to.Brick, ballot: p.core.Ballot(),
		witness: s.out.Bare, checkpoint: *s.out.Checkpoint}
	to := s.to
	p.log.Info("a member gets the checkpoint", "group", p.cfg.Group.Short(), "node", to.Node.Short(),
		"up_to", m.checkpoint.UpTo)
	p.background(func() {
		ctx, cancel := context.WithTimeout(p.ctx, installTimeout)
		defer cancel()
		status := paxos.Broken
		var promised Ballot
		reply, err := p.cfg.Transport.Call(ctx, to.Node, typeInstall, appendInstall(nil, &m))
		if err == nil {
			status, promised, err = decodeInstallReply(reply)
		}
		if err != nil {
			p.log.Warn("installing failed", "group", p.cfg.Group.Short(), "node", to.Node.Short(), "error", err)
			if fault.Is(err, fault.NoSpace) {
				status = paxos.Full
			}
		}
		p.mu.Lock()
		if i := p.core.Index(to); i >= 0 {
			p.core.OnInstalled(i, status)
		}
		if status == paxos.Fenced {
			p.core.OnFenced(promised)
		}
		p.observe()
		p.mu.Unlock()
		p.notify()
		p.pump()
	})
}

// background runs f unless the proposer is closed; Close waits for it.
func (p *Proposer) background(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		f()
	}()
}

// onAnswer takes a member's answer.
func (p *Proposer) onAnswer(node ident.NodeID, ans *answer, state bool) {
	m := Member{Node: node, Brick: ans.brick}
	p.mu.Lock()
	i := p.core.Index(m)
	if i < 0 || p.closed {
		p.mu.Unlock()
		return
	}
	tell := false
	tight := p.core.SetTight(i, ans.tight)
	switch {
	case ans.status == paxos.Fenced:
		tell = p.core.OnFenced(ans.promised)
	case state:
		tell = p.core.OnState(i, ans.stream, ans.status,
			paxos.State{Opened: ans.opened, Received: ans.received, Durable: ans.durable, Runs: ans.runs})
	default:
		tell = p.core.OnAccepted(i, ans.stream, ans.status, ans.received, ans.durable)
	}
	if tight || state || ans.status != paxos.OK {
		p.observe()
		tell = true
	}
	if tell || p.wake != nil {
		p.woken()
	}
	p.mu.Unlock()
	if tell {
		p.notify()
	}
	p.pump()
}

// told is what is known to have been told of a member.
type told struct {
	state string
	tight bool
}

// observe counts changes of members and their states. Under mu.
func (p *Proposer) observe() {
	for i := range p.core.Peers() {
		v := p.core.View(i)
		if id, now := identity(v.Member), (told{v.State, v.Tight}); p.states[id] != now {
			p.states[id] = now
			p.members++
		}
	}
}

// notify makes the callbacks that are due, one goroutine at a time.
func (p *Proposer) notify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.notifying || !p.opened {
		return
	}
	p.notifying = true
	for shift := shiftMax; !p.closed; shift-- {
		if shift == 0 { // others have their turn; this goroutine has work of its own
			p.notifying = false
			p.work.Add(1)
			go func() {
				defer p.work.Done()
				p.notify()
			}()
			return
		}
		if r, d := p.core.Received(), p.core.Commit(); r != p.told.received || d != p.told.durable {
			p.told.received, p.told.durable = r, d
			if f := p.cfg.OnProgress; f != nil {
				p.mu.Unlock()
				f(r, d)
				p.mu.Lock()
			}
			continue
		}
		if by := p.core.Fenced(); !by.IsZero() && !p.told.fenced {
			p.told.fenced = true
			p.log.Warn("fenced by a higher ballot", "group", p.cfg.Group.Short(), "ballot", by.String())
			if f := p.cfg.OnFenced; f != nil {
				p.mu.Unlock()
				f(by)
				p.mu.Lock()
			}
			continue
		}
		if p.members != p.told.members {
			p.told.members = p.members
			if f := p.cfg.OnMembers; f != nil {
				p.mu.Unlock()
				f()
				p.mu.Lock()
			}
			continue
		}
		break
	}
	p.notifying = false
}

// connected is told by the transport, which must not be held up, that the way to
// a node came up or went down. Which, is asked later: two of these may overtake
// each other.
func (p *Proposer) connected(node ident.NodeID) {
	p.background(func() {
		p.mu.Lock()
		for i := range p.core.Peers() {
			if p.core.Member(i).Node == node {
				p.core.Connect(i, p.cfg.Transport.Connected(node))
			}
		}
		p.core.Advance()
		p.observe()
		p.woken()
		p.mu.Unlock()
		p.notify()
		p.pump()
	})
}

// tick comes SilentMax after there was something to wait for, and again while
// there is.
func (p *Proposer) tick() {
	p.background(func() {
		p.mu.Lock()
		p.ticking = false
		if p.failed {
			p.failed = false
			p.reconnect()
		}
		now := time.Now()
		for i := range p.core.Peers() {
			if v := p.core.View(i); v.Heard || !v.Owes {
				p.heard[identity(v.Member)] = now
			}
		}
		p.core.Tick()
		p.observe()
		p.woken()
		p.mu.Unlock()
		p.notify()
		p.pump()
	})
}
