package link

import "github.com/gabion-storage/gabion/internal/fault"

// directMin is the length from which a frame that finds nothing pending is sent
// from where it lies, in bytes.
const directMin = 64 << 10

// direct sends one long frame without copying it to pending, and then what
// others have added meanwhile. It does not wait: what the socket does not take
// is copied and left to the writer, so that the caller's bytes are its own again
// on return. The caller has set flushing under mu, when nothing was pending.
func (c *conn) direct(h header, bufs [][]byte) {
	// The header goes into one record with the first bytes of the body.
	chunk := appendHeader(c.head[:0], h)
	i, at := 0, 0 // bufs[i][at:] and what follows are still to be sent
	for i < len(bufs) && len(chunk) < recordMax {
		k := min(len(bufs[i])-at, recordMax-len(chunk))
		chunk = append(chunk, bufs[i][at:at+k]...)
		if at += k; at == len(bufs[i]) {
			i, at = i+1, 0
		}
	}
	c.head = chunk
	for {
		_, err := c.tls.Write(chunk)
		done := true
		if err == nil {
			done, err = c.wire.push()
		}
		if err != nil {
			c.end(fault.New(fault.Unavailable, "link.send", c.peer.Short(), err))
			return // flushing stays set: nobody writes any more
		}
		if !done {
			break
		}
		if i == len(bufs) {
			c.drain(false)
			return
		}
		chunk = bufs[i][at:min(len(bufs[i]), at+flushChunk)]
		if at += len(chunk); at == len(bufs[i]) {
			i, at = i+1, 0
		}
	}
	// The writer has something to do even if all is encrypted: what the wire keeps.
	c.batch, c.off = nil, 0
	if i < len(bufs) {
		c.batch = append(c.batch, bufs[i][at:]...)
		for _, b := range bufs[i+1:] {
			c.batch = append(c.batch, b...)
		}
	}
	c.wake <- struct{}{} // never blocks: there is one flusher
}
