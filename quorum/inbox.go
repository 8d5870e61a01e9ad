package quorum

import (
	"sync"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

// What proposers send to the members on a brick is carried out by one goroutine of that
// brick, in the order in which it came, this node's own proposers' messages like
// all others. A disk that is slow or hangs holds up that goroutine and nothing
// else: neither the readers of connections, nor a holder whose own copy lies there
// while the other members go on. The goroutine ends when it finds nothing more.

const (
	// inboxBytesMax bounds what waits for one brick; beyond it messages are lost, as
	// on a connection that ends: the proposer probes.
	inboxBytesMax = 64 << 20
	// inboxKeepMax is the longest message whose buffer is used again.
	inboxKeepMax = 16 << 10
)

// job is one message for a member on a brick.
type job struct {
	to   asker
	typ  link.Type
	data *jobData // of a message; nil if local
	send send     // of this node's own proposer
}

type jobData struct{ b []byte }

var jobBuffers = sync.Pool{New: func() any { return &jobData{b: make([]byte, 0, 4096+acceptSize)} }}

// size is what a job counts against inboxBytesMax.
func (j *job) size() int {
	if j.data != nil {
		return len(j.data.b) + acceptSize
	}
	return len(j.send.out.Body) + acceptSize
}

// inbox is what waits for a brick.
type inbox struct {
	mu      sync.Mutex
	jobs    []job
	spare   []job // for reuse
	bytes   int
	working bool
}

// put adds a job; false if there is no room.
func (in *inbox) put(j job) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := j.size()
	if in.bytes+n > inboxBytesMax {
		return false
	}
	in.bytes += n
	in.jobs = append(in.jobs, j)
	return true
}

// take returns all jobs, or ends the work if there are none.
func (in *inbox) take() []job {
	in.mu.Lock()
	defer in.mu.Unlock()
	jobs := in.jobs
	in.jobs, in.spare = in.spare, nil
	in.working = len(jobs) > 0
	if !in.working {
		in.spare = jobs
	}
	return jobs
}

// done gives the jobs back.
func (in *inbox) done(jobs []job) {
	n := 0
	for i := range jobs {
		n += jobs[i].size()
		if d := jobs[i].data; d != nil && cap(d.b) <= inboxKeepMax {
			jobBuffers.Put(d)
		}
	}
	clear(jobs)
	in.mu.Lock()
	in.bytes -= n
	in.spare = jobs[:0]
	in.mu.Unlock()
}

// start lets the brick's goroutine run, if there is something to do.
func (a *Acceptors) start(b *brick) {
	b.inbox.mu.Lock()
	begin := !b.inbox.working && len(b.inbox.jobs) > 0
	b.inbox.working = b.inbox.working || begin
	b.inbox.mu.Unlock()
	if begin {
		go b.work()
	}
}

func (a *Acceptors) work(b *brick) {
	for {
		jobs := b.inbox.take()
		if len(jobs) == 0 {
			return
		}
		for i := range jobs {
			if a.over.Load() {
				break // the brick may be closed
			}
			a.carryOut(b, &jobs[i])
		}
		b.conclude()
		b.inbox.done(jobs)
	}
}

func (a *Acceptors) brick(id ident.BrickID) *brick {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.bricks[id]
}

// enqueue handles a message of a proposer at another node. While more are at hand,
// the brick's goroutine is not woken for each.
func (a *Acceptors) enqueue(from link.Peer, typ link.Type, body []byte, more bool) {
	var r request
	if _, err := decodeRequest(body, &r); err != nil || r.ballot.Node != from.ID() {
		a.damaged(from, "request", err)
	} else if b := a.brick(r.brick); b == nil {
		a.refuse(asker{peer: from}, &r, answerTo(typ))
	} else {
		d := jobBuffers.Get().(*jobData)
		d.b = append(d.b[:0], body...)
		if b.inbox.put(job{to: asker{peer: from}, typ: typ, data: d}) && !more {
			a.start(b)
		} else if more {
			a.held.Store(true)
		}
	}
	if !more && a.held.Swap(false) {
		a.mu.RLock()
		defer a.mu.RUnlock()
		for _, b := range a.bricks {
			a.start(b)
		}
	}
}

// answerTo is the type of the answer to a request.
func answerTo(typ link.Type) link.Type {
	if typ == typeProbe {
		return typeState
	}
	return typeAccepted
}

// carryOut does what one message asks.
func (a *Acceptors) carryOut(b *brick, j *job) {
	if j.to.local != nil {
		j.to.local.direct(b, &j.send)
		return
	}
	var r request
	_, err := decodeRequest(j.data.b, &r)
	if j.typ == typeProbe {
		b.conclude() // what came before must be in the answer
	}
	g := a.group(r.group, r.brick)
	if g == nil {
		a.refuse(j.to, &r, answerTo(j.typ))
		return
	}
	var ans *answer
	switch j.typ {
	case typeOpen:
		var cuts []paxos.Cut
		if cuts, err = decodeOpen(j.data.b, &r); err == nil {
			ans = g.open(&r, cuts, j.to)
		}
	case typeAccept:
		var m paxos.Accept
		if err = decodeAccept(j.data.b, &r, &m); err == nil {
			ans = g.accept(&r, &m, j.to)
		}
	case typeRenew:
		var m paxos.Renew
		if err = decodeRenew(j.data.b, &r, &m); err == nil {
			ans = g.renew(&r, &m, j.to)
		}
	case typeSync:
		if err = decodeBare(j.data.b, &r); err == nil {
			ans = g.sync(&r, j.to)
		}
	case typeProbe:
		if err = decodeBare(j.data.b, &r); err == nil {
			ans = g.probe(&r, j.to)
		}
	}
	if err != nil {
		a.damaged(j.to.peer, "request", err)
	}
	a.reply(j.to, ans, answerTo(j.typ))
}

// conclude answers everything owed by the groups of the brick. Only its goroutine.
func (b *brick) conclude() {
	for i, g := range b.dirty {
		b.dirty[i] = nil
		g.conclude()
	}
	b.dirty = b.dirty[:0]
}
