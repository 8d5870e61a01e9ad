package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/pki"
)

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

func newPool(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(ident.NewPool())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func identity(t *testing.T, ca *pki.CA) *pki.Identity {
	t.Helper()
	id, err := ca.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func startMesh(t *testing.T, cfg MeshConfig) (*Mesh, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	cfg.Listen = "127.0.0.1:0"
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	m, err := NewMesh(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	m.Start()
	return m, log
}

func TestHazardStrangersInThePool(t *testing.T) {
	ca := newPool(t)
	good := identity(t, ca)
	sameName, err := pki.NewCA(ca.Pool) // the right pool id, another authority
	if err != nil {
		t.Fatal(err)
	}
	selfSigned := func() *tls.Config {
		pub, key, _ := ed25519.GenerateKey(nil)
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(nil, tmpl, tmpl, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	}
	stolen := identity(t, ca).TLS() // a member's certificate without its key
	stolen.Certificates[0].PrivateKey = identity(t, ca).Key
	caAsNode := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{ca.Cert.Raw}, PrivateKey: ca.Key}}}
	for _, c := range []struct {
		name, reason string
		cfg          *tls.Config
		alpn         string
	}{
		{"no certificate", "didn't provide a certificate", &tls.Config{}, alpn},
		{"another pool", "belongs to another pool", identity(t, newPool(t)).TLS(), alpn},
		{"another authority", "not signed by this pool", identity(t, sameName).TLS(), alpn},
		{"self signed", "not one of gabion", selfSigned(), alpn},
		{"the authority as a node", "not that of its key", caAsNode, alpn},
		{"without the key", "invalid signature", stolen, alpn},
		{"no protocol", "does not speak", identity(t, ca).TLS(), ""},
		{"another protocol", "unsupported application protocol", identity(t, ca).TLS(), "h2"},
		{"tls 1.2", "unsupported versions", &tls.Config{MaxVersion: tls.VersionTLS12}, alpn},
		{"join without a handler", "unsupported application protocol", &tls.Config{}, pki.ALPNJoin},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, log := startMesh(t, MeshConfig{Identity: good})
			m.Handle(tPing, func(Peer, []byte, bool) { t.Error("a stranger was heard") })
			c.cfg.InsecureSkipVerify = true
			if c.cfg.MaxVersion == 0 {
				c.cfg.MinVersion = tls.VersionTLS13
			}
			if c.alpn != "" {
				c.cfg.NextProtos = []string{c.alpn}
			}
			raw, err := net.Dial("tcp", m.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			s := tls.Client(raw, c.cfg)
			b := appendHello(appendHeader(nil, header{size: helloSize, typ: typeHello}), classMain)
			b = appendHeader(b, header{typ: tPing})
			s.Write(b) // the refusal may come before or after it
			if n, err := io.Copy(io.Discard, s); n > 0 {
				t.Fatalf("the node answered %d bytes, %v", n, err)
			}
			defer func() {
				if t.Failed() {
					t.Log(log.b.String())
				}
			}()
			until(t, "logged with the reason", func() bool { return log.has(c.reason) })
			until(t, "counted", func() bool { return m.Stats().Refused == 1 })
		})
	}
}

func TestNodeNotInTheListIsAccepted(t *testing.T) {
	ca := newPool(t)
	m, _ := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	fresh, _ := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	fresh.SetPeers(map[ident.NodeID]string{m.Self(): m.Addr()})
	until(t, "connected", func() bool { return fresh.Connected(m.Self()) })
}

// TestBannedNodesAreCutOff: a node that was removed has a certificate of the pool
// still, and no say any more.
func TestBannedNodesAreCutOff(t *testing.T) {
	ca := newPool(t)
	m, log := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	gone, _ := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	gone.SetPeers(map[ident.NodeID]string{m.Self(): m.Addr()})
	until(t, "connected", func() bool { return gone.Connected(m.Self()) })
	m.Ban([]ident.NodeID{gone.Self()})
	until(t, "cut off", func() bool { return !gone.Connected(m.Self()) })
	until(t, "refused", func() bool { return log.has("was removed from the pool") })
	if gone.Connected(m.Self()) {
		t.Error("connected again")
	}
	m.Ban(nil)
	gone.Redial(m.Self())
	until(t, "let in again", func() bool { return gone.Connected(m.Self()) })
}

func TestDiallerRefusesTheWrongNode(t *testing.T) {
	ca := newPool(t)
	m, _ := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	d, log := startMesh(t, MeshConfig{Identity: identity(t, ca)})
	d.SetPeers(map[ident.NodeID]string{{7}: m.Addr()})
	until(t, "logged", func() bool { return log.has("node " + m.Self().Short() + " answers there, not 07000000") })
	other, log := startMesh(t, MeshConfig{Identity: identity(t, newPool(t))})
	other.SetPeers(map[ident.NodeID]string{m.Self(): m.Addr()})
	until(t, "logged", func() bool { return log.has("belongs to another pool") })
}

