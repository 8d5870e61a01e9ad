package nbd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// authority makes certificates for a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func (a *authority) issue(name string, dns ...string) tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: dns, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue("server", "localhost")}, MinVersion: tls.VersionTLS12,
		ClientCAs: a.pool(), ClientAuth: tls.VerifyClientCertIfGiven}
}

// client is the configuration of a client; name "" has no certificate.
func (a *authority) client(name string) *tls.Config {
	c := &tls.Config{RootCAs: a.pool(), ServerName: "localhost"}
	if name != "" {
		c.Certificates = []tls.Certificate{a.issue(name, "host-of-"+name)}
	}
	return c
}

// files writes what GnuTLS's programs want to find in a directory.
func (a *authority) files(c tls.Certificate) string {
	dir := a.t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"ca-cert.pem":     {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		"client-cert.pem": {Type: "CERTIFICATE", Bytes: c.Certificate[0]},
		"client-key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return dir
}

func TestContractOverTLS(t *testing.T) {
	a := newAuthority(t)
	cfg := a.server()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			targettest.Run(t, func(t *testing.T) target.Device {
				mem := targettest.NewMemory(2<<20, 512)
				mem.Delay = 100 * time.Microsecond
				var e targettest.Exports
				e.Add("v", mem)
				_, path := startUnix(t, &e, func(c *nbd.Config) { c.TLS, c.TLSRequired = cfg, true })
				own := a.client("")
				own.MaxVersion = version
				c, err := nbdclient.Open(nbdclient.Options{Network: "unix", Addr: path, Export: "v", TLS: own, Style: nbdclient.Structured,
					Contexts: []string{"base:allocation"}})
				if err != nil {
					t.Fatal(err)
				}
				d := nbdclient.NewDevice(c, 1)
				t.Cleanup(d.Close)
				return d
			})
		})
	}
}

// Where TLS is required, nothing is told before it, not even that an export exists.
func TestPlainClientsLearnNothing(t *testing.T) {
	e, _ := pool()
	a := newAuthority(t)
	_, addr := start(t, e, func(c *nbd.Config) { c.TLS, c.TLSRequired = a.server(), true })
	w := dial(t, "tcp", addr).flags()
	for _, c := range []struct {
		o    proto.Option
		data []byte
	}{
		{proto.OptList, nil}, {proto.OptInfo, query("a")}, {proto.OptGo, query("a")}, {proto.OptGo, query("nope")},
		{proto.OptStructuredReply, nil}, {proto.OptSetMetaContext, meta("a", "base:allocation")}, {4711, make([]byte, 100)},
	} {
		r, text, items := w.option(c.o, c.data)
		if r != proto.RepErrTLSReqd || len(items) != 0 || strings.Contains(text, "\"a\"") {
			t.Errorf("option %d: %#x %q %q", c.o, r, text, items)
		}
	}
	if r, _, _ := w.option(proto.OptAbort, nil); r != proto.RepAck {
		t.Errorf("ABORT: %#x", r)
	}
	w = dial(t, "tcp", addr).flags()
	w.send(proto.AppendOption(nil, proto.OptExportName, []byte("a")))
	if b := w.ends(); len(b) != 0 {
		t.Errorf("EXPORT_NAME gives %x", b)
	}
	if e.Opened() != 0 {
		t.Errorf("%d sessions opened", e.Opened())
	}
}

func TestStartTLSIsOnceAndForgets(t *testing.T) {
	e, _ := pool()
	a := newAuthority(t)
	_, addr := start(t, e, func(c *nbd.Config) { c.TLS = a.server() })
	w := dial(t, "tcp", addr).flags()
	if r, _, _ := w.option(proto.OptStartTLS, []byte{1}); r != proto.RepErrInvalid {
		t.Errorf("STARTTLS with data: %#x", r)
	}
	w.option(proto.OptStructuredReply, nil)
	if r, text, _ := w.option(proto.OptStartTLS, nil); r != proto.RepAck {
		t.Fatal(r, text)
	}
	s := tls.Client(w.Conn, a.client(""))
	w = &wire{t: t, Conn: s, in: newReader(s)}
	if r, _, _ := w.option(proto.OptStartTLS, nil); r != proto.RepErrInvalid {
		t.Errorf("STARTTLS again: %#x", r)
	}
	if r, _, _ := w.option(proto.OptSetMetaContext, meta("a")); r != proto.RepErrInvalid {
		t.Errorf("structured replies outlive STARTTLS: %#x", r)
	}
	if r, text, _ := w.option(proto.OptGo, query("a")); r != proto.RepAck {
		t.Fatal(r, text)
	}
	w.request(proto.Request{Cmd: proto.CmdRead, Length: 4096, Cookie: 3})
	if e, cookie, _ := w.answer(4096); e != proto.OK || cookie != 3 {
		t.Error(e, cookie)
	}
}

