package target

import "context"

// Client is how one user of a volume names itself, so that it is known again
// when it connects anew, to the same node or to another.
type Client struct {
	// ID is drawn at random once for each place that a volume is attached at.
	ID [16]byte
	// Session grows with each attempt of the client to connect.
	Session uint64
	// Force ends the sessions of other clients instead of being refused for
	// their sake.
	Force bool
}

// Resumer is implemented by Exports that know clients by name.
type Resumer interface {
	// Resume is Open for a named client. When it returns a session, every
	// operation of the client's earlier sessions with this volume has taken
	// effect or never will, whichever node had accepted it and however
	// connections died: what the client repeats in the new session, and what it
	// does later, cannot be overtaken by a straggler. Several connections may
	// share one Session number.
	//
	// Beside the errors of Open: Busy while another named client has a session
	// and Force is not set, Fenced when a later session of the same client was
	// seen, Timeout when its earlier operations did not end in ctx's time. gone
	// is also closed when a later session of the client, or a forced one of
	// another, takes this one's place.
	Resume(ctx context.Context, name, peer string, c Client) (s Session, gone <-chan struct{}, err error)
}

// Ender is implemented by sessions that know at once when their attachment is
// lost. The channel that Resume returned is closed too, perhaps a moment later
// than operations fail for that reason.
type Ender interface{ Gone() <-chan struct{} }

// Able is implemented by Exports that may hold a volume without being able to
// serve it.
type Able interface {
	// Able tells whether requests to an export can be answered as far as is known
	// now, without attaching anything: nil, or Unavailable while a volume is
	// attached here and this node is cut off from those that it needs for it. A
	// client had better go elsewhere then.
	Able(name string) error
}
