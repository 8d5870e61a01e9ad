package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA(ident.NewPool())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// want demands a kind and a part of the text.
func want(t *testing.T, err error, k fault.Kind, text string) {
	t.Helper()
	if !fault.Is(err, k) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v, want kind %v with %q", err, k, text)
	}
}

func TestIdentityIsTheHashOfItsKey(t *testing.T) {
	ca := newCA(t)
	a, err := ca.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if a.Node != NodeOf(a.Key.Public().(ed25519.PublicKey)) || a.Pool() != ca.Pool {
		t.Fatal("wrong identity")
	}
	b, _ := ca.NewIdentity()
	got, err := a.VerifyPeer([]*x509.Certificate{b.Cert})
	if err != nil || got != b.Node {
		t.Fatal(got, err)
	}
	if uri := b.Cert.URIs[0].String(); uri != "gabion://"+ca.Pool.String()+"/"+b.Node.String() {
		t.Fatal(uri)
	}
}

func TestVerifyRefusesForeignCertificates(t *testing.T) {
	ca := newCA(t)
	a, _ := ca.NewIdentity()
	other, _ := newCA(t).NewIdentity()
	_, err := a.VerifyPeer([]*x509.Certificate{other.Cert})
	want(t, err, fault.Denied, "another pool")
	forged, _ := NewCA(ca.Pool)
	fake, _ := forged.NewIdentity()
	_, err = a.VerifyPeer([]*x509.Certificate{fake.Cert})
	want(t, err, fault.Denied, "not signed by this pool")
	_, err = a.VerifyPeer([]*x509.Certificate{ca.Cert})
	want(t, err, fault.Denied, "not that of its key")
	_, err = a.VerifyPeer(nil)
	want(t, err, fault.Denied, "no certificate")
}

func TestTokens(t *testing.T) {
	ca, now := newCA(t), time.Unix(1_800_000_000, 0)
	token := ca.Mint(now, TokenLife)
	got, err := ParseToken(" " + token.String() + "\n")
	if err != nil || got.String() != token.String() || !got.Expiry.Equal(now.Add(24*time.Hour)) {
		t.Fatal(got, err)
	}
	if err := ca.Verify(got, now.Add(24*time.Hour-time.Second)); err != nil {
		t.Fatal(err)
	}
	want(t, ca.Verify(got, now.Add(24*time.Hour)), fault.Denied, "expired at 2027-01-16T08:00:00Z; make a new one")
	want(t, newCA(t).Verify(got, now), fault.Denied, "the token is for pool "+ca.Pool.Short())
	longer := got
	longer.Expiry = now.Add(1000 * time.Hour)
	want(t, ca.Verify(longer, now), fault.Denied, "not made by this pool")
	text := token.String()
	for i := range text {
		damaged := text[:i] + string(text[i]^1) + text[i+1:]
		if _, err := ParseToken(damaged); !fault.Is(err, fault.Invalid) {
			t.Fatalf("character %d may be changed: %v", i, err)
		}
	}
	for _, s := range []string{"", "hello", text[:len(text)-1], text + "A", strings.Repeat("A", len(text))} {
		_, err := ParseToken(s)
		want(t, err, fault.Invalid, "the token is damaged")
	}
}

func FuzzToken(f *testing.F) {
	f.Add(newCA(f).Mint(time.Now(), time.Hour).String())
	f.Add(base64.RawURLEncoding.EncodeToString(make([]byte, tokenSize)))
	f.Fuzz(func(t *testing.T, s string) {
		plain := strings.NewReplacer("\r", "", "\n", "").Replace(strings.TrimSpace(s)) // base64 skips line ends
		if tok, err := ParseToken(s); err == nil && tok.String() != plain {
			t.Fatalf("%q became %q", s, tok.String())
		}
	})
}

