// Package nbd serves target.Device over the Network Block Device protocol:
// fixed newstyle negotiation, simple and structured replies, extended headers,
// metadata contexts and TLS, on TCP and unix sockets. docs/NBD.md tells what of
// the protocol there is.
//
// One goroutine per connection reads. It decodes requests in place, answers
// reads that need no waiting there and then, and hands everything else to the
// device, whose completions append replies from whichever goroutine they run
// on. While a further whole request is already buffered the reader puts off
// sending and kicking, so that deep queues cost one system call for many
// requests; the last request of a burst is answered at once.
package nbd

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// Limits that are the same for every server.
const (
	// OptionsMax bounds the options that one client may send. A client that
	// lists a pool and then asks about each volume sends one for each.
	OptionsMax = 4096
	// TurnMax bounds the requests that the reader takes up before it sends
	// what it has and kicks the device.
	TurnMax = edge.TurnMax
	// InlineMax is the longest READ that the reader tries without a goroutine, in bytes.
	InlineMax = 256 << 10
	// ChunkMax is the longest write handed to the device at once, in bytes. A
	// longer WRITE is handed over in pieces as it arrives, so that nobody can
	// make the server hold 32 MiB by sending a header.
	ChunkMax = 1 << 20
	// BytesFree is what every connection may have in flight without asking
	// the budget that all share, in bytes.
	BytesFree = edge.BytesFree
)

// Config tells a server what to serve and within which bounds. The zero value
// of a field means its default.
type Config struct {
	// Exports finds the volumes. Required.
	Exports target.Exports
	// TLS is what STARTTLS upgrades a connection to; nil refuses the option. It
	// must have a certificate.
	TLS *tls.Config
	// TLSRequired refuses every other option, LIST too, until TLS is on.
	TLSRequired bool
	// Rules limits which exports a client sees and writes; nil: no limit.
	Rules *Rules
	// Log takes one line for each session's begin and end and for each
	// connection ended by malformed input. Default: discarded.
	Log *slog.Logger

	// ConnectionsMax bounds open connections, 1024. At the limit a newcomer
	// takes the place of the connection that negotiates longest, or is refused.
	ConnectionsMax int
	// HandshakeTimeout bounds negotiation as far as the client causes it, 10 s.
	HandshakeTimeout time.Duration
	// OpenTimeout bounds one Exports call, 30 s.
	OpenTimeout time.Duration
	// StallTimeout ends a connection whose client has not taken a waiting
	// reply for so long, 2 min.
	StallTimeout time.Duration
	// RequestsMax bounds the requests of one connection that are not answered
	// or whose answer is not sent, 256. Reading goes on when there are fewer.
	RequestsMax int
	// BytesMax bounds what one connection has in flight: data of writes that
	// are not answered and of reads that are not sent. 64 MiB, at least 33 MiB.
	BytesMax int64
	// MemoryMax bounds the sum of what all connections have in flight beyond
	// BytesFree each, 1 GiB, at least BytesMax.
	MemoryMax int64

	// Observe, if set, is told of every answered request: its command ("read",
	// "write", "flush", "trim", "write_zeroes", "cache", "block_status"), length in bytes, time from
	// decoding to completion, and its error. It runs on the data path, from
	// many goroutines, and must be cheap.
	Observe func(cmd string, bytes int, d time.Duration, err error)
}

// bytesMaxMin is the longest request and what lies around it.
const bytesMaxMin = proto.PayloadMax + BytesFree

// normal fills in defaults and refuses what cannot work, with kind Invalid.
func (c Config) normal() (Config, error) {
	if c.Exports == nil {
		return c, fault.Newf(fault.Invalid, "nbd.config", "Exports", "missing")
	}
	if c.TLSRequired && c.TLS == nil {
		return c, fault.Newf(fault.Invalid, "nbd.config", "TLSRequired", "there is no TLS configuration")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := edge.SetTimes("nbd.config",
		edge.Time{Name: "HandshakeTimeout", Value: &c.HandshakeTimeout, Default: 10 * time.Second},
		edge.Time{Name: "OpenTimeout", Value: &c.OpenTimeout, Default: 30 * time.Second},
		edge.Time{Name: "StallTimeout", Value: &c.StallTimeout, Default: 2 * time.Minute},
	); err != nil {
		return c, err
	}
	if err := edge.SetMemory("nbd.config", &c.BytesMax, &c.MemoryMax, bytesMaxMin); err != nil {
		return c, err
	}
	if c.ConnectionsMax == 0 {
		c.ConnectionsMax = 1024
	}
	if c.RequestsMax == 0 {
		c.RequestsMax = 256
	}
	switch {
	case c.ConnectionsMax < 1:
		return c, fault.Newf(fault.Invalid, "nbd.config", "ConnectionsMax", "%d is less than 1", c.ConnectionsMax)
	case c.RequestsMax < 1:
		return c, fault.Newf(fault.Invalid, "nbd.config", "RequestsMax", "%d is less than 1", c.RequestsMax)
	}
	return c, nil
}
