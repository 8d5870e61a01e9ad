package pki

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Token layout, big endian, then base64url without padding:
//
//	0    version u8 = 1
//	1    pool id [16]
//	17   SHA-256 of the authority's certificate [32]
//	49   expiry u64, Unix seconds
//	57   nonce [16]
//	73   HMAC-SHA256 over [0,73) [32]
//	105  CRC32C over [0,105) u32: tells a damaged token from a foreign one
const (
	tokenVersion = 1
	tokenSigned  = 73
	tokenSize    = 109
)

// TokenLife is how long a token is good for unless said otherwise.
const TokenLife = 24 * time.Hour

// Token lets a node join a pool. Whoever has it, and it alone, can obtain a
// certificate until it expires.
type Token struct {
	Pool        ident.PoolID
	Fingerprint [32]byte // of the authority's certificate
	Expiry      time.Time
	Nonce       [16]byte
	MAC         [32]byte
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// ParseToken reads the text form. Invalid: damaged, cut off, or no token.
func ParseToken(text string) (Token, error) {
	var t Token
	bad := func(reason string) (Token, error) {
		return t, fault.Newf(fault.Invalid, "token", "", "the token is damaged (%s); copy it again, whole and on one line", reason)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil {
		return bad("not base64url")
	}
	if len(b) != tokenSize {
		return bad("wrong length")
	}
	if crc32.Checksum(b[:tokenSize-4], crcTable) != binary.BigEndian.Uint32(b[tokenSize-4:]) {
		return bad("wrong checksum")
	}
	if b[0] != tokenVersion {
		return t, fault.Newf(fault.Invalid, "token", "", "version %d of tokens is not known here; update gabion on this machine", b[0])
	}
	copy(t.Pool[:], b[1:])
	copy(t.Fingerprint[:], b[17:])
	t.Expiry = time.Unix(int64(binary.BigEndian.Uint64(b[49:])), 0)
	copy(t.Nonce[:], b[57:])
	copy(t.MAC[:], b[73:])
	return t, nil
}

func (t Token) signed() []byte {
	b := make([]byte, 0, tokenSize)
	b = append(b, tokenVersion)
	b = append(b, t.Pool[:]...)
	b = append(b, t.Fingerprint[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expiry.Unix()))
	return append(b, t.Nonce[:]...)
}

// String is the text form.
func (t Token) String() string {
	b := append(t.signed(), t.MAC[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crcTable))
	return base64.RawURLEncoding.EncodeToString(b)
}

// Mint makes a token that is good for life from now.
func (ca *CA) Mint(now time.Time, life time.Duration) Token {
	t := Token{Pool: ca.Pool, Fingerprint: ca.Fingerprint(), Expiry: now.Add(life).Truncate(time.Second)}
	if _, err := rand.Read(t.Nonce[:]); err != nil {
		panic("pki: no randomness: " + err.Error())
	}
	copy(t.MAC[:], ca.tokenMAC(t))
	return t
}

// Verify tells whether this authority minted t and it is still good. Denied,
// with the reason.
func (ca *CA) Verify(t Token, now time.Time) error {
	switch {
	case t.Pool != ca.Pool || t.Fingerprint != ca.Fingerprint():
		return fault.Newf(fault.Denied, "token", "", "the token is for pool %s, this is pool %s", t.Pool.Short(), ca.Pool.Short())
	case !hmac.Equal(t.MAC[:], ca.tokenMAC(t)):
		return fault.Newf(fault.Denied, "token", "", "the token was not made by this pool")
	case !now.Before(t.Expiry):
		return fault.Newf(fault.Denied, "token", "", "the token expired at %s; make a new one with: gabion pool token", t.Expiry.UTC().Format(time.RFC3339))
	}
	return nil
}

func (ca *CA) tokenMAC(t Token) []byte {
	key, err := hkdf.Key(sha256.New, ca.Key.Seed(), ca.Pool[:], "gabion join token", 32)
	if err != nil {
		panic("pki: " + err.Error()) // only for impossible lengths
	}
	m := hmac.New(sha256.New, key)
	m.Write(t.signed())
	return m.Sum(nil)
}
