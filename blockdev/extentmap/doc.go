// Package extentmap is the map of a volume: which stored bytes each 4 KiB
// block of it is, and which extents those bytes keep alive.
//
// The map is a radix tree of 4 KiB pages of 256 pointers. A data block and a
// page are stored alike, as one block of an extent, so one pointer type names
// both. Pages are never changed in place: Update writes the touched pages from
// the leaves up and gives a new root, and everything else is shared with the
// old one. Equal pointers therefore mean equal subtrees.
//
// The extent table counts the live blocks of every extent of the volume. It is
// kept in memory by the holder of the map block and persisted as a snapshot
// and deltas; State, the value of a checkpoint, names root and table.
//
// Everything here is a pure core: pages come through a Loader, new pages leave
// through a function, and time, disks and other nodes are the caller's.
// Errors are fault.Error: Corrupt for stored bytes that are not what an
// encoder makes, Invalid for arguments that break a stated rule; whatever a
// Loader or a write function returns is passed on as it is.
package extentmap
