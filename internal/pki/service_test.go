package pki

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestServiceCertificatesAreNoNodes(t *testing.T) {
	ca := newCA(t)
	s, err := ca.IssueService("backup", []string{"db.example", "10.0.0.1", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	for _, host := range []string{"db.example", "10.0.0.1", "::1"} {
		if _, err := s.Cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := s.Cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error("as a client: ", err)
	}
	if s.Cert.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("its key is %v, which GnuTLS's clients of TLS 1.2 do not show", s.Cert.PublicKeyAlgorithm)
	}
	if _, err := ca.verify([]*x509.Certificate{s.Cert}); !fault.Is(err, fault.Denied) {
		t.Errorf("a link with it: %v", err)
	}
	dir := t.TempDir()
	if err := s.SaveClient(ca, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem")); err != nil {
		t.Error(err)
	}
	if err := s.SaveClient(ca, dir); !fault.Is(err, fault.Exists) {
		t.Errorf("over another's files: %v", err)
	}
}
