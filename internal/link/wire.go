package link

import (
	"io"
	"net"
	"sync"
	"syscall"
)

const (
	recordHeader  = 5
	recordMax     = 16 << 10 // plaintext of one TLS record, bytes
	readBufferMin = 16 << 10
	readBufferMax = 256 << 10
)

// wire is the net.Conn under crypto/tls. It reads large pieces from the socket
// and hands them on record by record, so that it is known whether another whole
// record is at hand. Until buffer is called it writes through; after that,
// records collect until push sends them with one system call that does not
// wait.
type wire struct {
	*net.TCPConn
	raw syscall.RawConn

	// of the reader
	rbuf []byte
	r, w int // rbuf[r:w] is unread
	left int // bytes of the current record that were not handed out yet

	mu       sync.Mutex // tls sends alerts from the reader
	buffered bool
	out      []byte // out[off:] is to be sent
	off      int
	writeErr error
	try, fin func(fd uintptr) bool // made once: no allocation for each push
}

func newWire(c *net.TCPConn) (*wire, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &wire{TCPConn: c, raw: raw, rbuf: make([]byte, readBufferMin)}
	w.try = func(fd uintptr) bool { w.writeSome(int(fd)); return true }
	w.fin = func(fd uintptr) bool { return w.writeSome(int(fd)) }
	return w, nil
}

// Read returns bytes of at most one record. Only tls calls it.
func (w *wire) Read(p []byte) (int, error) {
	if w.left == 0 {
		for w.w-w.r < recordHeader {
			if err := w.fill(); err != nil {
				if err == io.EOF && w.w > w.r {
					err = io.ErrUnexpectedEOF
				}
				return 0, err
			}
		}
		w.left = recordHeader + int(w.rbuf[w.r+3])<<8 + int(w.rbuf[w.r+4])
	} else if w.r == w.w {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rbuf[w.r:min(w.w, w.r+w.left)])
	w.r += n
	w.left -= n
	return n, nil
}

// fill reads what the socket has, waiting for at least one byte. A buffer that
// gets full grows.
func (w *wire) fill() error {
	if w.r == w.w {
		w.r, w.w = 0, 0
	}
	if w.r > 0 {
		w.w = copy(w.rbuf, w.rbuf[w.r:w.w])
		w.r = 0
	}
	n, err := w.TCPConn.Read(w.rbuf[w.w:])
	w.w += n
	if w.w == len(w.rbuf) && len(w.rbuf) < readBufferMax {
		w.rbuf = append(make([]byte, 0, 2*len(w.rbuf)), w.rbuf...)
		w.rbuf = w.rbuf[:cap(w.rbuf)]
	}
	if n > 0 {
		return nil
	}
	return err
}

// await waits until there is something to read, and takes nothing of it.
func (w *wire) await() (err error) {
	if w.r < w.w {
		return nil
	}
	if err2 := w.raw.Read(func(fd uintptr) bool {
		_, err = peek(fd)
		return err != syscall.EAGAIN
	}); err2 != nil {
		return err2
	}
	return err // none at the end of the stream, which the next read tells
}

// ready tells whether there is something to read now.
func (w *wire) ready() bool {
	if w.hasRecord() {
		return true
	}
	n := 0
	err := w.raw.Read(func(fd uintptr) bool {
		n, _ = peek(fd)
		return true
	})
	return err == nil && n > 0
}

// peek looks for a byte in a socket, without waiting: then the error is EAGAIN.
func peek(fd uintptr) (n int, err error) {
	var one [1]byte
	for {
		n, _, err = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// hasRecord tells whether the next Read of tls can be served without waiting.
func (w *wire) hasRecord() bool {
	n := w.w - w.r
	return w.left == 0 && n >= recordHeader &&
		n >= recordHeader+int(w.rbuf[w.r+3])<<8+int(w.rbuf[w.r+4])
}

// buffer ends the writing through of the handshake.
func (w *wire) buffer() {
	w.mu.Lock()
	w.buffered = true
	w.mu.Unlock()
}

// Write is called by tls with one record at a time.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.buffered {
		return w.TCPConn.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

// push sends what is buffered without waiting; done is false if the socket
// took only a part. wait sends all of it, waiting as long as it takes. One
// goroutine at a time may call either.
func (w *wire) push() (done bool, err error) {
	if err := w.raw.Write(w.try); err != nil {
		return false, err
	}
	return w.state()
}

func (w *wire) wait() error {
	if err := w.raw.Write(w.fin); err != nil {
		return err
	}
	_, err := w.state()
	return err
}

func (w *wire) state() (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.out) == 0, w.writeErr
}

// writeSome writes until everything is gone, the socket is full or an error
// came up; it returns false only if the socket is full.
func (w *wire) writeSome(fd int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.off < len(w.out) && w.writeErr == nil {
		n, err := syscall.Write(fd, w.out[w.off:])
		switch {
		case err == syscall.EAGAIN:
			return false
		case err == syscall.EINTR:
		case err != nil:
			w.writeErr = err
		default:
			w.off += n
		}
	}
	w.out, w.off = w.out[:0], 0
	if cap(w.out) > 2*flushChunk {
		w.out = nil
	}
	return true
}
