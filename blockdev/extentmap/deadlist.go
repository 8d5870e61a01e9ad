package extentmap

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Space under snapshots. A block that the map no longer uses may still be one
// of a snapshot's: it is then not counted down in its extent but put on a
// deadlist, of which there is one for each stretch of time between neighbouring
// snapshots. The number of an extent is when its blocks were born, for numbers
// only grow: a snapshot's horizon is a number that no extent of its map
// reaches, so that what is in an extent at or above the horizon is none of its
// blocks. A deadlist therefore needs no more than a count for each extent.
//
// The deadlist of a snapshot has what was freed between its predecessor's
// creation and its own, the head's what was freed since the newest one's, and
// only blocks born below the predecessor's horizon: everything else is counted
// down at once. Dropping a snapshot frees of its successor's list what was born
// at or above its predecessor's horizon; the rest, and its own list, are still
// the predecessor's and become the successor's list. The cost is the length of
// the two lists, whatever the size of the volume.

// deadlist counts dead blocks by extent number. At most the blocks of the
// extent, so a count fits.
type deadlist map[uint64]uint16

// blocks is the sum of the counts.
func (d deadlist) blocks() (n int64) {
	for _, c := range d {
		n += int64(c)
	}
	return n
}

// interval is a snapshot as the table knows it.
type interval struct {
	id      uint64
	horizon uint64
	dead    deadlist // blocks that its predecessor has and it has not
}

// Horizon is the newest snapshot's: blocks of extents below it may be a
// snapshot's and must stay where they are. 0 without snapshots.
func (t *Table) Horizon() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return horizonOf(t.past)
}

func horizonOf(past []interval) uint64 {
	if len(past) == 0 {
		return 0
	}
	return past[len(past)-1].horizon
}

// Held is the number of blocks that only snapshots keep, of all that Stats
// counts as live.
func (t *Table) Held() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.held
}

// Own tells what dropping one snapshot now would free: the blocks that nothing
// else has, and their share of the bytes of their extents. False: the table has
// no such snapshot.
func (t *Table) Own(id uint64) (blocks, bytes int64, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i := slices.IndexFunc(t.past, func(v interval) bool { return v.id == id })
	if i < 0 {
		return 0, 0, false
	}
	next := t.head
	if i+1 < len(t.past) {
		next = t.past[i+1].dead
	}
	for n, c := range next {
		if e := find(t.chunks, n); n >= horizonOf(t.past[:i]) && e != nil {
			blocks += int64(c)
			bytes += int64(e.Bytes) * int64(c) / int64(e.Blocks)
		}
	}
	return blocks, bytes, true
}

// PastIDs are the snapshots that the table knows with their horizons, oldest
// first.
func (t *Table) PastIDs() (ids, horizons []uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, v := range t.past {
		ids, horizons = append(ids, v.id), append(horizons, v.horizon)
	}
	return ids, horizons
}

// Drop gives up a snapshot, before the first Free of the Tx. Kinds in Err: NotFound
// if there is none of that id, Invalid if it comes too late.
func (tx *Tx) Drop(id uint64) {
	i := slices.IndexFunc(tx.past, func(v interval) bool { return v.id == id })
	if i < 0 {
		tx.fail(fault.NotFound, "there is no snapshot %d to drop", id)
		return
	}
	if len(tx.held) > 0 || tx.cut != nil {
		tx.fail(fault.Invalid, "snapshot %d is dropped after other changes", id)
		return
	}
	tx.release(i, true)
}

// release takes snapshot i out of the lists. count: what is freed is counted
// down, which a delta that is being loaded says for itself.
func (tx *Tx) release(i int, count bool) {
	gone, born := tx.past[i], horizonOf(tx.past[:i])
	next := tx.head
	if i+1 < len(tx.past) {
		next = tx.past[i+1].dead
	}
	merged := make(deadlist, len(gone.dead))
	maps.Copy(merged, gone.dead)
	for n, c := range next {
		switch {
		case n < born:
			if int(merged[n])+int(c) > math.MaxUint16 {
				tx.fail(fault.Corrupt, "deadlists have more blocks of extent %d than it can have", n)
			}
			merged[n] += c
		case count:
			tx.countDown(n, c)
		}
	}
	past := slices.Delete(slices.Clone(tx.past), i, i+1)
	if i < len(past) {
		past[i].dead = merged
	} else {
		tx.head = merged
	}
	tx.past = past
	tx.dropped = append(tx.dropped, gone.id)
}

