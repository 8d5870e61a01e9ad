// Package brick keeps one disk of a node: a journal with group commit, extents
// in segment files with an index, and a small stable store.
//
// A brick directory holds
//
//	brick.json        pool, node and incarnation of the brick
//	LOCK              flock of the process that has it open
//	journal/NNNNNNNN  journal segments, preallocated and recycled
//	extents/NNNNNNNN  extent segments, append-only, with holes where extents died
//	index-NNNNNNNN    log of what extents are where
//	stable.db         bbolt: promises and checkpoints
//
// Everything is written through internal/vfs, except stable.db. What is
// acknowledged as durable was synced before; after a failed sync the brick is
// broken and answers nothing but reads of extents until it is opened again.
// DESIGN.md argues why a journal may be cut at its end and never in its middle.
package brick