func TestPlainWordsBehindStartTLSEndTheConnection(t *testing.T) {
	e, _ := pool()
	a := newAuthority(t)
	s, addr := start(t, e, func(c *nbd.Config) { c.TLS = a.server() })
	w := dial(t, "tcp", addr).flags()
	w.send(append(proto.AppendOption(nil, proto.OptStartTLS, nil), proto.AppendOption(nil, proto.OptGo, query("a"))...))
	w.ends()
	until(t, "it counts as malformed", func() bool { return s.Stats().Malformed == 1 })
}

func TestRulesLimitClients(t *testing.T) {
	a := newAuthority(t)
	e, _ := pool()
	rules, err := nbd.ParseRules([]byte(`
# who      what  how
backup     *     read
host-of-db a     write   # by a name of the host
anonymous  ro    read
`))
	if err != nil {
		t.Fatal(err)
	}
	_, addr := start(t, e, func(c *nbd.Config) { c.TLS, c.Rules = a.server(), rules })
	for _, c := range []struct {
		name             string
		tls              *tls.Config
		read, write, not string
	}{
		{"without TLS", nil, "ro", "", "a b nope"},
		{"without a certificate", a.client(""), "ro", "", "a b nope"},
		{"the database", a.client("db"), "", "a", "b ro nope"},
		{"the backup", a.client("backup"), "a b ro", "", "nope"},
		{"a stranger", a.client("stranger"), "", "", "a b ro nope"},
	} {
		for _, name := range strings.Fields(c.read + " " + c.write) {
			cl, err := nbdclient.Open(nbdclient.Options{Addr: addr, Export: name, TLS: c.tls, Style: nbdclient.Structured})
			if err != nil {
				t.Errorf("%s, %s: %v", c.name, name, err)
				continue
			}
			writable := c.write == name
			if readOnly := cl.Flags&proto.FlagReadOnly != 0; readOnly == writable {
				t.Errorf("%s, %s: flags %#x", c.name, name, cl.Flags)
			}
			err = cl.WriteAt(make([]byte, 4096), 0)
			if writable && err != nil || !writable && !errors.Is(err, errPerm) {
				t.Errorf("%s writes to %s: %v", c.name, name, err)
			}
			cl.Close()
		}
		for _, name := range strings.Fields(c.not) {
			_, err := nbdclient.Open(nbdclient.Options{Addr: addr, Export: name, TLS: c.tls})
			want := uint32(proto.RepErrUnknown)
			if c.tls == nil {
				want = uint32(proto.RepErrTLSReqd)
			}
			var r *nbdclient.Refused
			if !errors.As(err, &r) || r.Code != want {
				t.Errorf("%s opens %s: %v", c.name, name, err)
			}
		}
	}
	other := newAuthority(t)
	bad := a.client("")
	bad.Certificates = []tls.Certificate{other.issue("backup")}
	if c, err := nbdclient.Open(nbdclient.Options{Addr: addr, Export: "a", TLS: bad}); err == nil {
		c.Close()
		t.Error("a certificate of another authority opens an export")
	}
	w := dial(t, "tcp", addr).flags()
	if r, _, items := w.option(proto.OptList, nil); r != proto.RepAck || len(items) != 1 || !strings.Contains(string(items[0]), "ro") {
		t.Errorf("LIST without TLS: %#x %q", r, items)
	}
	if r, _, _ := w.option(proto.OptStructuredReply, nil); r != proto.RepAck {
		t.Error("STRUCTURED_REPLY without TLS")
	}
	if r, _, _ := w.option(proto.OptSetMetaContext, meta("a", "base:allocation")); r != proto.RepErrUnknown {
		t.Errorf("contexts of a hidden export: %#x", r)
	}
}

func TestRulesAreChecked(t *testing.T) {
	for _, text := range []string{"a", "a b", "a b c", "a b write d", "[ b read", "a [ read", strings.Repeat("x", 1<<20)} {
		if _, err := nbd.ParseRules([]byte("\n" + text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if _, err := nbd.NewServer(nbd.Config{Exports: &targettest.Exports{}, TLSRequired: true}); !fault.Is(err, fault.Invalid) {
		t.Errorf("TLSRequired without TLS: %v", err)
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte("a b read\n# c\n* d[a-z]* write"))
	f.Fuzz(func(t *testing.T, b []byte) { nbd.ParseRules(b) })
}

// The field's clients over TLS, with certificates in the files they expect.
func TestToolsOverTLS(t *testing.T) {
	need(t, "nbdinfo", "qemu-img")
	a := newAuthority(t)
	e, _ := pool()
	rules, err := nbd.ParseRules([]byte("db a write"))
	if err != nil {
		t.Fatal(err)
	}
	_, addr := start(t, e, func(c *nbd.Config) { c.TLS, c.TLSRequired, c.Rules = a.server(), true, rules })
	dir := a.files(a.issue("db"))
	hasAll(t, run(t, "nbdinfo", "nbds://"+addr+"/a?tls-certificates="+dir+"&tls-hostname=localhost"),
		"newstyle-fixed with TLS", "structured", "base:allocation")
	host, port, _ := net.SplitHostPort(addr)
	hasAll(t, run(t, "qemu-img", "info", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir,
		"--image-opts", "driver=nbd,host="+host+",port="+port+",export=a,tls-creds=t,tls-hostname=localhost"), "64 MiB")
}
