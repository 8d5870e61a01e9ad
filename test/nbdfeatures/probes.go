package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// ask fills a column.
func (s *server) ask() (column []string) {
	for _, f := range features {
		column = append(column, f.probe(s))
	}
	return column
}

func yes(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}

// wire speaks options.
type wire struct {
	net.Conn
	in       *bufio.Reader
	greeting []byte
}

func connect(addr string) (*wire, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	w := &wire{Conn: nc, in: bufio.NewReader(nc), greeting: make([]byte, proto.GreetingSize)}
	if _, err := io.ReadFull(w.in, w.greeting); err != nil {
		return nil, err
	}
	_, err = nc.Write(proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true, NoZeroes: true}))
	return w, err
}

// item is one reply to an option.
type item struct {
	kind proto.Reply
	data []byte
}

// option sends one and returns all replies, of which the last ends it; a
// connection that ends is a last reply of 0.
func (w *wire) option(o proto.Option, data []byte) (items []item) {
	w.Write(proto.AppendOption(nil, o, data))
	for {
		var b [proto.OptionReplyHeaderSize]byte
		if _, err := io.ReadFull(w.in, b[:]); err != nil {
			return append(items, item{})
		}
		h, err := proto.DecodeOptionReplyHeader(b[:])
		if err != nil {
			return append(items, item{})
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(w.in, p); err != nil {
			return append(items, item{})
		}
		items = append(items, item{h.Reply, p})
		if h.Reply == proto.RepAck || h.Reply >= 1<<31 {
			return items
		}
	}
}

// options sends some one after the other and returns the replies to the last.
func (s *server) options(addr string, os ...any) (items []item) {
	w, err := connect(addr)
	if err != nil {
		return []item{{}}
	}
	defer w.Close()
	for i := 0; i < len(os); i += 2 {
		data, _ := os[i+1].([]byte)
		items = w.option(os[i].(proto.Option), data)
	}
	return items
}

func last(items []item) proto.Reply { return items[len(items)-1].kind }

func acked(items []item) string { return yes(last(items) == proto.RepAck) }

func query(name string, infos ...proto.Info) []byte {
	return proto.AppendExportQuery(nil, proto.ExportQuery{Name: name, Infos: infos})
}

func meta(name string, queries ...string) []byte {
	return proto.AppendMetaQuery(nil, proto.MetaQuery{Export: name, Queries: queries})
}

// info finds an item of INFO.
func info(items []item, i proto.Info) []byte {
	for _, x := range items {
		if x.kind == proto.RepInfo && len(x.data) >= 2 && proto.Info(binary.BigEndian.Uint16(x.data)) == i {
			return x.data[2:]
		}
	}
	return nil
}

// open enters transmission.
func (s *server) open(style nbdclient.Style, contexts ...string) (*nbdclient.Client, error) {
	return nbdclient.Open(nbdclient.Options{Addr: s.addr, Export: s.export, Style: style, Contexts: contexts})
}

// with runs f on a connection of a style that the server has; "no" otherwise.
func with(style nbdclient.Style, f func(c *nbdclient.Client) string, contexts ...string) func(s *server) string {
	return func(s *server) string {
		c, err := s.open(style, contexts...)
		if err != nil {
			return "no"
		}
		defer c.Close()
		return f(c)
	}
}

// offered tells whether a transmission flag is offered and, if so, whether what it
// stands for works.
func offered(style nbdclient.Style, bit uint16, try func(c *nbdclient.Client) error) func(s *server) string {
	var contexts []string
	if style != nbdclient.Simple {
		contexts = []string{"base:allocation"}
	}
	return with(style, func(c *nbdclient.Client) string {
		if c.Flags&bit == 0 {
			return "no"
		}
		if err := try(c); err != nil {
			return "offered, fails: " + short(err)
		}
		return "yes"
	}, contexts...)
}

func do(c *nbdclient.Client, cmd, flags uint16, off int64, n int, p []byte) error {
	done := make(chan error, 1)
	c.Start(cmd, flags, off, n, p, func(err error) { done <- err })
	return <-done
}

// short is an error as the protocol has it.
func short(err error) string {
	var f *nbdclient.Failure
	if !errors.As(err, &f) {
		return "hangs up"
	}
	return proto.Errno(f.Errno).String()
}

func refusal(err error) string {
	if err == nil {
		return "ok"
	}
	return short(err)
}

// bitmaps tells which dirty bitmaps can be selected and read.
func bitmaps(s *server) string {
	var works []string
	for _, name := range s.bitmaps {
		c, err := s.open(nbdclient.Structured, name)
		if err != nil {
			continue
		}
		if len(c.Contexts) == 1 && c.WriteAt(bytes.Repeat([]byte{1}, 4096), 1<<20) == nil && c.Flush() == nil {
			got, err := c.BlockStatus(0, 4<<20, false)
			for _, es := range got {
				dirty := int64(0)
				for _, e := range es {
					if e.State&1 != 0 {
						dirty += e.Length
					}
				}
				if err == nil && dirty > 0 {
					works = append(works, "`"+strings.TrimSuffix(name, "s")+"…`")
				}
			}
		}
		c.Close()
	}
	if len(works) == 0 {
		return "no"
	}
	return strings.Join(works, ", ")
}

// startTLS upgrades a connection of addr and lists exports inside.
func startTLS(addr string, plainToo bool) string {
	if addr == "" {
		return "no"
	}
	if plain := last((&server{}).options(addr, proto.OptList, nil)); (plain == proto.RepAck) != plainToo {
		return "no"
	}
	w, err := connect(addr)
	if err != nil {
		return "no"
	}
	defer w.Close()
	if last(w.option(proto.OptStartTLS, nil)) != proto.RepAck {
		return "no"
	}
	t := tls.Client(w.Conn, &tls.Config{InsecureSkipVerify: true})
	in := &wire{Conn: t, in: bufio.NewReader(t)}
	items := in.option(proto.OptList, nil)
	if last(items) != proto.RepAck {
		return "no"
	}
	return fmt.Sprint("yes, ", tls.VersionName(t.ConnectionState().Version))
}

const (
	block  = 4096
	inside = 1 << 20
	beyond = 8 << 30
)
