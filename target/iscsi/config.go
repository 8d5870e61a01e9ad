package iscsi

import (
	"context"
	"log/slog"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// Limits that are the same for every server.
const (
	// TurnMax bounds the PDUs that the reader takes up before it sends what it
	// has and kicks the device.
	TurnMax = edge.TurnMax
	// BytesFree is what every connection may have in memory without asking the
	// budget that all share, in bytes.
	BytesFree = edge.BytesFree
	// OutputMax bounds what waits to be sent to a client before it is not read
	// from any more, in bytes: the longest answer of a command and as much again.
	OutputMax = 2 * scsi.TransferMax
	// ResponsesMax bounds the PDUs that wait to be sent in the same way.
	ResponsesMax = 4096
	// ImmediateMax bounds the immediate commands that are under way, which the
	// window of CmdSN does not count.
	ImmediateMax = 16
)

// Targets is how the server finds what it serves. Methods may be called
// concurrently.
type Targets interface {
	// PortalGroup is the tag of this node's portal group.
	PortalGroup() uint16
	// Discovery is what an initiator must prove to be told what there is.
	Discovery() login.Auth
	// Find describes a target by its name in lower case; NotFound if absent.
	Find(name string) (Target, error)
	// List describes every target and where it can be reached, sorted by name.
	List() []Listing
	// Open begins a session of initiator, whose address is peer.
	Open(ctx context.Context, name, initiator, peer string) (Unit, error)
}

// Target is what a login needs to know.
type Target struct {
	Name  string
	Alias string // for people
	Auth  login.Auth
	// Initiators are the names that may log in, in lower case; none means all.
	Initiators []string
}

// Listing is one target in a discovery.
type Listing struct {
	Target
	// Portals are where else than here it can be reached.
	Portals []Portal
}

// Portal is an address of a node, host:port, and the tag of its portal group.
type Portal struct {
	Addr string
	Tag  uint16
}

// Unit is one session's use of a target's logical unit.
type Unit struct {
	LU *scsi.LU
	// Gone is closed when the session must end: the volume was deleted, or the
	// node shuts down.
	Gone <-chan struct{}
	// Close ends the use. It is called once, when nothing is under way.
	Close func()
}

// Config tells a server what to serve and within which bounds. The zero value
// of a field means its default.
type Config struct {
	// Targets finds the volumes. Required.
	Targets Targets
	// Log takes one line for each session's begin and end, each refused login and each
	// connection ended by malformed input. Default: discarded.
	Log *slog.Logger
	// Offer is what is negotiated. Default: login.DefaultOffer.
	Offer login.Offer

	// ConnectionsMax bounds open connections, 1024. At the limit a newcomer
	// takes the place of the connection that logs in longest, or is refused.
	ConnectionsMax int
	// LoginTimeout bounds a login as a whole, 15 s.
	LoginTimeout time.Duration
	// ReinstateMax bounds the wait for the end of a session that a new one replaces, 30 s.
	ReinstateMax time.Duration
	// StallTimeout ends a connection whose client has not taken a waiting
	// response for so long, 2 min.
	StallTimeout time.Duration
	// PingInterval is after how much silence a client is asked for a sign of
	// life, 60 s; PingTimeout is how long it has to give one, 30 s.
	PingInterval, PingTimeout time.Duration
	// LogoutTimeout is how long clients have to log out when the server drains, 2 s.
	LogoutTimeout time.Duration
	// CommandsMax is the window of commands, 128.
	CommandsMax int
	// BytesMax bounds what one connection has in memory: data of commands that
	// are under way or whose response is not sent. 64 MiB, at least 2*scsi.TransferMax.
	BytesMax int64
	// MemoryMax bounds the sum of what all connections have in memory beyond
	// BytesFree each, 1 GiB, at least BytesMax.
	MemoryMax int64

	// Observe, if set, is told of every completed command: its class (see
	// Classes), bytes moved, time from its arrival to its completion, and its status.
	// It runs on the data path, from many goroutines, and must be cheap.
	Observe func(class string, bytes int, d time.Duration, status byte)
}

// normal fills in defaults and refuses what cannot work, with kind Invalid.
func (c Config) normal() (Config, error) {
	bad := func(field, format string, args ...any) (Config, error) {
		return c, fault.Newf(fault.Invalid, "iscsi.config", field, format, args...)
	}
	if c.Targets == nil {
		return bad("Targets", "missing")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Offer == (login.Offer{}) {
		c.Offer = login.DefaultOffer()
	}
	if err := edge.SetTimes("iscsi.config",
		edge.Time{Name: "LoginTimeout", Value: &c.LoginTimeout, Default: 15 * time.Second},
		edge.Time{Name: "ReinstateMax", Value: &c.ReinstateMax, Default: 30 * time.Second},
		edge.Time{Name: "StallTimeout", Value: &c.StallTimeout, Default: 2 * time.Minute},
		edge.Time{Name: "PingInterval", Value: &c.PingInterval, Default: time.Minute},
		edge.Time{Name: "PingTimeout", Value: &c.PingTimeout, Default: 30 * time.Second},
		edge.Time{Name: "LogoutTimeout", Value: &c.LogoutTimeout, Default: 2 * time.Second},
	); err != nil {
		return c, err
	}
	if err := edge.SetMemory("iscsi.config", &c.BytesMax, &c.MemoryMax, 2*scsi.TransferMax); err != nil {
		return c, err
	}
	if c.ConnectionsMax == 0 {
		c.ConnectionsMax = 1024
	}
	if c.CommandsMax == 0 {
		c.CommandsMax = 128
	}
	switch {
	case c.ConnectionsMax < 1 || c.ConnectionsMax > 65535:
		return bad("ConnectionsMax", "%d is not in 1 to 65535", c.ConnectionsMax)
	case c.CommandsMax < 1 || c.CommandsMax > 4096:
		return bad("CommandsMax", "%d is not in 1 to 4096", c.CommandsMax)
	case c.Offer.RecvMax < 512 || c.Offer.RecvMax > recvMax:
		return bad("Offer", "a MaxRecvDataSegmentLength of %d is not in 512 to %d", c.Offer.RecvMax, recvMax)
	}
	return c, nil
}

// recvMax is the longest data segment that fits into the input buffer with
// everything around it.
const recvMax = edge.StreamBytes

const _ = uint(edge.BufferMax - scsi.TransferMax) // the longest transfer fits into a buffer
