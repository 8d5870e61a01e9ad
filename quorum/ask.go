package quorum

import (
	"context"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
)

const (
	// AskInterval is how long a member that did not answer is left alone before
	// it is asked again.
	AskInterval = 200 * time.Millisecond
	// askTimeout bounds one question: a disk that syncs slowly must make it.
	askTimeout = 5 * time.Second
)

// asking puts one question to several members, each on a goroutine of its own,
// again and again until each has answered. The answers, and failures in
// between, come out of results.
type asking[T any] struct {
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	results chan result[T]
	asked   map[Member]bool // by identity
}

type result[T any] struct {
	from  Member
	value T
	err   error // of this attempt; another follows
}

func newAsking[T any](ctx context.Context) *asking[T] {
	a := &asking[T]{results: make(chan result[T]), asked: make(map[Member]bool)}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

// ask begins to ask m, unless it is being asked.
func (a *asking[T]) ask(m Member, question func(context.Context) (T, error)) {
	m = identity(m)
	if a.asked[m] {
		return
	}
	a.asked[m] = true
	a.running.Add(1)
	go func() {
		defer a.running.Done()
		for {
			ctx, cancel := context.WithTimeout(a.ctx, askTimeout)
			v, err := question(ctx)
			cancel()
			select {
			case a.results <- result[T]{m, v, err}:
			case <-a.ctx.Done():
				return
			}
			if err == nil {
				return
			}
			select {
			case <-time.After(AskInterval):
			case <-a.ctx.Done():
				return
			}
		}
	}()
}

// again lets m be asked once more.
func (a *asking[T]) again(m Member) { delete(a.asked, identity(m)) }

// stop ends all questions and waits for them.
func (a *asking[T]) stop() {
	a.cancel()
	a.running.Wait()
}

// queryNode asks one node what it knows of a group.
func queryNode(ctx context.Context, t link.Transport, node ident.NodeID, group ident.GroupID) (queryReply, error) {
	return queryFor(ctx, t, node, group, ident.BrickID{})
}

// queryFor also asks whether the node's proposer feeds a brick of this node.
func queryFor(ctx context.Context, t link.Transport, node ident.NodeID, group ident.GroupID, brick ident.BrickID) (queryReply, error) {
	body := append(append(make([]byte, 0, 32), group[:]...), brick[:]...)
	reply, err := t.Call(ctx, node, typeQuery, body)
	if err != nil {
		return queryReply{}, err
	}
	return decodeQueryReply(reply)
}
