package pki

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Files of a node's pki directory, PEM, readable by its owner only.
const (
	poolCertFile = "pool.crt"
	poolKeyFile  = "pool.key"
	nodeCertFile = "node.crt"
	nodeKeyFile  = "node.key"
)

// Save writes an identity to dir, which must not hold one. All files are
// durable on return.
func (i *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	poolKey, err := x509.MarshalPKCS8PrivateKey(i.Authority.key)
	if err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	nodeKey, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{
		{poolCertFile, "CERTIFICATE", i.der}, {poolKeyFile, "PRIVATE KEY", poolKey},
		{nodeCertFile, "CERTIFICATE", i.cert}, {nodeKeyFile, "PRIVATE KEY", nodeKey},
	} {
		if err := create(filepath.Join(dir, f.name), pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})); err != nil {
			return fault.New(fault.Internal, "pki.save", filepath.Join(dir, f.name), err)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fault.New(fault.Internal, "pki.save", dir, err)
	}
	return nil
}

func create(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	return err
}

// Load reads the identity that Save wrote. NotFound: there is none. Corrupt: a
// file is damaged or missing, or they do not belong together; it says which.
func Load(dir string) (*Identity, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "pki.load", dir, err)
	}
	ders := map[string][]byte{}
	for _, name := range []string{poolCertFile, poolKeyFile, nodeCertFile, nodeKeyFile} {
		path := filepath.Join(dir, name)
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Newf(fault.Corrupt, "pki.load", path, "the file cannot be read (%v); restore it from a backup", err)
		}
		b, _ := pem.Decode(raw)
		if b == nil {
			return nil, fault.Newf(fault.Corrupt, "pki.load", path, "the file is damaged; restore it from a backup")
		}
		ders[name] = b.Bytes
	}
	key := func(name string) (ed25519.PrivateKey, error) {
		k, err := x509.ParsePKCS8PrivateKey(ders[name])
		if ed, ok := k.(ed25519.PrivateKey); ok && err == nil {
			return ed, nil
		}
		return nil, fault.Newf(fault.Corrupt, "pki.load", filepath.Join(dir, name), "not an ed25519 key; restore it from a backup")
	}
	poolKey, err := key(poolKeyFile)
	if err != nil {
		return nil, err
	}
	nodeKey, err := key(nodeKeyFile)
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(ders[poolCertFile], poolKey)
	if err != nil {
		return nil, err
	}
	return newIdentity(a, ders[nodeCertFile], nodeKey)
}
