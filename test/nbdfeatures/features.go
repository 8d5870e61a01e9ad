package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

type feature struct {
	name  string
	probe func(s *server) string
}

// features are the rows of the table, in the order of the document: the
// handshake, transmission flags, commands, and what is refused how.
var features = append(append(append([]feature{}, handshakeFeatures...), flagFeatures...), commandFeatures...)

var handshakeFeatures = []feature{
	{"fixed newstyle, `NO_ZEROES`", func(s *server) string {
		w, err := connect(s.addr)
		if err != nil {
			return "no"
		}
		defer w.Close()
		return yes(binary.BigEndian.Uint16(w.greeting[16:]) == 3)
	}},
	{"`EXPORT_NAME`", func(s *server) string {
		w, err := connect(s.addr)
		if err != nil {
			return "no"
		}
		defer w.Close()
		w.Write(proto.AppendOption(nil, proto.OptExportName, []byte(s.export)))
		var b [10]byte
		_, err = io.ReadFull(w.in, b[:])
		return yes(err == nil && binary.BigEndian.Uint64(b[:]) == beyond)
	}},
	{"`ABORT` is acknowledged", func(s *server) string { return acked(s.options(s.addr, proto.OptAbort, nil)) }},
	{"`LIST`", func(s *server) string { return acked(s.options(s.addr, proto.OptList, nil)) }},
	{"`LIST` with descriptions", func(s *server) string {
		for _, x := range s.options(s.addr, proto.OptList, nil) {
			if x.kind == proto.RepServer && len(x.data) > 4+int(binary.BigEndian.Uint32(x.data)) {
				return "yes"
			}
		}
		return "no"
	}},
	{"`INFO` and `GO`", func(s *server) string {
		return acked(s.options(s.addr, proto.OptInfo, query(s.export), proto.OptGo, query(s.export)))
	}},
	{"`INFO_NAME`", func(s *server) string {
		return yes(info(s.options(s.addr, proto.OptInfo, query(s.export, proto.InfoName)), proto.InfoName) != nil)
	}},
	{"`INFO_DESCRIPTION`", func(s *server) string {
		return yes(info(s.options(s.addr, proto.OptInfo, query(s.export, proto.InfoDescription)), proto.InfoDescription) != nil)
	}},
	{"`INFO_BLOCK_SIZE`: minimum, preferred, maximum", func(s *server) string {
		b := info(s.options(s.addr, proto.OptInfo, query(s.export, proto.InfoBlockSize)), proto.InfoBlockSize)
		if len(b) != 12 {
			return "no"
		}
		return fmt.Sprintf("%d, %d, %d MiB", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])>>20)
	}},
	{"an unknown option is `ERR_UNSUP`, and haggling goes on", func(s *server) string {
		w, err := connect(s.addr)
		if err != nil {
			return "no"
		}
		defer w.Close()
		return yes(last(w.option(4711, []byte("x"))) == proto.RepErrUnsup && last(w.option(proto.OptList, nil)) == proto.RepAck)
	}},
	{"`STARTTLS` for who wants it (SELECTIVETLS)", func(s *server) string { return startTLS(s.tlsOn, true) }},
	{"`STARTTLS` before anything else (FORCEDTLS)", func(s *server) string { return startTLS(s.tlsOnly, false) }},
	{"`STRUCTURED_REPLY`", func(s *server) string { return acked(s.options(s.addr, proto.OptStructuredReply, nil)) }},
	{"`EXTENDED_HEADERS`", func(s *server) string { return acked(s.options(s.addr, proto.OptExtendedHeaders, nil)) }},
	{"`LIST_META_CONTEXT` of everything, and of `base:`", func(s *server) string {
		all := s.options(s.addr, proto.OptStructuredReply, nil, proto.OptListMetaContext, meta(s.export))
		base := s.options(s.addr, proto.OptStructuredReply, nil, proto.OptListMetaContext, meta(s.export, "base:"))
		return yes(len(all) > 1 && len(base) == 2 && last(all) == proto.RepAck)
	}},
	{"`SET_META_CONTEXT` `base:allocation`", func(s *server) string {
		return yes(len(s.options(s.addr, proto.OptStructuredReply, nil, proto.OptSetMetaContext, meta(s.export, "base:allocation", "x-none:y"))) == 2)
	}},
	{"dirty bitmaps", bitmaps},
}

func nothing(*nbdclient.Client) error { return nil }