func FuzzJoinMessage(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req JoinRequest
		if readMessage(strings.NewReader(string(b)), &req) != nil {
			return
		}
		ca := fuzzCA
		s := JoinServer{Identity: &Identity{CA: ca}}
		if _, _, err := s.answer(context.Background(), req); err == nil {
			t.Fatal("admitted without a token")
		}
	})
}

var fuzzCA, _ = NewCA(ident.NewPool())

func TestFilesKeepTheIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	_, err := Load(dir)
	want(t, err, fault.NotFound, "gabion pool init")
	id, err := Init(dir, ident.NewPool())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil || got.Node != id.Node || got.Pool() != id.Pool() || !got.CA.Key.Equal(id.CA.Key) {
		t.Fatal(got, err)
	}
	_, err = Init(dir, ident.NewPool())
	want(t, err, fault.Exists, "already a member")
	entries, _ := os.ReadDir(dir)
	if len(entries) != 4 {
		t.Fatal(entries)
	}
	for _, e := range entries {
		if st, _ := e.Info(); st.Mode().Perm() != 0o600 {
			t.Fatal(e.Name(), st.Mode())
		}
	}
}

func TestLoadRefusesDamage(t *testing.T) {
	make := func(t *testing.T) string {
		dir := filepath.Join(t.TempDir(), "pki")
		if _, err := Init(dir, ident.NewPool()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, name := range []string{fileCACert, fileCAKey, fileNodeKey, fileNodeCert} {
		t.Run(name, func(t *testing.T) {
			dir, other := make(t), make(t)
			path := filepath.Join(dir, name)
			good, _ := os.ReadFile(path)
			foreign, _ := os.ReadFile(filepath.Join(other, name))
			for what, b := range map[string][]byte{"empty": nil, "cut": good[:len(good)/2], "of another pool": foreign} {
				os.WriteFile(path, b, 0o600)
				if _, err := Load(dir); !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Denied) {
					t.Errorf("%s: %v", what, err)
				}
			}
			os.WriteFile(path, good, 0o600)
			os.Chmod(path, 0o644)
			_, err := Load(dir)
			want(t, err, fault.Denied, "chmod 600 "+path)
			os.Remove(path)
			_, err = Load(dir)
			want(t, err, fault.NotFound, "")
		})
	}
}

// serve answers joins like a mesh does, until the test ends.
func serve(t *testing.T, s *JoinServer) (addr string) {
	t.Helper()
	cfg := s.Identity.TLS()
	cfg.NextProtos = []string{ALPNJoin}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _, _ = s.Serve(context.Background(), c) // the client's error is checked
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func TestJoin(t *testing.T) {
	ctx, ca := context.Background(), newCA(t)
	id, _ := ca.NewIdentity()
	seeds := []Seed{{ID: id.Node, Name: "first", Addr: "10.0.0.1:7500"}}
	var admitted ident.NodeID
	addr := serve(t, &JoinServer{
		Identity: id, Nodes: func() []Seed { return seeds },
		Admit: func(_ context.Context, node ident.NodeID, req JoinRequest) error {
			if req.Name == "unwanted" {
				return fault.Newf(fault.Conflict, "admit", "", "the name is taken")
			}
			admitted = node
			return nil
		},
	})
	dir := filepath.Join(t.TempDir(), "pki")
	cfg := JoinConfig{Dir: dir, Addr: addr, Token: ca.Mint(time.Now(), time.Hour).String(), Name: "second"}
	got, nodes, err := Join(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != admitted || got.Pool() != ca.Pool || len(nodes) != 1 || nodes[0] != seeds[0] {
		t.Fatal(got.Node, nodes)
	}
	if again, err := Load(dir); err != nil || again.Node != got.Node {
		t.Fatal(err)
	}
	if _, err := id.VerifyPeer([]*x509.Certificate{got.Cert}); err != nil {
		t.Fatal(err)
	}
	_, _, err = Join(ctx, cfg)
	want(t, err, fault.Exists, "already a member")

	// the new node admits others as well as the first
	third := serve(t, &JoinServer{Identity: got, Nodes: func() []Seed { return nil }})
	cfg = JoinConfig{Dir: filepath.Join(t.TempDir(), "pki"), Addr: third, Token: got.CA.Mint(time.Now(), time.Hour).String()}
	if _, _, err := Join(ctx, cfg); err != nil {
		t.Fatal(err)
	}
}

func TestJoinRefusals(t *testing.T) {
	ctx, ca := context.Background(), newCA(t)
	id, _ := ca.NewIdentity()
	addr := serve(t, &JoinServer{Identity: id, Admit: func(_ context.Context, _ ident.NodeID, req JoinRequest) error {
		if req.Name == "unwanted" {
			return fault.Newf(fault.Conflict, "admit", "", "the name is taken")
		}
		return nil
	}})
	other := newCA(t)
	otherID, _ := other.NewIdentity()
	otherAddr := serve(t, &JoinServer{Identity: otherID})
	closed, _ := net.Listen("tcp", "127.0.0.1:0")
	closed.Close()
	good := ca.Mint(time.Now(), time.Hour).String()
	twin, _ := NewCA(ca.Pool) // same pool id, another authority
	forged := ca.Mint(time.Now(), time.Hour)
	forged.MAC[0] ^= 1
	for _, c := range []struct {
		name, addr, token, node string
		kind                    fault.Kind
		text                    string
	}{
		{"damaged token", addr, good[:20], "", fault.Invalid, "damaged"},
		{"expired token", addr, ca.Mint(time.Now().Add(-25*time.Hour), TokenLife).String(), "", fault.Denied, "expired"},
		{"forged token", addr, forged.String(), "", fault.Denied, "not made by this pool"},
		{"wrong fingerprint", addr, twin.Mint(time.Now(), time.Hour).String(), "", fault.Denied, "does not belong to the pool of the token"},
		{"other pool", otherAddr, good, "", fault.Denied, "does not belong to the pool of the token"},
		{"nobody there", closed.Addr().String(), good, "", fault.Unavailable, "no node answers there"},
		{"refused by the pool", addr, good, "unwanted", fault.Conflict, "the name is taken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			cfg := JoinConfig{Dir: dir, Addr: c.addr, Token: c.token, Name: c.node}
			_, _, err := Join(ctx, cfg)
			want(t, err, c.kind, c.text)
			if _, err := Load(dir); !fault.Is(err, fault.NotFound) {
				t.Fatal("a failed join left an identity", err)
			}
			// it can be repeated in the same directory, as the same node
			before, _ := readKey(dir, fileNodeKey)
			cfg.Addr, cfg.Token, cfg.Name = addr, good, ""
			id, _, err := Join(ctx, cfg)
			if err != nil || (before != nil && !id.Key.Equal(before)) {
				t.Fatal(err)
			}
		})
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, _, err = Join(ctx, JoinConfig{Dir: t.TempDir(), Addr: ln.Addr().String(), Token: newCA(t).Mint(time.Now(), time.Hour).String()})
	if err == nil {
		t.Fatal("joined nobody")
	}
}

func TestStrangerInTheMiddleLearnsNothing(t *testing.T) {
	ca := newCA(t)
	// presents the pool's public certificate under a key of its own
	mallory := newCA(t)
	id, _ := mallory.NewIdentity()
	cfg := id.TLS()
	cfg.NextProtos = []string{ALPNJoin}
	cfg.Certificates[0].Certificate = [][]byte{id.Cert.Raw, ca.Cert.Raw}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan bool, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var req json.RawMessage
		heard <- readMessage(c, &req) == nil
	}()
	_, _, err = Join(context.Background(), JoinConfig{Dir: t.TempDir(), Addr: ln.Addr().String(), Token: ca.Mint(time.Now(), time.Hour).String()})
	want(t, err, fault.Denied, "")
	if <-heard {
		t.Fatal("the token was told to a stranger")
	}
}
