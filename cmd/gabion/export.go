package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/control"
)

// secretMax bounds what is read from a file of a secret, in bytes.
const secretMax = 4096

// exportCmd is the group of commands about iSCSI; name says whose they are:
// "NAME" of a volume, or "" for discovery.
func (a *app) exportCmd(use, short, name string) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	c.AddCommand(a.exportShowCmd(name), a.exportSetCmd(name))
	return c
}

// exportArgs is the arguments of a command about name.
func exportArgs(name string) (suffix string, args cobra.PositionalArgs, of func([]string) string) {
	if name == "" {
		return "", exactly(), func([]string) string { return "" }
	}
	return " " + name, exactly(name), func(args []string) string { return args[0] }
}

func (a *app) exportShowCmd(name string) *cobra.Command {
	suffix, args, of := exportArgs(name)
	return &cobra.Command{
		Use:   "show" + suffix,
		Short: "Show who may log in over iSCSI, and where",
		Args:  args,
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showExport(d.Export(ctx, of(args)))
			})
		},
	}
}

// exportFlags are the flags of export set.
type exportFlags struct {
	initiators             []string
	any, clear             bool
	user, secretFile       string
	mutualUser, mutualFile string
	noAuth, noMutual       bool
}

func (a *app) exportSetCmd(name string) *cobra.Command {
	suffix, args, of := exportArgs(name)
	var f exportFlags
	c := &cobra.Command{
		Use:   "set" + suffix,
		Short: "Set who may log in over iSCSI",
		Long: `Sets who may log in over iSCSI. What is not named stays as it is; sessions that
are open stay open. A secret has 12 to 64 bytes (Windows takes up to 16) and is
read from a file, or from standard input with "-", so that 'ps' does not show
it; one trailing newline does not count. It is stored in the pool and never shown.`,
		Args: args,
		RunE: func(c *cobra.Command, args []string) error {
			q, err := f.request(a.in)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, d control.Daemon) error {
				return a.showExport(d.SetExport(ctx, of(args), *q))
			})
		},
	}
	fl := c.Flags()
	if name != "" {
		fl.StringArrayVar(&f.initiators, "initiator", nil, "`IQN` that may log in, and nobody else; may be repeated")
		fl.BoolVar(&f.any, "any-initiator", false, "let every initiator log in")
	}
	fl.StringVar(&f.user, "chap-user", "", "`NAME` that initiators prove to have")
	fl.StringVar(&f.secretFile, "chap-secret", "", "`FILE` with its secret, or -")
	fl.BoolVar(&f.noAuth, "no-chap", false, "demand no proof")
	fl.StringVar(&f.mutualUser, "mutual-user", "", "`NAME` that the target proves to have, to initiators that ask")
	fl.StringVar(&f.mutualFile, "mutual-secret", "", "`FILE` with its secret, or -")
	fl.BoolVar(&f.noMutual, "no-mutual", false, "prove nothing")
	fl.BoolVar(&f.clear, "clear", false, "forget all earlier settings first")
	return c
}

// request checks the flags and reads secrets.
func (f *exportFlags) request(stdin io.Reader) (*control.SetExport, error) {
	q := &control.SetExport{Clear: f.clear, Initiators: f.initiators}
	switch {
	case f.any && len(f.initiators) > 0:
		return nil, usagef("--any-initiator and --initiator exclude each other")
	case f.noAuth && f.user != "", f.noMutual && f.mutualUser != "":
		return nil, usagef("a name and its absence exclude each other")
	case f.secretFile == "-" && f.mutualFile == "-":
		return nil, usagef("only one secret can come from standard input")
	case f.any:
		q.Initiators = []string{}
	}
	var err error
	if q.CHAP, err = secretOf("chap", f.user, f.secretFile, f.noAuth, stdin); err != nil {
		return nil, err
	}
	if q.Mutual, err = secretOf("mutual", f.mutualUser, f.mutualFile, f.noMutual, stdin); err != nil {
		return nil, err
	}
	if !q.Clear && q.Initiators == nil && q.CHAP == nil && q.Mutual == nil {
		return nil, usagef("say what to set")
	}
	return q, nil
}

func secretOf(what, user, file string, none bool, stdin io.Reader) (*control.Secret, error) {
	switch {
	case none:
		return &control.Secret{}, nil
	case user == "" && file == "":
		return nil, nil
	case user == "" || file == "":
		return nil, usagef("--%s-user and --%s-secret come together", what, what)
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("volume export set: the secret cannot be read: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, secretMax))
	if err != nil {
		return nil, fmt.Errorf("volume export set: the secret cannot be read: %w", err)
	}
	return &control.Secret{User: user, Secret: strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")}, nil
}

// showExport prints what a request answered with.
func (a *app) showExport(e *control.Export, err error) error {
	if err != nil {
		return err
	}
	return a.show(e, func(w io.Writer) error {
		who := "all"
		if len(e.Initiators) > 0 {
			who = strings.Join(e.Initiators, ", ")
		}
		rows := [][2]string{
			{"volume", e.Volume}, {"target", e.Target}, {"portals", orDash(strings.Join(e.Portals, ", "))}, {"initiators", who},
			{"chap", orDash(e.CHAPUser)}, {"mutual", orDash(e.MutualUser)},
		}
		if e.Volume == "" {
			rows = [][2]string{{"discovery", "shows each initiator what it may use"}, rows[2], rows[4], rows[5]}
		}
		for _, r := range rows {
			if _, err := fmt.Fprintf(w, "%-12s %s\n", r[0], printable(r[1])); err != nil {
				return err
			}
		}
		return nil
	})
}