// Cut makes a snapshot of the map as it is after the Tx, after all other changes
// of it. horizon is above the number of every extent of that map, and not below
// an earlier snapshot's; ids only grow.
func (tx *Tx) Cut(id, horizon uint64) {
	switch n := len(tx.past); {
	case tx.cut != nil:
		tx.fail(fault.Invalid, "two snapshots in one change")
	case n >= SnapshotsMax:
		tx.fail(fault.NoSpace, "there are %d snapshots, which is the limit", n)
	case horizon < 1 || horizon > extLimit || horizon < horizonOf(tx.past):
		tx.fail(fault.Invalid, "the horizon %d is out of range", horizon)
	case id < 1 || n > 0 && id <= tx.past[n-1].id:
		tx.fail(fault.Invalid, "the snapshot id %d is not above the last one's", id)
	default:
		tx.cut = &interval{id: id, horizon: horizon}
	}
}

// hold puts a block of a snapshot on the head's deadlist.
func (tx *Tx) hold(n uint64) {
	e, ok := tx.t.Get(n)
	if c := tx.touched[n]; c != nil {
		e, ok = c.e, true
	}
	if !ok || int(tx.head[n])+int(tx.held[n]) >= int(e.Live) {
		tx.fail(fault.Corrupt, "more blocks of extent %d are freed than were live", n)
		return
	}
	if tx.held == nil {
		tx.held = deadlist{}
	}
	tx.held[n]++
}

// lists is what the lists are after Commit, in memory of their own.
func (tx *Tx) lists() (past []interval, head deadlist) {
	past, head = slices.Clone(tx.past), maps.Clone(tx.head)
	if head == nil {
		head = deadlist{}
	}
	for n, c := range tx.held {
		head[n] += c
	}
	if tx.cut != nil {
		past = append(past, interval{tx.cut.id, tx.cut.horizon, head})
		head = deadlist{}
	}
	return past, head
}

// commitLists makes the change of the lists.
func (tx *Tx) commitLists() {
	t := tx.t
	if !tx.listsChange() {
		return
	}
	held := tx.head.blocks() + tx.held.blocks()
	for i := range tx.past {
		held += tx.past[i].dead.blocks()
	}
	head := tx.head
	if head == nil {
		head = deadlist{}
	}
	for keys := range slices.Chunk(slices.Collect(maps.Keys(tx.held)), CommitBatch) {
		t.mu.Lock()
		for _, n := range keys {
			head[n] += tx.held[n]
		}
		t.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past, t.head, t.held = tx.past, head, held
	if tx.cut != nil {
		t.past = append(slices.Clone(t.past), interval{tx.cut.id, tx.cut.horizon, head})
		t.head = deadlist{}
	}
}

// listsChange reports whether the Tx changes more than counts of extents.
func (tx *Tx) listsChange() bool { return len(tx.dropped) > 0 || len(tx.held) > 0 || tx.cut != nil }

// The sections about snapshots at the end of a version 2 encoding, all uvarints.
//
// Of a table snapshot: the count of snapshots, then for each, oldest first, its
// id, its horizon and its deadlist; then the head's deadlist. Of a delta: the
// count of snapshots dropped and their ids in order; the list of blocks put on
// the head's deadlist; 1 and id and horizon of a new snapshot, or 0. A list is
// the count of its entries, then for each, by ascending extent number, the number
// minus the previous one's and the count of blocks, both at least 1.

func (w *recordWriter) uint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }

func (w *recordWriter) list(d deadlist) {
	w.uint(uint64(len(d)))
	last := uint64(0)
	for _, n := range slices.Sorted(maps.Keys(d)) {
		w.uint(n - last)
		w.uint(uint64(d[n]))
		last = n
	}
}

func (w *recordWriter) pastSection(past []interval, head deadlist) {
	if len(past) == 0 {
		return // version 1 says as much
	}
	binary.LittleEndian.PutUint32(w.b[4:], tableVersionPast)
	w.uint(uint64(len(past)))
	for _, v := range past {
		w.uint(v.id)
		w.uint(v.horizon)
		w.list(v.dead)
	}
	w.list(head)
}

func (w *recordWriter) changeSection(tx *Tx) {
	if !tx.listsChange() {
		return
	}
	binary.LittleEndian.PutUint32(w.b[4:], tableVersionPast)
	w.uint(uint64(len(tx.dropped)))
	for _, id := range tx.dropped {
		w.uint(id)
	}
	w.list(tx.held)
	if tx.cut == nil {
		w.uint(0)
		return
	}
	w.uint(1)
	w.uint(tx.cut.id)
	w.uint(tx.cut.horizon)
}

