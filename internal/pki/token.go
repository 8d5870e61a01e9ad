package pki

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// A token is base64url, without padding, of
//
//	offset size
//	0      1    version 1
//	1      16   pool id
//	17     32   SHA-256 of the authority's certificate
//	49     8    expiry, Unix seconds, big-endian
//	57     16   nonce
//	73     32   HMAC-SHA256 of bytes 0..72
//
// The HMAC key is derived from the authority's key, so every node can check
// the tokens of every other and none is stored anywhere. The fingerprint lets
// the joining node know the pool before it says anything secret.
const (
	tokenVersion = 1
	tokenBody    = 73
	tokenSize    = tokenBody + sha256.Size
	tokenTextMax = 512
	// TokenTTLMax bounds how long a token may live.
	TokenTTLMax = 30 * 24 * time.Hour
)

// Token is a decoded token. Its seal can only be checked by a node of the pool.
type Token struct {
	Pool        ident.PoolID
	Fingerprint [32]byte
	Expires     time.Time
	raw         [tokenSize]byte
}

func (a *Authority) tokenKey() ([]byte, error) {
	return hkdf.Key(sha256.New, a.key.Seed(), nil, "gabion join token", 32)
}

func (a *Authority) seal(body []byte) ([]byte, error) {
	key, err := a.tokenKey()
	if err != nil {
		return nil, fault.New(fault.Internal, "pki.token", "", err)
	}
	m := hmac.New(sha256.New, key)
	m.Write(body)
	return m.Sum(nil), nil
}

// MintToken makes a token that lets nodes join until now+ttl. Invalid: ttl is
// not positive or above TokenTTLMax.
func (a *Authority) MintToken(now time.Time, ttl time.Duration) (string, error) {
	if ttl <= 0 || ttl > TokenTTLMax {
		return "", fault.Newf(fault.Invalid, "pool token", ttl.String(), "a token can live up to %s", TokenTTLMax)
	}
	b := make([]byte, tokenBody, tokenSize)
	b[0] = tokenVersion
	copy(b[1:], a.Pool[:])
	fp := a.Fingerprint()
	copy(b[17:], fp[:])
	binary.BigEndian.PutUint64(b[49:], uint64(now.Add(ttl).Unix()))
	if _, err := rand.Read(b[57:73]); err != nil {
		return "", fault.New(fault.Internal, "pool token", "", err)
	}
	mac, err := a.seal(b)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(b, mac...)), nil
}

// ParseToken reads the text of a token. Invalid: not a token, or cut short.
func ParseToken(text string) (Token, error) {
	bad := func(why string) (Token, error) {
		return Token{}, fault.Newf(fault.Invalid, "join", "", "the token %s; get a new one with: gabion pool token", why)
	}
	text = strings.TrimSpace(text)
	if len(text) > tokenTextMax {
		return bad("is too long")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return bad("is damaged")
	}
	if len(raw) != tokenSize || raw[0] != tokenVersion {
		return bad("is damaged or of another version")
	}
	t := Token{Pool: ident.PoolID(raw[1:17]), Fingerprint: [32]byte(raw[17:49]), raw: [tokenSize]byte(raw)}
	t.Expires = time.Unix(int64(binary.BigEndian.Uint64(raw[49:])&(1<<62-1)), 0)
	return t, nil
}

// CheckToken tells whether a token lets a node into this pool now. Denied:
// another pool's, expired or forged.
func (a *Authority) CheckToken(text string, now time.Time) error {
	t, err := ParseToken(text)
	if err != nil {
		return err
	}
	if t.Pool != a.Pool {
		return fault.Newf(fault.Denied, "join", "", "the token is for pool %s, this node is of pool %s", t.Pool.Short(), a.Pool.Short())
	}
	mac, err := a.seal(t.raw[:tokenBody])
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, t.raw[tokenBody:]) {
		return fault.Newf(fault.Denied, "join", "", "the token is not genuine")
	}
	if !now.Before(t.Expires) {
		return fault.Newf(fault.Denied, "join", "", "the token expired at %s; get a new one with: gabion pool token", t.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}
