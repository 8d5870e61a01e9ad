package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

// tokenTTL is how long a join token is valid unless --ttl says otherwise.
const tokenTTL = 24 * time.Hour

func (a *app) poolCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "pool",
		Short: "Show the pool, admit nodes to it",
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	c.AddCommand(a.poolShowCmd(), a.poolTokenCmd(), a.poolSetCmd(), a.poolRecoverCmd(), a.poolAuditCmd(), a.exportCmd("discovery", "Show or set who may discover volumes over iSCSI", ""))
	return c
}

func (a *app) poolTokenCmd() *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "token",
		Short: "Print a token with which a node may join this pool",
		Long: `Prints a token with which nodes may join this pool until it expires. Who has
the token can become a member: keep it secret.

  gabion node run --join ADDRESS --token TOKEN`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if ttl < time.Second || ttl%time.Second != 0 {
				return usagef("--ttl is %v; it must be whole seconds, at least 1s", ttl)
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				token, err := d.PoolToken(ctx, ttl)
				if err != nil {
					return err
				}
				facts := struct {
					Token      string `json:"token"`
					TTLSeconds int64  `json:"ttl_seconds"`
				}{token, int64(ttl / time.Second)}
				return a.show(facts, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, token)
					return err
				})
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", tokenTTL, "`TIME` the token is valid: 30m, 24h")
	return c
}

// poolFacts is what pool show prints: the status without its volumes.
type poolFacts struct {
	Pool        control.Pool          `json:"pool"`
	Nodes       []control.Node        `json:"nodes"`
	Bricks      []control.Brick       `json:"bricks"`
	Unreachable []control.Unreachable `json:"unreachable"`
}

func (a *app) poolShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the pool, its nodes and their bricks",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.showStatus(c, func(s *control.Status) any {
				return poolFacts{s.Pool, s.Nodes, s.Bricks, s.Unreachable}
			}, writePool)
		},
	}
}
