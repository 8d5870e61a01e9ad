package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

func pool(t testing.TB) *Identity {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIdentity(a)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestNodeCertificateNamesItsNode(t *testing.T) {
	i, other := pool(t), pool(t)
	cert, err := x509.ParseCertificate(i.cert)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := i.Verify(cert); err != nil || id != i.Node {
		t.Errorf("own certificate: %v, %v", id, err)
	}
	if _, err := other.Verify(cert); !fault.Is(err, fault.Denied) {
		t.Errorf("another pool's node was let in: %v", err)
	}
	if _, err := i.Verify(i.Authority.cert); !fault.Is(err, fault.Denied) {
		t.Errorf("the authority's certificate passed for a node's: %v", err)
	}
}

func TestTokens(t *testing.T) {
	i, other := pool(t), pool(t)
	now := time.Unix(1_800_000_000, 0)
	tok, err := i.MintToken(now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.CheckToken(tok, now.Add(59*time.Minute)); err != nil {
		t.Errorf("good token: %v", err)
	}
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"expired":      {i.CheckToken(tok, now.Add(time.Hour)), fault.Denied},
		"other pool":   {other.CheckToken(tok, now), fault.Denied},
		"cut":          {i.CheckToken(tok[:50], now), fault.Invalid},
		"not base64":   {i.CheckToken("%%%", now), fault.Invalid},
		"empty":        {i.CheckToken("", now), fault.Invalid},
		"long":         {i.CheckToken(strings.Repeat("A", 10000), now), fault.Invalid},
		"later expiry": {i.CheckToken(forge(tok), now), fault.Denied},
	} {
		if !fault.Is(c.err, c.kind) {
			t.Errorf("%s: %v, want kind %v", name, c.err, c.kind)
		}
	}
	if _, err := i.MintToken(now, TokenTTLMax+1); !fault.Is(err, fault.Invalid) {
		t.Errorf("a token for ever: %v", err)
	}
}

// forge changes one character in the part that holds the expiry.
func forge(tok string) string {
	b := []byte(tok)
	if b[70] == 'A' {
		b[70] = 'B'
	} else {
		b[70] = 'A'
	}
	return string(b)
}

// serve answers joins of pool i on a loopback port.
func serve(t *testing.T, i *Identity) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.JoinCertificate()}, NextProtos: []string{JoinProtocol},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = i.ServeJoin(c, time.Now(), []byte("state")) }()
		}
	}()
	return l.Addr().String()
}

func TestJoin(t *testing.T) {
	i, other := pool(t), pool(t)
	addr := serve(t, i)
	tok, err := i.MintToken(time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n, state, err := Join(context.Background(), addr, tok)
	if err != nil {
		t.Fatal(err)
	}
	if string(state) != "state" || n.Pool != i.Pool || n.Node == i.Node {
		t.Errorf("joined as %+v with state %q", n, state)
	}
	if _, err := n.MintToken(time.Now(), time.Hour); err != nil {
		t.Errorf("a node that joined cannot admit others: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	if err := n.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil || again.Node != n.Node || again.Pool != n.Pool {
		t.Errorf("loaded %v, %v", again, err)
	}
	expired, _ := i.MintToken(time.Now().Add(-2*time.Hour), time.Hour)
	if _, _, err := Join(context.Background(), addr, expired); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired token: %v", err)
	}
	foreign, _ := other.MintToken(time.Now(), time.Hour)
	if _, _, err := Join(context.Background(), addr, foreign); !fault.Is(err, fault.Denied) {
		t.Errorf("token of another pool: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	if _, _, err := Join(context.Background(), gone, tok); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestLoadNamesTheDamagedFile(t *testing.T) {
	i := pool(t)
	for _, name := range []string{poolCertFile, poolKeyFile, nodeCertFile, nodeKeyFile} {
		dir := filepath.Join(t.TempDir(), "pki")
		if err := i.Save(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), name) {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no directory: %v", err)
	}
}

func FuzzParseToken(f *testing.F) {
	i := pool(f)
	tok, _ := i.MintToken(time.Unix(1_800_000_000, 0), time.Hour)
	f.Add(tok)
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParseToken(s); err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("kind of %v", err)
		}
		if err := i.CheckToken(s, time.Unix(1_800_000_001, 0)); err == nil && strings.TrimSpace(s) != tok {
			t.Fatalf("forged: %q", s)
		}
	})
}
