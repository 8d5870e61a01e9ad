package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/node"
)

const (
	// Links between nodes authenticate both ends, so they may listen anywhere.
	defaultListen = "0.0.0.0:7400"
	// NBD and HTTP authenticate nobody, and iSCSI nobody who is not told to, so they
	// are for this machine alone unless the operator says otherwise.
	defaultNBD   = "127.0.0.1:10809"
	defaultISCSI = "127.0.0.1:3260"
	defaultHTTP  = "127.0.0.1:7480"
	// off as an address switches a service off.
	off = "off"
)

// nodeFlags are the flags of node run.
type nodeFlags struct {
	witness                                                 bool
	listen, nbd, iscsi, http, name, zone, rack, join, token string
	bricks                                                  []string
	nbdSecurity                                             node.NBDSecurity
	logLevel                                                string
	logJSON                                                 bool
}

func (a *app) nodeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "Run a node on this machine, take nodes out of the pool",
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	c.AddCommand(a.nodeRunCmd(), a.nodeNBDClientCmd())
	c.AddCommand(a.nodeLifeCmds()...)
	return c
}

func (a *app) nodeRunCmd() *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run a node until it is told to stop (SIGINT, SIGTERM)",
		Long: `Runs a node. Started in a new directory it makes a new pool, or joins an
existing one with --join and --token (see 'gabion pool token'). Started again it
is the same node of the same pool; --join and --token are then not needed.

Links between nodes (--listen) use mutual TLS. NBD (--nbd) asks nobody who he is
unless --nbd-tls and --nbd-allow say so, and metrics (--http) never do: give them
an address that only friends can reach.
iSCSI (--iscsi) asks those whom 'gabion volume export set' says.
A brick is a directory on a disk of its own; without --brick there is one inside
the node's directory.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := f.logger(a)
			if err != nil {
				return err
			}
			if f.join != "" && f.token == "" {
				f.token = os.Getenv("GABION_TOKEN")
			}
			if f.join != "" && f.token == "" {
				return usagef("--join needs --token or $GABION_TOKEN; 'gabion pool token' on a node of the pool prints one")
			}
			return runNode(c.Context(), a.stateDir(), &f, log)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", defaultListen, "`ADDRESS` for the other nodes of the pool")
	fl.StringVar(&f.nbd, "nbd", defaultNBD, "`ADDRESS` for NBD clients, host:port or unix:PATH or several with commas, or off")
	f.nbdSecurityFlags(c)
	fl.StringVar(&f.iscsi, "iscsi", defaultISCSI, "`ADDRESS` for iSCSI initiators, or off")
	fl.StringVar(&f.http, "http", defaultHTTP, "`ADDRESS` for /metrics and /healthz, or off")
	fl.StringVar(&f.name, "name", "", "`NAME` of the node (default: the host's name and a part of its id)")
	fl.StringArrayVar(&f.bricks, "brick", nil, "`DIR` of a brick; may be repeated")
	fl.StringVar(&f.zone, "zone", "", "`ZONE` of the node: copies are spread over zones")
	fl.BoolVar(&f.witness, "witness", false, "vote and keep no data: the third of a pool of two nodes with data")
	fl.StringVar(&f.rack, "rack", "", "`RACK` of the node: copies are spread over racks")
	fl.StringVar(&f.join, "join", "", "`ADDRESS` of a node whose pool to join")
	fl.StringVar(&f.token, "token", "", "`TOKEN` of that pool (or $GABION_TOKEN, which 'ps' does not show)")
	fl.StringVar(&f.logLevel, "log-level", "info", "`LEVEL`: debug, info, warn or error")
	fl.BoolVar(&f.logJSON, "log-json", false, "log JSON instead of text")
	return c
}

// logger writes to stderr what is at least as grave as --log-level.
func (f *nodeFlags) logger(a *app) (*slog.Logger, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[f.logLevel]
	if !ok {
		return nil, usagef("--log-level is %q; it must be debug, info, warn or error", f.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	if f.logJSON {
		return slog.New(slog.NewJSONHandler(a.err, opts)), nil
	}
	return slog.New(slog.NewTextHandler(a.err, opts)), nil
}

// orOff is the address, or "" if the service is switched off.
func orOff(addr string) string {
	if addr == off {
		return ""
	}
	return addr
}
