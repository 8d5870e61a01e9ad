// Package nbdclient is a small NBD client for the rigs: fixed newstyle
// handshake with GO, every style of replies, metadata contexts, TLS, any number
// of requests in flight. It exists so that a test can see each answer by
// itself, which the kernel and the library hide, and holds a server to what the
// protocol document has for the pieces of an answer.
package nbdclient

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Wire numbers of the NBD protocol (doc/proto.md of the NBD project).
const (
	magicInit       = 0x4e42444d41474943
	magicOption     = 0x49484156454f5054
	magicReply      = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicAnswer     = 0x67446698
	magicStructured = 0x668e33ef
	magicExtended   = 0x21e41c71
	magicExtAnswer  = 0x6e8a278c

	optStartTLS   = 5
	optGo         = 7
	optStructured = 8
	optSetContext = 10
	optExtended   = 11

	repAck      = 1
	repInfo     = 3
	repContext  = 4
	repErrBit   = 1 << 31
	infoExport  = 0
	infoBlock   = 3
	flagFixed   = 1
	flagNoZeros = 2
)

// Commands and command flags.
const (
	CmdRead        = 0
	CmdWrite       = 1
	CmdDisc        = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdZero        = 6
	CmdBlockStatus = 7

	FlagFUA        = 1 << 0
	FlagNoHole     = 1 << 1
	FlagDF         = 1 << 2
	FlagReqOne     = 1 << 3
	FlagFastZero   = 1 << 4
	FlagPayloadLen = 1 << 5
)

// Style is the form of messages after the handshake.
type Style int

const (
	Simple Style = iota
	Structured
	Extended
)

func (s Style) String() string { return [...]string{"simple", "structured", "extended"}[s] }

// Options say where and how to connect. The zero value of a field but Addr
// means its default.
type Options struct {
	Network  string // "tcp" (default) or "unix"
	Addr     string
	Export   string
	Style    Style
	Contexts []string    // metadata contexts to select
	TLS      *tls.Config // nil: without
}

// handshakeTimeout bounds Dial.
const handshakeTimeout = 10 * time.Second

// replyMax bounds the text of an option reply, in bytes.
const replyMax = 64 << 10

// Refused is the server's answer to GO when it does not serve the export.
type Refused struct {
	Code uint32 // NBD_REP_ERR_*
	Text string
}

func (r *Refused) Error() string { return fmt.Sprintf("export refused (%#x): %s", r.Code, r.Text) }

// Client is one connection to one export. All methods may be called
// concurrently.
type Client struct {
	Size  int64
	Flags uint16 // transmission flags
	// BlockMin, BlockPreferred and BlockMax are what the server announced, or 0.
	BlockMin, BlockPreferred, BlockMax uint32
	Style                              Style
	// Contexts has the ids of the contexts that the server selected, by name.
	Contexts map[string]uint32

	conn net.Conn
	over chan struct{} // closed when receive returned

	send sync.Mutex // one request on the wire at a time; guards w
	w    *bufio.Writer

	mu      sync.Mutex // guards below
	next    uint64
	waiting map[uint64]*call
	dead    error
	holes   int
	lost    func() // called before requests end with the connection
}

// Dial connects to addr over TCP and opens the export with simple replies. A
// server that does not serve it gives a *Refused.
func Dial(addr, export string) (*Client, error) {
	return Open(Options{Addr: addr, Export: export})
}

// Open connects as o says.
func Open(o Options) (*Client, error) {
	if o.Network == "" {
		o.Network = "tcp"
	}
	conn, err := net.DialTimeout(o.Network, o.Addr, handshakeTimeout)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, Style: o.Style, waiting: map[uint64]*call{}, over: make(chan struct{})}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	r := bufio.NewReaderSize(conn, 128<<10)
	if r, err = c.handshake(r, o); err != nil {
		conn.Close()
		return nil, err
	}
	c.w = bufio.NewWriterSize(c.conn, 128<<10)
	c.conn.SetDeadline(time.Time{})
	go c.receive(r)
	return c, nil
}

func (c *Client) handshake(r *bufio.Reader, o Options) (*bufio.Reader, error) {
	var hello [18]byte
	if _, err := io.ReadFull(r, hello[:]); err != nil {
		return nil, fmt.Errorf("nbd greeting: %w", err)
	}
	if binary.BigEndian.Uint64(hello[:]) != magicInit || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return nil, errors.New("not a newstyle NBD server")
	}
	if _, err := c.conn.Write(binary.BigEndian.AppendUint32(nil, flagFixed|flagNoZeros)); err != nil {
		return nil, err
	}
	ignore := func(uint32, []byte) {}
	if o.TLS != nil {
		if err := c.option(r, optStartTLS, nil, ignore); err != nil {
			return nil, err
		}
		t := tls.Client(c.conn, o.TLS)
		if err := t.Handshake(); err != nil {
			return nil, err
		}
		c.conn = t
		r = bufio.NewReaderSize(t, 128<<10)
	}
	if o.Style != Simple {
		style := uint32(optStructured)
		if o.Style == Extended {
			style = optExtended
		}
		if err := c.option(r, style, nil, ignore); err != nil {
			return nil, err
		}
	}
	name := append(binary.BigEndian.AppendUint32(nil, uint32(len(o.Export))), o.Export...)
	if len(o.Contexts) > 0 {
		c.Contexts = map[string]uint32{}
		data := binary.BigEndian.AppendUint32(slices.Clone(name), uint32(len(o.Contexts)))
		for _, q := range o.Contexts {
			data = append(binary.BigEndian.AppendUint32(data, uint32(len(q))), q...)
		}
		err := c.option(r, optSetContext, data, func(kind uint32, b []byte) {
			if kind == repContext && len(b) > 4 {
				c.Contexts[string(b[4:])] = binary.BigEndian.Uint32(b)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	data := binary.BigEndian.AppendUint16(name, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlock)
	return r, c.option(r, optGo, data, func(kind uint32, b []byte) {
		if kind == repInfo {
			c.info(b)
		}
	})
}

// option sends one option and hands each reply before the last to f.
func (c *Client) option(r *bufio.Reader, o uint32, data []byte, f func(kind uint32, b []byte)) error {
	out := binary.BigEndian.AppendUint64(nil, magicOption)
	out = binary.BigEndian.AppendUint32(out, o)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	if _, err := c.conn.Write(append(out, data...)); err != nil {
		return err
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return fmt.Errorf("nbd option reply: %w", err)
		}
		kind, n := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h[:]) != magicReply || binary.BigEndian.Uint32(h[8:]) != o || n > replyMax {
			return errors.New("malformed NBD option reply")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErrBit != 0:
			return &Refused{Code: kind, Text: string(body)}
		}
		f(kind, body)
	}
}

func (c *Client) info(b []byte) {
	if len(b) < 2 {
		return
	}
	switch kind := binary.BigEndian.Uint16(b); {
	case kind == infoExport && len(b) >= 12:
		c.Size = int64(binary.BigEndian.Uint64(b[2:]))
		c.Flags = binary.BigEndian.Uint16(b[10:])
	case kind == infoBlock && len(b) >= 14:
		c.BlockMin = binary.BigEndian.Uint32(b[2:])
		c.BlockPreferred = binary.BigEndian.Uint32(b[6:])
		c.BlockMax = binary.BigEndian.Uint32(b[10:])
	}
}