func TestCopiedKeyIsRefused(t *testing.T) {
	ca := newPool(t)
	id := identity(t, ca)
	m, log := startMesh(t, MeshConfig{Identity: id})
	twin, _ := startMesh(t, MeshConfig{Identity: id})
	twin.SetPeers(map[ident.NodeID]string{{1}: m.Addr()})
	until(t, "logged", func() bool { return log.has("a key belongs to one node only") || log.has("bad certificate") })
}

// speak connects as a node and returns the raw stream after the greeting.
func speak(t *testing.T, m *Mesh, id *pki.Identity, cls class) *tls.Conn {
	t.Helper()
	cfg := id.TLS()
	cfg.NextProtos = []string{alpn}
	c, err := tls.Dial("tcp", m.Addr(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := hello(c, cls, true, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOversizeOrBadFrameEndsTheConnection(t *testing.T) {
	ca := newPool(t)
	for name, frame := range map[string][]byte{
		"oversize":     appendHeader(nil, header{size: MessageMax + 1, typ: tPing}),
		"unknown kind": appendHeader(nil, header{typ: tPing, kind: frameKinds}),
		"not zero":     {0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			id := identity(t, ca)
			heard := make(chan string, 10)
			m, err := NewMesh(MeshConfig{Identity: identity(t, ca), Listen: "127.0.0.1:0", Log: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(m.Close)
			m.Handle(tPing, func(_ Peer, body []byte, _ bool) { heard <- string(body) })
			m.Start()
			other := speak(t, m, id, classBulk)
			c := speak(t, m, id, classMain)
			good := append(appendHeader(nil, header{size: 4, typ: tPing}), "good"...)
			if _, err := c.Write(append(good, frame...)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, c); err == nil {
				t.Log("closed") // by FIN or by RST
			}
			if got := <-heard; got != "good" {
				t.Fatal(got)
			}
			other.Write(good) // the other connection lives
			<-heard
		})
	}
}

func TestTooManyCallsAreRefusedNotQueued(t *testing.T) {
	ca := newPool(t)
	m, err := NewMesh(MeshConfig{Identity: identity(t, ca), Listen: "127.0.0.1:0", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	m.HandleCall(tPing, func(ctx context.Context, _ ident.NodeID, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	m.Start()
	c := speak(t, m, identity(t, ca), classMain)
	for i := range InboundCallsMax + 1 { // a peer that does not count
		if _, err := c.Write(appendHeader(nil, header{typ: tPing, kind: frameCall, id: uint64(i + 1)})); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(b)
	if err != nil || h.kind != frameFailure || h.id != InboundCallsMax+1 {
		t.Fatal(h, err)
	}
	b = make([]byte, h.size)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if e := parseError(b); e.Kind != fault.Unavailable {
		t.Fatal(e)
	}
}

func TestIdleConnectionsAreSilent(t *testing.T) {
	r := meshRig(t)
	a, b := r.node(), r.node()
	b.HandleCall(tPing, func(context.Context, ident.NodeID, []byte) ([]byte, error) { return nil, nil })
	r.start()
	for range 3 { // each call is one message in each direction, and nothing else is
		if _, err := a.Call(context.Background(), b.Self(), tPing); err != nil {
			t.Fatal(err)
		}
	}
	if s := a.Stats(); s.Sent != 3 || s.Received != 3 || s.QueuedBytes != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestRestartedNodeIsFoundAtOnce(t *testing.T) {
	ca := newPool(t)
	a, _ := startMesh(t, MeshConfig{Identity: identity(t, ca), RetryMin: time.Hour, RetryMax: time.Hour})
	id := identity(t, ca)
	b, _ := startMesh(t, MeshConfig{Identity: id})
	addr := b.Addr()
	b.Close()
	a.SetPeers(map[ident.NodeID]string{b.Self(): addr})
	// a pauses for an hour now, unless b's own connection wakes it
	b2, err := NewMesh(MeshConfig{Identity: id, Listen: addr, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b2.Close)
	b2.SetPeers(map[ident.NodeID]string{a.Self(): a.Addr()})
	b2.Start()
	until(t, "connected", func() bool { return a.Connected(b2.Self()) && b2.Connected(a.Self()) })
}

func TestJoinThroughTheMesh(t *testing.T) {
	ca := newPool(t)
	id := identity(t, ca)
	var server pki.JoinServer
	m, _ := startMesh(t, MeshConfig{Identity: id, OnJoin: func(ctx context.Context, c net.Conn) {
		if _, _, err := server.Serve(ctx, c); err != nil {
			t.Error(err)
		}
	}})
	server = pki.JoinServer{Identity: id, Nodes: func() []pki.Seed { return []pki.Seed{{ID: id.Node, Addr: m.Addr()}} }}
	token := ca.Mint(time.Now(), time.Hour)
	fresh, seeds, err := pki.Join(context.Background(), pki.JoinConfig{Dir: t.TempDir(), Addr: m.Addr(), Token: token.String()})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := startMesh(t, MeshConfig{Identity: fresh})
	n.SetPeers(map[ident.NodeID]string{seeds[0].ID: seeds[0].Addr})
	until(t, "connected", func() bool { return n.Connected(m.Self()) })
}
