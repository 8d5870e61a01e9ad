package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/pki"
	"github.com/gabion-storage/gabion/internal/vfs"
	"github.com/gabion-storage/gabion/target/nbd"
)

// NBDSecurity is who may be an NBD client. The zero value lets everybody in
// without TLS.
type NBDSecurity struct {
	Mode      string // "off" (default), "on" or "required"
	Cert, Key string // files, PEM; none: the pool certifies the node's addresses
	CA        string // file, PEM: who certifies clients; none: the pool
	Allow     string // file: see nbd.Rules
}

const unixPrefix = "unix:"

// nbdHow is how a node serves NBD, as far as that is known before the node knows
// itself.
type nbdHow struct {
	config nbd.Config
	first  string         // the address that others are told
	more   []net.Listener // open already
}

// prepareNBD reads what --nbd and the flags beside it name: a host:port,
// unix:PATH, or several with commas between.
func prepareNBD(addrs string, s NBDSecurity) (how nbdHow, err error) {
	if how.config, err = s.config(); err != nil {
		return how, err
	}
	how.first, addrs, _ = strings.Cut(addrs, ",")
	for addrs != "" && err == nil {
		var addr string
		var l net.Listener
		addr, addrs, _ = strings.Cut(addrs, ",")
		if l, err = listen("nbd", addr, ""); err == nil {
			how.more = append(how.more, l)
		}
	}
	if err != nil {
		closeAll(how.more...)
	}
	return how, err
}

// listenUnix listens on a socket in the file system, which it makes.
func listenUnix(what, path string) (net.Listener, error) {
	flag := "--" + what + " " + unixPrefix + path
	l, err := net.Listen("unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fault.Newf(fault.Busy, "node run", flag, "somebody listens there; choose another path")
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, vfs.OSError("node run", flag, err)
		}
		os.Remove(path) // a socket that a killed process left
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, vfs.OSError("node run", flag, err)
	}
	return l, nil
}

// config reads what the node's NBD server is told, but for what only the pool
// can add.
func (s NBDSecurity) config() (c nbd.Config, err error) {
	switch s.Mode {
	case "", "off":
		if s.Cert != "" || s.Key != "" || s.CA != "" {
			return c, fault.Newf(fault.Invalid, "node run", "--nbd-tls", "is off; certificates need on or required")
		}
	case "on", "required":
		if c.TLS, err = s.tls(); err != nil {
			return c, err
		}
		c.TLSRequired = s.Mode == "required"
	default:
		return c, fault.Newf(fault.Invalid, "node run", "--nbd-tls "+s.Mode, "must be off, on or required")
	}
	if s.Allow != "" {
		text, err := os.ReadFile(s.Allow)
		if err != nil {
			return c, vfs.OSError("node run", "--nbd-allow "+s.Allow, err)
		}
		if c.Rules, err = nbd.ParseRules(text); err != nil {
			return c, fault.New(fault.Invalid, "node run", "--nbd-allow "+s.Allow, err)
		}
	}
	return c, nil
}

// tls is what STARTTLS upgrades to. Where a CA is named and no rules say what a
// client without a certificate may do, everybody must have one.
func (s NBDSecurity) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: x509.NewCertPool(), ClientAuth: tls.VerifyClientCertIfGiven,
		SessionTicketsDisabled: true}
	if (s.Cert == "") != (s.Key == "") {
		return nil, fault.Newf(fault.Invalid, "node run", "--nbd-cert", "--nbd-cert and --nbd-key belong together")
	}
	if s.Cert != "" {
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fault.New(fault.Invalid, "node run", "--nbd-cert "+s.Cert, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if s.CA == "" {
		return c, nil
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, vfs.OSError("node run", "--nbd-ca "+s.CA, err)
	}
	if !c.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fault.Newf(fault.Invalid, "node run", "--nbd-ca "+s.CA, "there is no certificate in it")
	}
	if s.Allow == "" {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// newNBD makes the node's NBD server of what was read before. Where files name
// none, the pool certifies this node and its clients.
func (n *Node) newNBD() (err error) {
	c := n.nbdHow.config
	c.Exports, c.Log, c.Observe = n.Manager, n.cfg.Log, n.exp.NBD().Observe
	if c.TLS != nil && n.cfg.NBDSecurity.CA == "" {
		c.TLS.ClientCAs.AddCert(n.id.CA.Cert)
	}
	if c.TLS != nil && n.cfg.NBDSecurity.Cert == "" {
		own, err := n.id.CA.IssueService("gabion nbd "+n.name, hostNames())
		if err != nil {
			return err
		}
		c.TLS.Certificates = []tls.Certificate{{Certificate: [][]byte{own.Cert.Raw, n.id.CA.Cert.Raw}, PrivateKey: own.Key}}
	}
	n.nbd, err = nbd.NewServer(c)
	return err
}

// hostNames are what clients may call this machine.
func hostNames() []string {
	names := []string{"localhost"}
	if h, err := os.Hostname(); err == nil && h != "localhost" {
		names = append(names, h)
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok {
				names = append(names, ip.IP.String())
			}
		}
	}
	return names
}

// IssueNBDClient certifies an NBD client of the pool whose node lives in home,
// and writes the files that libnbd and QEMU look for into out.
func IssueNBDClient(home, name, out string) error {
	id, err := pki.Load((&dir{path: home}).file("pki"))
	if err != nil {
		return err
	}
	s, err := id.CA.IssueService(name, nil)
	if err != nil {
		return err
	}
	return s.SaveClient(id.CA, out)
}
