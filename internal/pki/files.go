package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Files in DIR/pki, PEM, mode 0600. node.crt is written last: it is what makes
// a node a member.
const (
	fileCACert   = "ca.crt"
	fileCAKey    = "ca.key"
	fileNodeKey  = "node.key"
	fileNodeCert = "node.crt"
	fileSizeMax  = 64 << 10
)

// Init makes a new pool's authority and the first node's identity and stores
// both in dir. Exists: dir already holds an identity.
func Init(dir string, pool ident.PoolID) (*Identity, error) {
	if err := mustBeNew("pool init", dir); err != nil {
		return nil, err
	}
	ca, err := NewCA(pool)
	if err != nil {
		return nil, err
	}
	id, err := ca.NewIdentity()
	if err != nil {
		return nil, err
	}
	return id, id.Save(dir)
}

func mustBeNew(op, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, fileNodeCert)); err == nil {
		return fault.Newf(fault.Exists, op, dir, "this node is already a member of a pool; to start over, remove its directory")
	}
	return nil
}

// Save stores the identity durably in dir, making it if need be.
func (id *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	for _, f := range []struct {
		name, kind string
		key        ed25519.PrivateKey
		cert       *x509.Certificate
	}{
		{fileCACert, "CERTIFICATE", nil, id.CA.Cert},
		{fileCAKey, "PRIVATE KEY", id.CA.Key, nil},
		{fileNodeKey, "PRIVATE KEY", id.Key, nil},
		{fileNodeCert, "CERTIFICATE", nil, id.Cert},
	} {
		var der []byte
		if f.cert != nil {
			der = f.cert.Raw
		} else {
			var err error
			if der, err = x509.MarshalPKCS8PrivateKey(f.key); err != nil {
				return fault.New(fault.Internal, "pki.save", f.name, err)
			}
		}
		if err := writeFile(dir, f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: der})); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces dir/name atomically and durably.
func writeFile(dir, name string, b []byte) error {
	fail := func(err error) error {
		return fault.New(fault.Internal, "pki.save", filepath.Join(dir, name), err)
	}
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fail(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fail(err)
	}
	return nil
}

// Load reads the identity in dir. NotFound: there is none. Denied: a file can
// be read by others. Corrupt: the files are damaged or do not belong together.
func Load(dir string) (*Identity, error) {
	if _, err := os.Lstat(filepath.Join(dir, fileNodeCert)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.NotFound, "pki.load", dir,
			"this node is in no pool; start one with `gabion pool init` or enter one with a token")
	}
	caCert, err := readCert(dir, fileCACert)
	if err != nil {
		return nil, err
	}
	caKey, err := readKey(dir, fileCAKey)
	if err != nil {
		return nil, err
	}
	ca, err := parseCA(caCert, caKey)
	if err != nil {
		return nil, err
	}
	key, err := readKey(dir, fileNodeKey)
	if err != nil {
		return nil, err
	}
	cert, err := readCert(dir, fileNodeCert)
	if err != nil {
		return nil, err
	}
	return newIdentity(ca, key, cert)
}

// nodeKey returns the node key in dir, making it if there is none, so that a
// join that is repeated stays the same node.
func nodeKey(dir string) (ed25519.PrivateKey, error) {
	key, err := readKey(dir, fileNodeKey)
	if !fault.Is(err, fault.NotFound) {
		return key, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Internal, "pki.save", dir, err)
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.new", "", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.save", fileNodeKey, err)
	}
	return key, writeFile(dir, fileNodeKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func readPEM(dir, name, kind string) ([]byte, error) {
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.NotFound, "pki.load", path, "the file is missing")
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.load", path, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fault.Newf(fault.Denied, "pki.load", path, "others may read this file; run: chmod 600 %s", path)
	}
	if st.Size() > fileSizeMax {
		return nil, fault.Newf(fault.Corrupt, "pki.load", path, "the file is too large")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.load", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fault.Newf(fault.Corrupt, "pki.load", path, "there is no %s in it", kind)
	}
	return block.Bytes, nil
}

func readCert(dir, name string) (*x509.Certificate, error) {
	der, err := readPEM(dir, name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "pki.load", filepath.Join(dir, name), err)
	}
	return cert, nil
}

func readKey(dir, name string) (ed25519.PrivateKey, error) {
	der, err := readPEM(dir, name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	return parseKey(der, filepath.Join(dir, name))
}

func parseKey(der []byte, subject string) (ed25519.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "pki.load", subject, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.Newf(fault.Corrupt, "pki.load", subject, "this is not an ed25519 key")
	}
	return key, nil
}
