package attach

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// loadTLS reads the files that 'gabion node nbd-client' writes; nil for no
// directory.
func loadTLS(dir string) (*tls.Config, error) {
	if dir == "" {
		return nil, nil
	}
	file := filepath.Join(dir, "ca-cert.pem")
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, vfs.OSError(op, file, err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !c.RootCAs.AppendCertsFromPEM(raw) {
		return nil, fault.Newf(fault.Invalid, op, file, "there is no certificate in it")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	switch {
	case err == nil:
		c.Certificates = []tls.Certificate{pair}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fault.Newf(fault.Invalid, op, dir, "client-cert.pem and client-key.pem cannot be used: %w", err)
	}
	return c, nil
}
