// Package pki is who belongs to a pool: the pool's own certificate authority,
// the certificates of its nodes, and the tokens that let a node in. Every node
// has the authority's key, because all nodes are equal: any of them can admit
// another.
package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// validity of all certificates. Membership ends by the pool's decision, not by
// a date: a clock that is wrong must never stop a database.
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2099, 12, 31, 0, 0, 0, 0, time.UTC)
)

// Authority is a pool's certificate authority.
type Authority struct {
	Pool ident.PoolID
	der  []byte
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// NewAuthority makes a new pool.
func NewAuthority() (*Authority, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	id := ident.NewPool()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "gabion pool " + id.String()},
		NotBefore: notBefore, NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{poolURI(id)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	return parseAuthority(der, key)
}

func parseAuthority(der []byte, key ed25519.PrivateKey) (*Authority, error) {
	bad := func(why string) (*Authority, error) {
		return nil, fault.Newf(fault.Corrupt, "pki.authority", "", "the pool's certificate %s", why)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return bad("is damaged: " + err.Error())
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !cert.IsCA {
		return bad("is not an authority's")
	}
	if len(key) != ed25519.PrivateKeySize || !pub.Equal(key.Public()) {
		return bad("does not belong to the pool's key")
	}
	id, ok := poolOf(cert)
	if !ok {
		return bad("names no pool")
	}
	return &Authority{Pool: id, der: der, cert: cert, key: key}, nil
}

func serial() *big.Int {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic("pki: no randomness: " + err.Error())
	}
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func poolURI(id ident.PoolID) *url.URL { return &url.URL{Scheme: "gabion", Host: id.String()} }

func nodeURI(p ident.PoolID, n ident.NodeID) *url.URL {
	return &url.URL{Scheme: "gabion", Host: p.String(), Path: "/" + n.String()}
}

// poolOf reads the pool that a certificate names.
func poolOf(c *x509.Certificate) (ident.PoolID, bool) {
	var id ident.PoolID
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "gabion" {
		return id, false
	}
	return id, id.UnmarshalText([]byte(c.URIs[0].Host)) == nil
}

// NodeID is the identity that belongs to a public key.
func NodeID(pub ed25519.PublicKey) ident.NodeID {
	sum := sha256.Sum256(pub)
	return ident.NodeID(sum[:16])
}

// Sign issues the certificate of the node with key pub.
func (a *Authority) Sign(pub ed25519.PublicKey) ([]byte, error) {
	id := NodeID(pub)
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "gabion node " + id.String()},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{nodeURI(a.Pool, id)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.sign", id.Short(), err)
	}
	return der, nil
}

// Identity is what a node is: its key, its certificate, and its pool.
type Identity struct {
	*Authority
	Node ident.NodeID
	cert []byte
	key  ed25519.PrivateKey
}

// NewIdentity makes the first node of a new pool.
func NewIdentity(a *Authority) (*Identity, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	der, err := a.Sign(pub)
	if err != nil {
		return nil, err
	}
	return newIdentity(a, der, key)
}

func newIdentity(a *Authority, der []byte, key ed25519.PrivateKey) (*Identity, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "pki.identity", "", err)
	}
	id, err := a.Verify(cert)
	if err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize || id != NodeID(key.Public().(ed25519.PublicKey)) {
		return nil, fault.Newf(fault.Corrupt, "pki.identity", "", "the node's certificate does not belong to its key")
	}
	return &Identity{Authority: a, Node: id, cert: der, key: key}, nil
}

// Verify checks that a peer's certificate is one of this pool and returns the
// node it belongs to. Denied: another pool's, or nobody's.
func (a *Authority) Verify(cert *x509.Certificate) (ident.NodeID, error) {
	const op = "pki.verify"
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return ident.NodeID{}, fault.Newf(fault.Denied, op, "", "not the certificate of a gabion node")
	}
	id := NodeID(pub)
	if err := cert.CheckSignatureFrom(a.cert); err != nil {
		if p, ok := poolOf(cert); ok && p != a.Pool {
			return id, fault.Newf(fault.Denied, op, id.Short(), "it belongs to pool %s, this is pool %s", p.Short(), a.Pool.Short())
		}
		return id, fault.Newf(fault.Denied, op, id.Short(), "its certificate was not issued by this pool")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != nodeURI(a.Pool, id).String() {
		return id, fault.Newf(fault.Denied, op, id.Short(), "its certificate does not name it as a node of this pool")
	}
	return id, nil
}

// TLSCertificate is what the node shows in a handshake.
func (i *Identity) TLSCertificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{i.cert}, PrivateKey: i.key}
}

// Fingerprint is SHA-256 of the authority's certificate, as tokens carry it.
func (a *Authority) Fingerprint() [32]byte { return sha256.Sum256(a.der) }

// CertificateDER is the authority's certificate.
func (a *Authority) CertificateDER() []byte { return a.der }
