// Package iscsiclient is a small iSCSI initiator for tests: it negotiates what it
// is told, shows every PDU, and can break every rule. It is not for concurrent
// use: one goroutine has a Client.
package iscsiclient

import (
	"bufio"
	"errors"
	"io"
	"net"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// Config is how a client logs in.
type Config struct {
	Initiator string // default "iqn.2026-11.test:client"
	Target    string // empty: discovery
	ISID      pdu.ISID
	TSIH      uint16
	// Keys are offered in the operational stage, in this order.
	Keys []login.Pair
	// Auth, if set, is used in a security stage: Initiator is what we prove, Target what
	// we demand of the other end. Algorithms is CHAP_A, default "7,6,5".
	Auth       login.Auth
	Algorithms string
	// Timeout bounds each wait, 10 s.
	Timeout time.Duration
}

// Client is one connection.
type Client struct {
	cfg Config
	nc  net.Conn
	in  *bufio.Reader

	TSIH    uint16
	Params  login.Params
	Answers map[string]string // of the target, by key
	Status  pdu.LoginStatus
	Digests pdu.Digests

	CmdSN, ExpStatSN, MaxCmdSN, ExpCmdSN uint32
	itt                                  uint32
	Commands                             map[uint32]*Command
	Events                               []pdu.Async
	Rejects                              []pdu.Reject
}

// Dial connects without logging in.
func Dial(addr string, cfg Config) (*Client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if cfg.Initiator == "" {
		cfg.Initiator = "iqn.2026-11.test:client"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Algorithms == "" {
		cfg.Algorithms = "7,6,5"
	}
	return &Client{
		cfg: cfg, nc: nc, in: bufio.NewReaderSize(nc, 512<<10), Params: login.Defaults(), Answers: map[string]string{},
		CmdSN: 1, Commands: map[uint32]*Command{},
	}, nil
}

// Login connects and logs in.
func Login(addr string, cfg Config) (*Client, error) {
	c, err := Dial(addr, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Login(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close drops the connection.
func (c *Client) Close() { c.nc.Close() }

// Conn is the connection itself.
func (c *Client) Conn() net.Conn { return c.nc }

// Send sends one PDU, with digests as agreed.
func (c *Client) Send(h *pdu.Header, ahs, data []byte) error {
	h.SetAHSLength(len(ahs))
	h.SetDataLength(len(data))
	b := make([]byte, pdu.Size(h, c.Digests))
	copy(b, h[:])
	copy(b[pdu.HeaderSize:], ahs)
	if c.Digests.Header {
		pdu.PutHeaderDigest(b, len(ahs))
	}
	if len(data) > 0 {
		at := pdu.DataOffset(h, c.Digests)
		copy(b[at:], data)
		if c.Digests.Data {
			d := pdu.DataDigest(data)
			copy(b[at+pdu.Padded(len(data)):], d[:])
		}
	}
	return c.SendRaw(b)
}

// SendRaw sends bytes.
func (c *Client) SendRaw(b []byte) error {
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.Timeout))
	_, err := c.nc.Write(b)
	return err
}

// Recv takes one PDU and checks its digests.
func (c *Client) Recv() (h pdu.Header, data []byte, err error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.Timeout))
	if _, err = io.ReadFull(c.in, h[:]); err != nil {
		return h, nil, err
	}
	b := make([]byte, pdu.Size(&h, c.Digests))
	copy(b, h[:])
	if _, err = io.ReadFull(c.in, b[pdu.HeaderSize:]); err != nil {
		return h, nil, err
	}
	if c.Digests.Header && !pdu.HeaderDigestOK(b, h.AHSLength()) {
		return h, nil, errors.New("header digest")
	}
	at := pdu.DataOffset(&h, c.Digests)
	if c.Digests.Data && h.DataLength() > 0 && !pdu.DataDigestOK(b[at:]) {
		return h, nil, errors.New("data digest")
	}
	return h, b[at : at+h.DataLength()], nil
}
func Write10(lba uint32, blocks int, fua bool) []byte { return rw10(0x2a, lba, blocks, fua) }