var flagFeatures = []feature{
	{"`READ_ONLY`: a write is `EPERM`", func(s *server) string {
		c, err := nbdclient.Open(nbdclient.Options{Addr: s.roAddr, Export: s.roExport})
		if err != nil {
			return "no"
		}
		defer c.Close()
		if c.Flags&proto.FlagReadOnly == 0 {
			return "no"
		}
		if err := c.WriteAt(make([]byte, block), 0); refusal(err) != "EPERM" {
			return "write is " + refusal(err)
		}
		return "yes"
	}},
	{"`SEND_FLUSH`", offered(nbdclient.Simple, proto.FlagSendFlush, func(c *nbdclient.Client) error { return c.Flush() })},
	{"`SEND_FUA`: `WRITE`, `TRIM`, `WRITE_ZEROES`, and ignored on `READ`", offered(nbdclient.Simple, proto.FlagSendFUA, func(c *nbdclient.Client) error {
		for _, cmd := range []uint16{nbdclient.CmdWrite, nbdclient.CmdTrim, nbdclient.CmdZero, nbdclient.CmdRead} {
			if err := do(c, cmd, nbdclient.FlagFUA, inside, block, make([]byte, block)); err != nil {
				return err
			}
		}
		return nil
	})},
	{"`ROTATIONAL`", offered(nbdclient.Simple, 1<<4, nothing)},
	{"`SEND_TRIM`", offered(nbdclient.Simple, proto.FlagSendTrim, func(c *nbdclient.Client) error { return c.Trim(inside, block) })},
	{"`SEND_WRITE_ZEROES`, with `NO_HOLE`", offered(nbdclient.Simple, proto.FlagSendWriteZeroes, func(c *nbdclient.Client) error { return c.Zero(inside, block) })},
	{"`SEND_DF`", offered(nbdclient.Structured, proto.FlagSendDF, func(c *nbdclient.Client) error {
		return do(c, nbdclient.CmdRead, nbdclient.FlagDF, 0, 1<<20, make([]byte, 1<<20))
	})},
	{"`CAN_MULTI_CONN`", offered(nbdclient.Simple, proto.FlagCanMultiConn, nothing)},
	{"`SEND_RESIZE` (extension)", offered(nbdclient.Simple, 1<<9, nothing)},
	{"`SEND_CACHE`", offered(nbdclient.Simple, proto.FlagSendCache, func(c *nbdclient.Client) error { return c.Cache(0, 1<<20) })},
	{"`SEND_FAST_ZERO`: a megabyte", offered(nbdclient.Simple, proto.FlagSendFastZero, func(c *nbdclient.Client) error {
		return do(c, nbdclient.CmdZero, nbdclient.FlagFastZero, 0, 1<<20, nil)
	})},
	{"`BLOCK_STATUS_PAYLOAD`", offered(nbdclient.Extended, proto.FlagStatusPayload, func(c *nbdclient.Client) error {
		_, err := c.BlockStatus(0, 1<<20, false, c.Contexts["base:allocation"])
		return err
	})},
}

var commandFeatures = []feature{
	{"a hole in a `READ` is a hole on the wire", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		c.Zero(16<<20, 1<<20)
		c.WriteAt(bytes.Repeat([]byte{1}, block), 16<<20)
		err := c.ReadAt(make([]byte, 1<<20), 16<<20)
		return yes(err == nil && c.Holes() > 0)
	})},
	{"an error comes with a sentence", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		var f *nbdclient.Failure
		err := c.ReadAt(make([]byte, block), beyond)
		if failure, ok := err.(*nbdclient.Failure); ok {
			f = failure
		}
		return yes(f != nil && f.Text != "")
	})},
	{"`BLOCK_STATUS`", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		c.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 32<<20)
		c.Flush()
		got, err := c.BlockStatus(32<<20, 64<<20, false)
		es := got[c.Contexts["base:allocation"]]
		return yes(err == nil && len(es) > 1 && es[0].State == 0 && es[1].State == 3)
	}, "base:allocation")},
	{"`BLOCK_STATUS` with `REQ_ONE`", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		_, err := c.BlockStatus(0, 64<<20, true)
		return yes(err == nil)
	}, "base:allocation")},
	{"64-bit `BLOCK_STATUS`, `TRIM` and `WRITE_ZEROES` of 6 GiB", with(nbdclient.Extended, func(c *nbdclient.Client) string {
		_, err := c.BlockStatus(0, 6<<30, false)
		return yes(err == nil && c.Trim(2<<30, 6<<30) == nil && c.Zero(2<<30, 6<<30) == nil)
	}, "base:allocation")},
	{"`READ` of 32 MiB, of 64 MiB", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		return refusal(c.ReadAt(make([]byte, 32<<20), 0)) + ", " + refusal(c.ReadAt(make([]byte, 64<<20), 0))
	})},
	{"many requests in flight, answers in any order", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		if err := c.WriteAt(bytes.Repeat([]byte{1}, 32<<20), 0); err != nil {
			return "no"
		}
		for range 10 { // chance may give the large one the lead
			order := make(chan int, 17)
			for i := range 17 {
				n := block
				if i == 0 {
					n = 32 << 20
				}
				c.Start(nbdclient.CmdRead, 0, 0, n, make([]byte, n), func(error) { order <- i })
			}
			first := <-order
			for range 16 {
				<-order
			}
			if first != 0 {
				return "yes"
			}
		}
		return "no"
	})},
	{"half of a 512-byte sector: `READ`", with(nbdclient.Simple, func(c *nbdclient.Client) string {
		return refusal(c.ReadAt(make([]byte, 256), 256))
	})},
	{"beyond the end: `READ`, `WRITE`, `TRIM`, `WRITE_ZEROES`", with(nbdclient.Simple, func(c *nbdclient.Client) string {
		return fmt.Sprintf("%s, %s, %s, %s", refusal(c.ReadAt(make([]byte, block), beyond)), refusal(c.WriteAt(make([]byte, block), beyond)),
			refusal(c.Trim(beyond, block)), refusal(c.Zero(beyond, block)))
	})},
	{"an unknown command, an unknown flag", with(nbdclient.Simple, func(c *nbdclient.Client) string {
		a := refusal(do(c, 4711, 0, 0, block, nil))
		if a == "hangs up" {
			return a
		}
		return a + ", " + refusal(do(c, nbdclient.CmdFlush, 1<<14, 0, 0, nil))
	})},
	{"`BLOCK_STATUS` without a context", with(nbdclient.Structured, func(c *nbdclient.Client) string {
		_, err := c.BlockStatus(0, 1<<20, false)
		return refusal(err)
	})},
}
