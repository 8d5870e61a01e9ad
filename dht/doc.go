// Package dht stores extents: immutable bytes named by their SHA-256, on the
// bricks of the lane that the address falls into. Store is both halves: it
// puts, reads and deletes on any brick of the pool, and serves this node's
// own bricks to the others.
//
// Putting is durable on a majority of an extent's holders when it returns, and
// names the bricks that missed it. Reading goes to the local copy first and falls
// over to other holders when bytes are missing, damaged or out of reach; damaged
// copies are replaced in the background. Nothing here decides that an extent is
// dead: its volume does.
//
// Writing is fenced: every brick remembers for each volume the highest epoch
// it has met in a put, delete or seal, and refuses lower ones.
package dht

import "github.com/gabion-storage/gabion/internal/link"

// Calls: on the bulk connection, and from 0x48 on the gentle one. message.go has their layouts.
const (
	typePut    link.Type = 0x40 // extents for one brick; durable when answered
	typeRead   link.Type = 0x41 // a range of an extent, or all of it
	typeDelete link.Type = 0x42
	typeList   link.Type = 0x43 // one page of a volume's extents on a brick
	typeStat   link.Type = 0x44 // sizes of extents on a brick
	typeSeal   link.Type = 0x45 // raises the epoch of a volume on all bricks of a node
	typeCheck  link.Type = 0x46 // asks a node to verify its copy and replace it if damaged

	// What nobody waits for: copies for a brick that lacks them.
	typePutGently  link.Type = 0x48 // as put
	typeReadGently link.Type = 0x49 // as read
)
