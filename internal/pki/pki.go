// Package pki is who may talk: the pool's certificate authority, the
// certificates of its nodes, the tokens that let a new node in, and the
// exchange in which it gets its certificate.
//
// Every node holds the authority's key, so that any of them can admit another.
// Certificates carry no meaningful dates: a node with a wrong clock must come
// back after a power cut. Only tokens expire.
package pki

import (
	"bytes"
	"crypto"
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
	"github.com/gabion-storage/gabion/internal/mutant"
)

// Certificates are valid as long as X.509 can say (RFC 5280, 4.1.2.5).
var (
	notBefore = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// CA is a pool's certificate authority. Immutable.
type CA struct {
	Pool ident.PoolID
	Cert *x509.Certificate
	Key  ed25519.PrivateKey
}

// Identity is what a node proves itself with. Immutable.
type Identity struct {
	CA   *CA
	Node ident.NodeID
	Key  ed25519.PrivateKey
	Cert *x509.Certificate
}

// NodeOf is the identity that belongs to a public key: the first 16 bytes of
// its SHA-256.
func NodeOf(pub ed25519.PublicKey) ident.NodeID {
	sum := sha256.Sum256(pub)
	return ident.NodeID(sum[:16])
}

// NewCA makes the authority of a new pool.
func NewCA(pool ident.PoolID) (*CA, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	tmpl := template(pool, "gabion pool "+pool.Short())
	tmpl.URIs = []*url.URL{{Scheme: "gabion", Host: pool.String()}}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	cert, err := sign(tmpl, tmpl, key.Public().(ed25519.PublicKey), key)
	if err != nil {
		return nil, err
	}
	return &CA{Pool: pool, Cert: cert, Key: key}, nil
}

func template(pool ident.PoolID, name string) *x509.Certificate {
	var serial [16]byte
	if _, err := rand.Read(serial[:]); err != nil {
		panic("pki: no randomness: " + err.Error())
	}
	serial[0] &= 0x7f // positive
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{Organization: []string{pool.String()}, CommonName: name},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
	}
}

// sign has key, the parent's, certify pub.
func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key ed25519.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.sign", "", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.sign", "", err)
	}
	return cert, nil
}

// Issue certifies the node that has the private key of pub.
func (ca *CA) Issue(pub ed25519.PublicKey) (*x509.Certificate, error) {
	node := NodeOf(pub)
	t := template(ca.Pool, "gabion node "+node.Short())
	t.URIs = []*url.URL{nodeURI(ca.Pool, node)}
	t.BasicConstraintsValid = true
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return sign(t, ca.Cert, pub, ca.Key)
}

// NewIdentity makes a key and certifies it.
func (ca *CA) NewIdentity() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	cert, err := ca.Issue(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	return newIdentity(ca, key, cert)
}

// newIdentity checks that the parts belong together.
func newIdentity(ca *CA, key ed25519.PrivateKey, cert *x509.Certificate) (*Identity, error) {
	node := NodeOf(key.Public().(ed25519.PublicKey))
	id := &Identity{CA: ca, Node: node, Key: key, Cert: cert}
	got, err := id.VerifyPeer([]*x509.Certificate{cert})
	if err != nil {
		return nil, err
	}
	if got != node {
		return nil, fault.Newf(fault.Corrupt, "pki.load", node.Short(), "the certificate is for another key (node %s)", got.Short())
	}
	return id, nil
}

// nodeURI is the name a certificate carries: gabion://POOL/NODE.
func nodeURI(pool ident.PoolID, node ident.NodeID) *url.URL {
	return &url.URL{Scheme: "gabion", Host: pool.String(), Path: "/" + node.String()}
}

// Pool is the pool that the node belongs to.
func (id *Identity) Pool() ident.PoolID { return id.CA.Pool }

// TLS returns a fresh configuration with the node's certificate, for mutual
// TLS 1.3. The caller adds the protocols and must call VerifyPeer in
// VerifyConnection: the standard verification is off because nodes are known
// by their key, not by a host name.
func (id *Identity) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{
			Certificate: [][]byte{id.Cert.Raw, id.CA.Cert.Raw},
			PrivateKey:  id.Key,
			Leaf:        id.Cert,
		}},
		InsecureSkipVerify:          true, // VerifyPeer instead
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// VerifyPeer returns the node that the chain's first certificate belongs to.
// Denied, with the reason: it is not signed by this pool's authority, names
// another pool, or is not a node's.
func (id *Identity) VerifyPeer(chain []*x509.Certificate) (ident.NodeID, error) {
	return id.CA.verify(chain)
}

func (ca *CA) verify(chain []*x509.Certificate) (ident.NodeID, error) {
	deny := func(reason string) (ident.NodeID, error) {
		return ident.NodeID{}, fault.Newf(fault.Denied, "pki.verify", "", "%s", reason)
	}
	if len(chain) == 0 {
		return deny("the peer shows no certificate")
	}
	leaf := chain[0]
	pub, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return deny("the peer's key is not an ed25519 key")
	}
	node := NodeOf(pub)
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "gabion" {
		return deny("the peer's certificate is not one of gabion")
	}
	if leaf.URIs[0].Host != ca.Pool.String() {
		return deny("the peer belongs to another pool: " + leaf.URIs[0].Host)
	}
	if leaf.IsCA || leaf.URIs[0].Path != "/"+node.String() {
		return deny("the peer's certificate is not that of its key")
	}
	if err := leaf.CheckSignatureFrom(ca.Cert); err != nil && !mutant.On("any-authority") {
		return deny("the peer's certificate is not signed by this pool's authority: " + err.Error())
	}
	return node, nil
}

// parseCA checks and joins the parts of an authority. key may be nil.
func parseCA(cert *x509.Certificate, key ed25519.PrivateKey) (*CA, error) {
	bad := func(reason string) (*CA, error) {
		return nil, fault.Newf(fault.Corrupt, "pki.load", "ca", "%s", reason)
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "gabion" {
		return bad("this is not the certificate of a gabion pool")
	}
	var pool ident.PoolID
	if err := pool.UnmarshalText([]byte(cert.URIs[0].Host)); err != nil {
		return bad("the certificate names no pool: " + err.Error())
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return bad("the certificate is not signed by itself: " + err.Error())
	}
	if key != nil && !bytes.Equal(pub, key.Public().(ed25519.PublicKey)) {
		return bad("key and certificate do not belong together")
	}
	return &CA{Pool: pool, Cert: cert, Key: key}, nil
}

// Fingerprint is the SHA-256 of the authority's certificate.
func (ca *CA) Fingerprint() [32]byte { return sha256.Sum256(ca.Cert.Raw) }
