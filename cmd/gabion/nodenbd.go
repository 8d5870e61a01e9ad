package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gabion-storage/gabion/internal/node"
)

// nbdSecurityFlags are those of node run that say who may be an NBD client.
func (f *nodeFlags) nbdSecurityFlags(c *cobra.Command) {
	s, fl := &f.nbdSecurity, c.Flags()
	fl.StringVar(&s.Mode, "nbd-tls", off, "TLS for NBD clients: off, on (for who wants it) or required")
	fl.StringVar(&s.Cert, "nbd-cert", "", "`FILE` with the NBD server's certificate (default: one of the pool)")
	fl.StringVar(&s.Key, "nbd-key", "", "`FILE` with its key")
	fl.StringVar(&s.CA, "nbd-ca", "", "`FILE` with who certifies NBD clients (default: the pool); without --nbd-allow, all need a certificate")
	fl.StringVar(&s.Allow, "nbd-allow", "", "`FILE` with lines 'SUBJECT EXPORT read|write': what NBD clients may see and write")
}

func (a *app) nodeNBDClientCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "nbd-client NAME --out DIR",
		Short: "Make a certificate for an NBD client",
		Long: `Makes a key and a certificate of the pool for an NBD client that --nbd-allow
knows as NAME, in files that the tools of libnbd and QEMU look for: client-key.pem,
client-cert.pem and ca-cert.pem. Run it on a node of the pool. The certificate
does not expire; to withdraw it, take NAME out of --nbd-allow.`,
		Example: `  gabion node nbd-client backup --out backup-tls
  nbdinfo 'nbds://host/volume?tls-certificates=backup-tls'`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				return usagef("--out DIR says where the files go")
			}
			if err := node.IssueNBDClient(a.stateDir(), args[0], out); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.out, "wrote client-key.pem, client-cert.pem and ca-cert.pem to", out)
			return err
		},
	}
	c.Flags().StringVar(&out, "out", "", "`DIR` for the files")
	return c
}