func (r *recordReader) list() (deadlist, error) {
	const entryMin = 2
	count, ok := r.uvarint(uint64(len(r.b) / entryMin))
	if !ok {
		return nil, badTable("a deadlist is longer than what holds it")
	}
	d := make(deadlist, count)
	last := uint64(0)
	for range count {
		step, ok1 := r.uvarint(extLimit)
		c, ok2 := r.uvarint(1<<16 - 1)
		if !ok1 || !ok2 || step == 0 || c == 0 || last+step >= extLimit {
			return nil, badTable("a deadlist has an entry out of range after extent %d", last)
		}
		last += step
		d[last] = uint16(c)
	}
	return d, nil
}

// loadPast reads the section of a snapshot into t, whose extents are loaded.
func (t *Table) loadPast(r *recordReader) (err error) {
	if r.version < tableVersionPast {
		return nil
	}
	count, ok := r.uvarint(SnapshotsMax)
	if !ok || count == 0 {
		return badTable("the count of snapshots is out of range")
	}
	for range count {
		var v interval
		if v.id, v.horizon, err = r.interval(t.past); err != nil {
			return err
		}
		if v.dead, err = r.list(); err != nil {
			return err
		}
		t.past = append(t.past, v)
	}
	if t.head, err = r.list(); err != nil {
		return err
	}
	t.held = t.head.blocks()
	for _, v := range t.past {
		t.held += v.dead.blocks()
	}
	return nil
}

// interval reads id and horizon of a snapshot that follows past.
func (r *recordReader) interval(past []interval) (id, horizon uint64, err error) {
	id, ok1 := r.uvarint(1<<64 - 1)
	horizon, ok2 := r.uvarint(extLimit)
	n := len(past)
	if !ok1 || !ok2 || id == 0 || horizon == 0 || n > 0 && (id <= past[n-1].id || horizon < past[n-1].horizon) {
		return 0, 0, badTable("snapshot %d with horizon %d is out of range or out of order", id, horizon)
	}
	return id, horizon, nil
}

// loadChange applies the section of a delta to tx.
func (tx *Tx) loadChange(r *recordReader) error {
	if r.version < tableVersionPast {
		return nil
	}
	drops, ok := r.uvarint(SnapshotsMax)
	if !ok {
		return badTable("the count of dropped snapshots is out of range")
	}
	for range drops {
		id, ok := r.uvarint(1<<64 - 1)
		i := slices.IndexFunc(tx.past, func(v interval) bool { return v.id == id })
		if !ok || i < 0 {
			return badTable("snapshot %d is dropped and was not there", id)
		}
		tx.release(i, false)
	}
	if tx.err != nil {
		return badTable("%v", tx.err)
	}
	held, err := r.list()
	if err != nil {
		return err
	}
	for n, c := range held {
		if int(tx.head[n])+int(c) > math.MaxUint16 {
			return badTable("a deadlist has more blocks of extent %d than it can have", n)
		}
		tx.held = held
	}
	cut, ok := r.uvarint(1)
	if !ok || cut == 0 && drops == 0 && len(held) == 0 {
		return badTable("a delta of version %d says nothing of snapshots", r.version)
	}
	if cut == 0 {
		return nil
	}
	v := interval{}
	if v.id, v.horizon, err = r.interval(tx.past); err != nil {
		return err
	}
	if len(tx.past) >= SnapshotsMax {
		return badTable("there are more than %d snapshots", SnapshotsMax)
	}
	tx.cut = &v
	return nil
}

// checkPast compares the lists with the counts of the extents, after loading.
func (t *Table) checkPast() error {
	sum := make(map[uint64]int, len(t.head))
	add := func(d deadlist) {
		for n, c := range d {
			sum[n] += int(c)
		}
	}
	add(t.head)
	for i, v := range t.past {
		for n := range v.dead {
			if n >= horizonOf(t.past[:i]) {
				return badTable("extent %d is on a deadlist and was born later", n)
			}
		}
		add(v.dead)
	}
	for n := range t.head {
		if n >= horizonOf(t.past) {
			return badTable("extent %d is on the newest deadlist and was born later", n)
		}
	}
	for n, c := range sum {
		if e := find(t.chunks, n); e == nil || int(e.Live) < c {
			return badTable("%d blocks of extent %d are on deadlists, which it does not have", c, n)
		}
	}
	return nil
}
