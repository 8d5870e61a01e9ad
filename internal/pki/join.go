package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Joining is one request and one answer over TLS 1.3 with ALPN JoinProtocol, in
// which only the server shows a certificate: a length (u32, big-endian, at most
// joinMax) and JSON, each way. The joining node checks that the server's chain
// ends in the authority whose fingerprint its token carries, before it sends
// the token.
const (
	// JoinProtocol is the ALPN name of the join exchange.
	JoinProtocol = "gabion-join/1"
	joinMax      = 1 << 20
	joinTimeout  = 10 * time.Second
)

type joinRequest struct {
	Token string `json:"token"`
	Key   []byte `json:"key"` // ed25519 public key of the joining node
}

type joinAnswer struct {
	Kind    fault.Kind `json:"kind"`
	Error   string     `json:"error,omitempty"`
	Cert    []byte     `json:"cert,omitempty"`     // of the node, DER
	PoolKey []byte     `json:"pool_key,omitempty"` // seed of the authority's key
	State   []byte     `json:"state,omitempty"`    // the pool's state, opaque here
}

// ServeJoin answers one join request on a connection whose handshake chose
// JoinProtocol. state is handed to the new node as it is. The connection is closed on
// return.
func (a *Authority) ServeJoin(c net.Conn, now time.Time, state []byte) error {
	defer c.Close()
	if err := c.SetDeadline(now.Add(joinTimeout)); err != nil {
		return err
	}
	var req joinRequest
	if err := readJSON(c, &req); err != nil {
		return err
	}
	ans, err := a.admit(req, now)
	if err != nil {
		ans = joinAnswer{Kind: fault.KindOf(err), Error: err.Error()}
	} else {
		ans.State = state
	}
	if werr := writeJSON(c, ans); werr != nil {
		return werr
	}
	return err
}

func (a *Authority) admit(req joinRequest, now time.Time) (joinAnswer, error) {
	if err := a.CheckToken(req.Token, now); err != nil {
		return joinAnswer{}, err
	}
	if len(req.Key) != ed25519.PublicKeySize {
		return joinAnswer{}, fault.Newf(fault.Invalid, "join", "", "the key has %d bytes, not %d", len(req.Key), ed25519.PublicKeySize)
	}
	der, err := a.Sign(req.Key)
	return joinAnswer{Cert: der, PoolKey: a.key.Seed()}, err
}

// Join asks the node at addr to be let into its pool. It returns the new
// node's identity and the pool's state. Kinds: Invalid (token), Denied
// (expired, forged, another pool's), Unavailable (nobody answers at addr).
func Join(ctx context.Context, addr, token string) (*Identity, []byte, error) {
	t, err := ParseToken(token)
	if err != nil {
		return nil, nil, err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "join", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var authority []byte
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{JoinProtocol},
		InsecureSkipVerify: true, // the chain is checked below, against the token's fingerprint
		VerifyPeerCertificate: func(chain [][]byte, _ [][]*x509.Certificate) (err error) {
			authority, err = verifyJoinChain(t, chain)
			return err
		},
	}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		var f *fault.Error
		if errors.As(err, &f) {
			return nil, nil, f
		}
		return nil, nil, fault.Newf(fault.Unavailable, "join", addr, "no gabion node answers there (%v); --join takes the --listen address of a running node", err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, nil, fault.New(fault.Internal, "join", addr, err)
		}
	}
	if err := writeJSON(c, joinRequest{Token: token, Key: pub}); err != nil {
		return nil, nil, err
	}
	var ans joinAnswer
	if err := readJSON(c, &ans); err != nil {
		return nil, nil, err
	}
	if ans.Error != "" {
		return nil, nil, fault.Newf(ans.Kind, "join", addr, "refused: %s", ans.Error)
	}
	if len(ans.PoolKey) != ed25519.SeedSize {
		return nil, nil, fault.Newf(fault.Invalid, "join", addr, "the answer carries no pool key")
	}
	a, err := parseAuthority(authority, ed25519.NewKeyFromSeed(ans.PoolKey))
	if err != nil {
		return nil, nil, err
	}
	id, err := newIdentity(a, ans.Cert, key)
	return id, ans.State, err
}

// verifyJoinChain accepts a chain of a node's certificate and its authority's,
// where the authority is the token's.
func verifyJoinChain(t Token, chain [][]byte) ([]byte, error) {
	if len(chain) != 2 {
		return nil, fault.Newf(fault.Denied, "join", "", "the server did not show the certificate of a pool; is this the --listen address of a gabion node?")
	}
	if sha256.Sum256(chain[1]) != t.Fingerprint {
		return nil, fault.Newf(fault.Denied, "join", "", "the node there belongs to another pool than the token")
	}
	ca, err := x509.ParseCertificate(chain[1])
	if err != nil {
		return nil, fault.New(fault.Denied, "join", "", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fault.New(fault.Denied, "join", "", err)
	}
	if _, err := (&Authority{Pool: t.Pool, cert: ca}).Verify(leaf); err != nil {
		return nil, err
	}
	return chain[1], nil
}

// JoinCertificate is what a node shows to one that joins: its own certificate
// and its authority's.
func (i *Identity) JoinCertificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{i.cert, i.der}, PrivateKey: i.key}
}

func writeJSON(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Internal, "join", "", err)
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		return fault.New(fault.Unavailable, "join", "", err)
	}
	return nil
}

func readJSON(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fault.New(fault.Unavailable, "join", "", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > joinMax {
		return fault.Newf(fault.Invalid, "join", "", "message of %d bytes; at most %d are allowed", n, joinMax)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fault.New(fault.Unavailable, "join", "", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fault.New(fault.Invalid, "join", "", err)
	}
	return nil
}
