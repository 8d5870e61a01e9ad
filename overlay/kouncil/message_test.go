package kouncil

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/link"
	"github.com/gabion-storage/gabion/overlay"
)

// rawNode is a node whose messages the test writes itself. It answers nothing.
type rawNode struct {
	r     *rig
	trans *link.MemoryNode
	mu    sync.Mutex
	pings []uint64 // seqs of the pings it got of the first node
	pongs []uint64 // seqs of the pongs it got of the first node
}

// raw replaces the last node by one whose messages the test writes.
func (r *rig) raw() *rawNode {
	i := len(r.nodes) - 1
	r.net.Crash(r.nodes[i].self)
	r.nodes[i].stop()
	w := &rawNode{r: r, trans: r.net.Node(r.table[i].ID)}
	note := func(seqs *[]uint64) link.Handler {
		return func(from link.Peer, body []byte, _ bool) {
			if from.ID() != r.table[0].ID {
				return
			}
			w.mu.Lock()
			*seqs = append(*seqs, binary.LittleEndian.Uint64(body))
			w.mu.Unlock()
		}
	}
	w.trans.Handle(TypePing, note(&w.pings))
	w.trans.Handle(TypePong, note(&w.pongs))
	w.trans.Start()
	r.nodes[i] = &member{Kouncil: r.nodes[i].Kouncil, trans: w.trans, stop: func() {}}
	r.after(time.Second) // connections are made again
	return w
}

func message(seq, boot uint64, payload string) []byte {
	b := binary.LittleEndian.AppendUint64(nil, seq)
	return append(binary.LittleEndian.AppendUint64(b, boot), payload...)
}

// send delivers one message to the first node.
func (w *rawNode) send(typ link.Type, body []byte) {
	w.r.t.Helper()
	if err := w.trans.Send(w.r.table[0].ID, typ, body); err != nil {
		w.r.t.Fatal(err)
	}
	w.r.after(0)
}

// last is the seq of the newest ping that it got, and how many it got.
func (w *rawNode) last() (seq uint64, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n = len(w.pings); n > 0 {
		seq = w.pings[n-1]
	}
	return seq, n
}

func (w *rawNode) ponged() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pongs
}

func TestMalformedMessagesAreNotHeard(t *testing.T) {
	pool(t, 2, func(r *rig) {
		w, a := r.raw(), r.nodes[0]
		id := w.trans.Self()
		r.after(10 * time.Second)
		silent := a.Heard(id)
		r.want(silent >= 10*time.Second, "heard from a silent node")
		ok := message(7, 2, "")
		for _, body := range [][]byte{nil, {1}, ok[:pingHead-1], append(ok, make([]byte, PayloadMax+1)...)} {
			for _, typ := range []link.Type{TypePing, TypePong} {
				w.send(typ, body)
			}
		}
		r.want(a.Heard(id) == silent && len(w.ponged()) == 0, "a malformed message counts")
		r.want(a.State(id) == overlay.Suspect, "a malformed message is a sign of life")
		big := string(bytes.Repeat([]byte("x"), PayloadMax))
		w.send(TypePing, message(7, 2, big))
		r.want(a.Heard(id) == 0 && len(w.ponged()) == 1 && w.ponged()[0] == 7, "the longest ping is not answered with its number")
		a.mu.Lock()
		r.want(a.heard[id] == big, "the payload was not handed over")
		a.mu.Unlock()
		r.want(a.Heard(ident.NodeID{77}) == overlay.Never && a.Heard(a.Self()) == 0, "ages of nobody and of itself")
	})
}

