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
	"fmt"
	"io"
	"net"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// ALPNJoin is the TLS protocol of the join exchange. The client shows no
// certificate; the server is known by the authority's fingerprint in the
// token. Each side sends one message: length u32 big endian, JSON.
const ALPNJoin = "gabion-join/1"

const (
	// JoinSizeMax bounds a join message, in bytes.
	JoinSizeMax = 1 << 20
	// JoinTime bounds the whole exchange.
	JoinTime = 15 * time.Second
)

// Seed is a node of the pool that a new one can turn to.
type Seed struct {
	ID   ident.NodeID `json:"id"`
	Name string       `json:"name,omitempty"`
	Addr string       `json:"addr"`
}

// JoinRequest is what a new node sends.
type JoinRequest struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"` // PKCS #10: proves that it has the key
	Name  string `json:"name,omitempty"`
	Addr  string `json:"addr,omitempty"` // where it will listen
}

type joinReply struct {
	Error  *joinError `json:"error,omitempty"`
	Cert   []byte     `json:"cert,omitempty"`
	CACert []byte     `json:"ca_cert,omitempty"`
	CAKey  []byte     `json:"ca_key,omitempty"` // all nodes are equal: any may admit
	Nodes  []Seed     `json:"nodes,omitempty"`
}

type joinError struct {
	Kind fault.Kind `json:"kind"`
	Text string     `json:"text"`
}

// JoinConfig is the client's half.
type JoinConfig struct {
	Dir    string // where the identity goes: DIR/pki
	Addr   string // a node of the pool, host:port
	Token  string
	Name   string
	Listen string // the address this node will be reached at
}

// Join obtains an identity from the node at cfg.Addr, stores it durably and
// returns it with the pool's nodes. Repeating it after a failure is safe.
// Invalid: damaged token. Exists: already a member. Unavailable: nobody
// answers at the address. Denied: expired token, other pool, not a node.
func Join(ctx context.Context, cfg JoinConfig) (*Identity, []Seed, error) {
	token, err := ParseToken(cfg.Token)
	if err != nil {
		return nil, nil, err
	}
	if err := mustBeNew("join", cfg.Dir); err != nil {
		return nil, nil, err
	}
	key, err := nodeKey(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "join", "", err)
	}
	ctx, cancel := context.WithTimeout(ctx, JoinTime)
	defer cancel()
	req := JoinRequest{Token: token.String(), CSR: csr, Name: cfg.Name, Addr: cfg.Listen}
	reply, err := exchange(ctx, cfg.Addr, token, req)
	if err != nil {
		return nil, nil, err
	}
	id, err := accept(token, key, reply)
	if err != nil {
		return nil, nil, err
	}
	return id, reply.Nodes, id.Save(cfg.Dir)
}

