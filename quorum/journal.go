package quorum

// Journal is what a group needs of its brick's journal. Positions only grow.
// dht/brick has the real one (see JournalOf); quorumtest has one that can lose
// its unsynced end.
type Journal interface {
	// Append puts one record, the concatenation of bufs, into memory, in call
	// order, and returns its position. It copies. NoSpace when the journal is full.
	Append(bufs ...[]byte) (pos int64, err error)
	// Write pushes everything appended before the call to the page cache.
	Write() error
	// Sync makes everything appended before the call durable and then calls
	// done, on a goroutine of the journal's. It never blocks.
	Sync(done func(error))
	// ReadAt returns the body (of n bytes) of the written record at pos.
	ReadAt(pos int64, n int) ([]byte, error)
	// Replay calls f with each record in order, before the first Append; body
	// is valid only during the call.
	Replay(f func(pos int64, body []byte) error) error
	// Trim tells that no record before pos is needed any more.
	Trim(pos int64)
	// Live reports the oldest kept and the next position, and the most bytes
	// that may lie between them.
	Live() (oldest, next, max int64)
}

// Stable is a small durable key-value store, for what changes seldom.
type Stable interface {
	// Get returns nil, nil for an absent key.
	Get(key string) ([]byte, error)
	// Set is durable on return.
	Set(key string, v []byte) error
}

// positioned is a journal with a position type of its own.
type positioned[P ~int64] interface {
	Append(bufs ...[]byte) (P, error)
	Write() error
	Sync(done func(error))
	ReadAt(pos P, n int) ([]byte, error)
	Replay(f func(pos P, body []byte) error) error
	Trim(pos P)
	Live() (oldest, next P, max int64)
}

// JournalOf adapts a journal whose positions are a named type, such as
// *brick.Journal, to Journal: quorum.JournalOf(b.Journal()).
func JournalOf[P ~int64](j positioned[P]) Journal { return journalOf[P]{j} }

type journalOf[P ~int64] struct{ j positioned[P] }

func (a journalOf[P]) Append(bufs ...[]byte) (int64, error) {
	pos, err := a.j.Append(bufs...)
	return int64(pos), err
}
func (a journalOf[P]) Write() error          { return a.j.Write() }
func (a journalOf[P]) Sync(done func(error)) { a.j.Sync(done) }
func (a journalOf[P]) ReadAt(pos int64, n int) ([]byte, error) {
	return a.j.ReadAt(P(pos), n)
}
func (a journalOf[P]) Replay(f func(pos int64, body []byte) error) error {
	return a.j.Replay(func(pos P, body []byte) error { return f(int64(pos), body) })
}
func (a journalOf[P]) Trim(pos int64) { a.j.Trim(P(pos)) }
func (a journalOf[P]) Live() (oldest, next, max int64) {
	o, n, m := a.j.Live()
	return int64(o), int64(n), m
}
