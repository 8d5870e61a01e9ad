package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Service is a certificate for something that is no node: an NBD server that
// clients know by its host name, or one of those clients. Links between nodes
// refuse it. Its key is of ECDSA on P-256, and not of Ed25519 as everything else
// of the pool: under TLS 1.2 GnuTLS never shows a certificate of that kind as a
// client, and nbd-client speaks nothing newer.
type Service struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// IssueService makes a key and certifies it for name, which becomes the common
// name, and hosts, DNS names or IP addresses.
func (ca *CA) IssueService(name string, hosts []string) (Service, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Service{}, fault.New(fault.Internal, "pki.new", name, err)
	}
	t := template(ca.Pool, name)
	t.BasicConstraintsValid = true
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	cert, err := sign(t, ca.Cert, key.Public(), ca.Key)
	return Service{cert, key}, err
}

// SaveClient writes ca-cert.pem, client-cert.pem and client-key.pem, the names
// that GnuTLS's programs (libnbd's tools, QEMU's) look for, into dir, which it
// makes. Exists: one of them is there already.
func (s Service) SaveClient(ca *CA, dir string) error {
	const op = "pki.save"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Internal, op, dir, err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		return fault.New(fault.Internal, op, dir, err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{
		{"client-key.pem", "PRIVATE KEY", key},
		{"client-cert.pem", "CERTIFICATE", s.Cert.Raw},
		{"ca-cert.pem", "CERTIFICATE", ca.Cert.Raw},
	} {
		path := filepath.Join(dir, f.name)
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if os.IsExist(err) {
			return fault.Newf(fault.Exists, op, path, "the file is there already; choose another folder")
		}
		if err == nil {
			_, err = file.Write(pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}))
			if cerr := file.Close(); err == nil {
				err = cerr
			}
		}
		if err != nil {
			return fault.New(fault.Internal, op, path, err)
		}
	}
	return nil
}