func exchange(ctx context.Context, addr string, token Token, req JoinRequest) (joinReply, error) {
	var reply joinReply
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return reply, fault.Newf(fault.Unavailable, "join", addr,
			"no node answers there (%w); give the address that a running node of the pool listens on", err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var denied error
	conn := tls.Client(raw, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPNJoin},
		InsecureSkipVerify: true, // the fingerprint in the token instead
		VerifyConnection: func(cs tls.ConnectionState) error {
			denied = verifyServer(addr, token, cs.PeerCertificates)
			return denied
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		if denied != nil {
			return reply, denied
		}
		return reply, fault.Newf(fault.Unavailable, "join", addr, "what answers there is not a gabion node, or it is shutting down: %w", err)
	}
	if err = writeMessage(conn, req); err == nil {
		err = readMessage(conn, &reply)
	}
	if err != nil {
		return reply, fault.Newf(fault.Unavailable, "join", addr, "the connection broke: %w; try again", err)
	}
	if reply.Error != nil {
		return reply, fault.New(reply.Error.Kind, "join", addr, errors.New(reply.Error.Text))
	}
	return reply, nil
}

// verifyServer demands a node certificate of the authority named in the token.
func verifyServer(addr string, token Token, chain []*x509.Certificate) error {
	other := fault.Newf(fault.Denied, "join", addr, "the node there does not belong to the pool of the token (%s); check address and token", token.Pool.Short())
	if len(chain) < 2 || sha256.Sum256(chain[1].Raw) != token.Fingerprint {
		return other
	}
	ca, err := parseCA(chain[1], nil)
	if err != nil || ca.Pool != token.Pool {
		return other
	}
	_, err = ca.verify(chain)
	return err
}

// accept builds the identity from the reply, trusting nothing in it.
func accept(token Token, key ed25519.PrivateKey, r joinReply) (*Identity, error) {
	if sha256.Sum256(r.CACert) != token.Fingerprint {
		return nil, fault.Newf(fault.Denied, "join", "", "the authority received is not the one in the token")
	}
	caCert, err := x509.ParseCertificate(r.CACert)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "join", "ca certificate", err)
	}
	caKey, err := parseKey(r.CAKey, "ca key")
	if err != nil {
		return nil, err
	}
	ca, err := parseCA(caCert, caKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(r.Cert)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "join", "certificate", err)
	}
	return newIdentity(ca, key, cert)
}

// JoinServer is the server's half.
type JoinServer struct {
	Identity *Identity
	// Nodes lists the nodes of the pool, the server included.
	Nodes func() []Seed
	// Admit may refuse a node whose token is good; nil admits. It sees the
	// request before a certificate is made.
	Admit func(ctx context.Context, node ident.NodeID, req JoinRequest) error
	// Now is the clock for tokens; nil means time.Now.
	Now func() time.Time
}

// Serve carries out one exchange on conn, whose TLS handshake has been done
// with ALPNJoin, within JoinTime or ctx. It does not close conn. It returns
// the node that was admitted, or why none was.
func (s *JoinServer) Serve(ctx context.Context, conn net.Conn) (ident.NodeID, JoinRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, JoinTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var req JoinRequest
	if err := readMessage(conn, &req); err != nil {
		return ident.NodeID{}, req, fault.New(fault.Invalid, "join", "", err)
	}
	node, reply, err := s.answer(ctx, req)
	if err != nil {
		reply = joinReply{Error: &joinError{fault.KindOf(err), reason(err)}}
	}
	if werr := writeMessage(conn, reply); err == nil && werr != nil {
		err = fault.New(fault.Unavailable, "join", node.Short(), werr)
	}
	return node, req, err
}

func reason(err error) string {
	var e *fault.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

func (s *JoinServer) answer(ctx context.Context, req JoinRequest) (ident.NodeID, joinReply, error) {
	var node ident.NodeID
	token, err := ParseToken(req.Token)
	if err != nil {
		return node, joinReply{}, err
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	ca := s.Identity.CA
	if err := ca.Verify(token, now()); err != nil {
		return node, joinReply{}, err
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return node, joinReply{}, fault.New(fault.Invalid, "join", "request", err)
	}
	pub, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return node, joinReply{}, fault.Newf(fault.Invalid, "join", "request", "the key is not an ed25519 key")
	}
	node = NodeOf(pub)
	if s.Admit != nil {
		if err := s.Admit(ctx, node, req); err != nil {
			return node, joinReply{}, err
		}
	}
	cert, err := ca.Issue(pub)
	if err != nil {
		return node, joinReply{}, err
	}
	caKey, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		return node, joinReply{}, fault.New(fault.Internal, "join", "", err)
	}
	r := joinReply{Cert: cert.Raw, CACert: ca.Cert.Raw, CAKey: caKey}
	if s.Nodes != nil {
		r.Nodes = s.Nodes()
	}
	return node, r, nil
}

func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > JoinSizeMax {
		return fmt.Errorf("a join message of %d bytes is too long", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > JoinSizeMax {
		return fmt.Errorf("a join message of %d bytes is too long", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
