// Package edge is what the servers of all protocols share, below them: the place
// where strangers come in.
//
// A Server accepts connections, bounds them, and takes them through a shutdown. A
// Stream is one connection past that: a reader that decodes requests in bursts,
// completions that append answers from whichever goroutine they run on, and a
// writer that alone waits for a slow client. A Budget bounds the memory of all
// connections together, and Buffers are where it goes. None of them knows a protocol.
package edge

import "time"

const (
	// TurnMax bounds the requests that a reader takes up before it sends what
	// it has and kicks the device.
	TurnMax = 64
	// StreamBytes is the room of the buffer for input, and of that in which
	// output is gathered, in bytes.
	StreamBytes = 256 << 10
	// BytesFree is what every connection may have in memory without asking the
	// budget that all share, in bytes.
	BytesFree = 1 << 20
)

// Past is a deadline that ends every wait.
var Past = time.Unix(1, 0)
