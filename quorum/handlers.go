package quorum

import (
	"sync"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// handle registers every message type.
func (a *Acceptors) handle(t link.Transport) {
	for _, typ := range []link.Type{typeOpen, typeAccept, typeRenew, typeSync, typeProbe} {
		t.Handle(typ, func(from link.Peer, body []byte, more bool) { a.enqueue(from, typ, body, more) })
	}
	t.Handle(typeAccepted, func(from link.Peer, body []byte, more bool) { a.onAnswer(from, body, false) })
	t.Handle(typeState, func(from link.Peer, body []byte, more bool) { a.onAnswer(from, body, true) })
	t.HandleCall(typeQuery, a.onQuery)
	t.HandleCall(typePrepare, a.onPrepare)
	t.HandleCall(typeFetch, a.onFetch)
	t.HandleCall(typeInstall, a.onInstall)
	t.HandleCall(typeCreate, a.onCreate)
	t.HandleCall(typeRetire, a.onRetire)
	t.HandleCall(typeInspect, a.onInspect)
	t.HandleCall(typeForce, a.onForce)
	t.OnConnect(a.onConnect)
}

func (a *Acceptors) damaged(from link.Peer, what string, err error) {
	a.log.Warn("a message does not decode", "from", from.ID().Short(), "message", what, "error", err)
}

// refuse answers for a group that is not here. That it was dropped is found out
// by the Install that follows, as it takes a look at the disk.
func (a *Acceptors) refuse(to asker, r *request, typ link.Type) {
	ans := answer{group: r.group, brick: r.brick, ballot: r.ballot, stream: r.stream,
		status: paxos.NoGroup}
	a.mu.RLock()
	if a.bricks[r.brick] == nil {
		ans.status = paxos.NoBrick
	}
	a.mu.RUnlock()
	a.deliver(to, &ans, typ)
}

func (a *Acceptors) reply(to asker, ans *answer, typ link.Type) {
	if ans != nil {
		a.deliver(to, ans, typ)
	}
}

// answerBuf keeps the answer path free of allocations.
type answerBuf struct {
	data []byte
	bufs [1][]byte
}

var answerBufs = sync.Pool{New: func() any { return &answerBuf{data: make([]byte, 0, 256)} }}

// deliver sends an answer, or hands it over. A lost one is made up for by the
// proposer's probe.
func (a *Acceptors) deliver(to asker, ans *answer, typ link.Type) {
	switch {
	case to.local != nil:
		to.local.onAnswer(a.cfg.Transport.Self(), ans, typ == typeState)
	case to.peer != nil:
		b := answerBufs.Get().(*answerBuf)
		b.data = appendAnswer(b.data[:0], ans, typ == typeState)
		b.bufs[0] = b.data
		_ = to.peer.Send(typ, b.bufs[:]...) // Unavailable: the proposer will probe
		answerBufs.Put(b)
	}
}

func (a *Acceptors) onAnswer(from link.Peer, body []byte, state bool) {
	var ans answer
	if err := decodeAnswer(body, &ans, state); err != nil {
		a.damaged(from, "answer", err)
		return
	}
	if p := a.proposer(ans.group, ans.ballot); p != nil {
		p.onAnswer(from.ID(), &ans, state)
	}
}

func (a *Acceptors) proposer(group ident.GroupID, b Ballot) *Proposer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.proposers[proposerKey{group, b}]
}

func (a *Acceptors) onConnect(to ident.NodeID, up bool) {
	if up {
		a.doubt(to)
	}
	a.mu.RLock()
	ps := make([]*Proposer, 0, len(a.proposers))
	for _, p := range a.proposers {
		ps = append(ps, p)
	}
	a.mu.RUnlock()
	for _, p := range ps {
		p.connected(to)
	}
}
