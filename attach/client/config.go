// Package client is an NBD client that survives its server: a target.Session
// whose operations wait, rather than fail, while the volume moves from one node
// to another.
//
// It has one connection at a time, to the node that serves, and knows the
// addresses of the others. A request is kept until it is answered, a change
// until a flush that came after its answer is answered too. When the connection
// is lost, or the node says that it is shutting down, or it neither answers nor
// greets, the engine connects elsewhere, where the node takes the volume over.
// There it first repeats every change that it has kept, in the order of their
// first sending, then whatever else had no answer.
//
// Why that is exactly once in effect, and reads see nothing odd:
//
//  1. Nothing of an earlier connection takes effect once the new session has
//     begun: target.Resumer promises it, for the same node and for others. So
//     there is no straggler that could land on something newer.
//  2. Two changes of overlapping ranges are never under way together: the later
//     one is held back until the earlier one is answered. So the order of
//     sending is the order of effect, and repeating it gives the same contents.
//  3. A change that was answered is repeated as well unless a flush has covered
//     it. It is still the newest of its range, or what replaced it comes behind
//     it in the same order. So it does not matter what the volume's write cache
//     lost with its holder, or the whole pool in a power cut that the client's
//     machine survived.
//  4. Reads and flushes wait until every change is repeated and answered. A read
//     cannot see less than an earlier read saw, and a flush covers what it must.
package client

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Node is one place where the volume may be had.
type Node struct {
	Name string `json:"name"` // for people; may be empty
	Addr string `json:"addr"` // of its NBD server: host:port, or unix:PATH
}

func (n Node) String() string {
	if n.Name == "" {
		return n.Addr
	}
	return n.Name + " (" + n.Addr + ")"
}

// Config tells an engine what to attach, where, and how patient to be. The zero
// value of a field means its default.
type Config struct {
	Volume string
	// ID and Start name the client: see target.Client. Start must be higher than
	// that of any engine that used ID before.
	ID    [16]byte
	Start uint32
	// Force ends the sessions of other clients when the first one begins.
	Force bool
	// Nodes lists where to look, best first. It is called before each attempt
	// and must not wait.
	Nodes func() []Node
	// TLS, if set, is what STARTTLS is asked for with. An empty ServerName means
	// the host of each node's address.
	TLS *tls.Config
	Log *slog.Logger
	// OnChange, if set, is told of each change of State. Calls come one at a
	// time; it must not call the engine.
	OnChange func(State)

	// DialTimeout bounds connecting and the node's greeting, 3 s.
	DialTimeout time.Duration
	// OpenTimeout bounds the wait for a session: a takeover needs the lease of
	// the one that is gone to run out, 15 s.
	OpenTimeout time.Duration
	// ProbeAfter is how long a node may answer nothing before it is asked, on a
	// connection of its own, whether it lives, 1 s. If it does not greet within
	// DialTimeout the session is given up.
	ProbeAfter time.Duration
	// StuckAfter is how long a node that greets may answer nothing, 10 s: it may
	// be cut off from the pool.
	StuckAfter time.Duration
	// RequestTimeout is after what time without a session a request fails,
	// 5 min; negative: never.
	RequestTimeout time.Duration
	// KeepMax bounds the bytes of changes that are kept for a repetition, 64 MiB.
	// When half of it is used the engine flushes by itself.
	KeepMax int64
}

// State is what there is to say about an engine.
type State struct {
	// Node serves the volume now; "" while nobody does.
	Node Node `json:"node"`
	// Since is when that began.
	Since time.Time `json:"since"`
	// Moves counts the sessions after the first.
	Moves int `json:"moves"`
	// LastPause is how long nothing was served at the last move, LongestPause at the
	// worst, in nanoseconds; Cause is why the session before ended.
	LastPause    time.Duration `json:"last_pause_ns"`
	LongestPause time.Duration `json:"longest_pause_ns"`
	Cause        string        `json:"cause"`
}

// requestsMax bounds the requests on the wire. A server of gabion reads no
// further when it has 256.
const requestsMax = 240

func (c Config) normal() (Config, error) {
	const op = "attach"
	switch {
	case c.Volume == "":
		return c, fault.Newf(fault.Invalid, op, "", "no volume is named")
	case c.Nodes == nil:
		return c, fault.Newf(fault.Invalid, op, c.Volume, "no nodes are named")
	case c.ID == [16]byte{}:
		return c, fault.Newf(fault.Invalid, op, c.Volume, "the client has no id")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("volume", c.Volume)
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.DialTimeout, 3 * time.Second}, {&c.OpenTimeout, 15 * time.Second}, {&c.ProbeAfter, time.Second},
		{&c.StuckAfter, 10 * time.Second}, {&c.RequestTimeout, 5 * time.Minute},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	if c.KeepMax == 0 {
		c.KeepMax = 64 << 20
	}
	if c.KeepMax < 2*writeMax {
		return c, fault.Newf(fault.Invalid, op, c.Volume, "%d bytes are too few to keep changes in", c.KeepMax)
	}
	return c, nil
}