func TestAnEarlierProcessIsNotHeard(t *testing.T) {
	pool(t, 2, func(r *rig) {
		w, a := r.raw(), r.nodes[0]
		id := w.trans.Self()
		w.send(TypePing, message(1, 5, "five"))
		n, _ := a.Node(id)
		r.want(n.Boot == 5 && n.State == overlay.Alive, "its ping was not heard")
		r.after(LeaseDurationDefault)
		w.send(TypePing, message(2, 5, "five"))
		before, _ := a.LeaseMark(r.ids())
		r.after(time.Second)
		seq, _ := w.last()
		w.send(TypePing, message(2, 4, "four"))
		w.send(TypePong, message(seq, 4, "four"))
		n, _ = a.Node(id)
		mark, ok := a.LeaseMark(r.ids())
		r.want(n.Boot == 5 && n.LastHeard == time.Second, "a message of an earlier process counts")
		r.want(!ok && mark == before, "a pong of an earlier process gives a lease")
		r.want(len(w.ponged()) == 2, "a ping of an earlier process is answered")
		w.send(TypePong, message(seq, 6, "six"))
		mark, ok = a.LeaseMark(r.ids())
		r.want(ok && mark > before, "a new process without a gap")
	})
}

// Only the answer to a ping that was sent gives a lease, and that from the time
// it was sent.
func TestLeaseCountsFromTheSendTimeOfTheAnsweredPing(t *testing.T) {
	pool(t, 2, func(r *rig) {
		w, a := r.raw(), r.nodes[0]
		r.after(LeaseDurationDefault)
		seq, _ := w.last()
		for _, s := range []uint64{0, seq + 1, seq + sentKept, 1 << 63, ^uint64(0)} {
			w.send(TypePong, message(s, 2, ""))
			r.want(!a.LeaseValid(r.ids()), "a pong to a ping that was never sent")
		}
		at := a.cfg.Clock()
		a.Ping()
		r.after(0)
		now, _ := w.last()
		r.want(now > seq, "no ping")
		r.after(2 * time.Second)
		w.send(TypePong, message(now, 2, ""))
		r.want(a.LeaseValid(r.ids()), "a late answer is an answer")
		w.send(TypePong, message(seq, 2, "")) // the older one, later
		left := at + LeaseDurationDefault - a.cfg.Clock()
		r.after(left - time.Nanosecond)
		r.want(a.LeaseValid(r.ids()), "the older answer took the newer one back")
		r.after(time.Nanosecond)
		r.want(!a.LeaseValid(r.ids()), "counted from when the answer came")
		w.send(TypePong, message(now, 2, ""))
		r.want(!a.LeaseValid(r.ids()), "the same answer twice")
	})
}

// A node that answers only after sentKept further pings answers nothing: the
// send time is forgotten, and must not be taken from the ping that has its place.
func TestAnswerToAForgottenPingGivesNoLease(t *testing.T) {
	pool(t, 2, func(r *rig) {
		w, a := r.raw(), r.nodes[0]
		r.after(LeaseDurationDefault)
		old, _ := w.last()
		for range sentKept {
			a.Ping()
		}
		r.after(0)
		w.send(TypePong, message(old, 2, ""))
		r.want(!a.LeaseValid(r.ids()), "the send time of another ping was taken")
		w.send(TypePong, message(old+1, 2, ""))
		r.want(a.LeaseValid(r.ids()), "the oldest one kept counts")
	})
}

// A node that has just joined speaks before the table names it.
func TestAStrangerIsHeardAndNotAsked(t *testing.T) {
	pool(t, 3, func(r *rig) {
		w, a := r.raw(), r.nodes[0]
		id := w.trans.Self()
		a.SetTable(2, r.table[:2], nil)
		_, before := w.last()
		w.send(TypePing, message(9, 3, "hello"))
		w.send(TypePing, message(10, 2, "hello"))
		r.want(len(w.ponged()) == 1 && w.ponged()[0] == 9, "not answered, or an earlier process was")
		r.want(a.State(id) == overlay.Alive && a.HolderMayLive(id), "not heard")
		if _, ok := a.Node(id); ok {
			t.Fatal("it is in the table")
		}
		r.after(5 * time.Second)
		_, after := w.last()
		r.want(after == before, "it was asked")
		a.SetTable(3, r.table, nil)
		r.after(time.Second)
		_, after = w.last()
		n, ok := a.Node(id)
		r.want(ok && n.Boot == 3 && after > before, "it is not asked now that the table names it")
	})
}
