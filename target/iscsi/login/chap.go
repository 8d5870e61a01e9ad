package login

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Rules of secrets, in bytes. Section 12.1.3 demands 96 bits where there is no IPsec;
// some initiators take no more than 16.
const (
	SecretMin = 12
	SecretMax = 64
	UserMax   = 63
	// challengeSize is the length of our challenges; challengeMax what we take.
	challengeSize = 32
	challengeMax  = 1024
)

// Secret is one direction of CHAP: a name and what proves it. The zero value
// is none.
type Secret struct {
	User   string
	Secret string
}

// IsZero tells whether there is none.
func (s Secret) IsZero() bool { return s == Secret{} }

// Auth is what an initiator must prove (Initiator) and what the target proves to
// an initiator that asks (Target). Target without Initiator makes no sense.
type Auth struct {
	Initiator, Target Secret
}

// Check demands the rules of section 12.1.3: lengths, and that the two
// directions differ. Invalid otherwise; the text never contains a secret.
func (a Auth) Check() error {
	const op = "chap"
	for _, s := range []struct {
		what string
		Secret
	}{{"initiator", a.Initiator}, {"target", a.Target}} {
		if s.IsZero() {
			continue
		}
		if len(s.User) == 0 || len(s.User) > UserMax || strings.ContainsFunc(s.User, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fault.Newf(fault.Invalid, op, s.User, "the name of the %s has 1 to %d printable characters without spaces", s.what, UserMax)
		}
		if len(s.Secret.Secret) < SecretMin || len(s.Secret.Secret) > SecretMax {
			return fault.Newf(fault.Invalid, op, s.User, "the secret of the %s has %d bytes; it must have %d to %d (Windows takes up to 16)",
				s.what, len(s.Secret.Secret), SecretMin, SecretMax)
		}
	}
	switch {
	case a.Initiator.IsZero() && !a.Target.IsZero():
		return fault.Newf(fault.Invalid, op, a.Target.User, "the target cannot prove itself to an initiator that need not: give the initiator a secret too")
	case !a.Target.IsZero() && a.Initiator.Secret == a.Target.Secret:
		return fault.Newf(fault.Invalid, op, a.Target.User, "the secrets of initiator and target must differ")
	}
	return nil
}

// algorithms of CHAP_A, by number (IANA, PPP authentication algorithms).
var algorithms = map[string]func() hash.Hash{
	"5": md5.New, "6": sha1.New, "7": sha256.New, "8": func() hash.Hash { return sha3.New256() },
}

// respond is the CHAP response (RFC 1994): hash of id, secret and challenge.
func respond(algorithm string, id byte, secret string, challenge []byte) []byte {
	h := algorithms[algorithm]()
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// Respond computes the CHAP_R of an initiator, for clients.
func Respond(algorithm string, id byte, secret string, challenge []byte) (string, bool) {
	if algorithms[algorithm] == nil {
		return "", false
	}
	return hexText(respond(algorithm, id, secret, challenge)), true
}

func hexText(b []byte) string { return "0x" + hex.EncodeToString(b) }

// ParseBinary reads a binary value: hexadecimal with 0x, or base64 with 0b
// (section 6.1). At most limit bytes.
func ParseBinary(v string, limit int) ([]byte, bool) {
	if len(v) < 3 || v[0] != '0' {
		return nil, false
	}
	body := v[2:]
	if len(body) > 2*limit {
		return nil, false
	}
	var b []byte
	var err error
	switch v[1] {
	case 'x', 'X':
		if len(body)%2 == 1 {
			body = "0" + body
		}
		b, err = hex.DecodeString(body)
	case 'b', 'B':
		b, err = base64.StdEncoding.DecodeString(body)
	default:
		return nil, false
	}
	return b, err == nil && len(b) <= limit
}

// chap is the target's side of one authentication.
type chap struct {
	auth      Auth
	algorithm string
	id        byte
	challenge []byte
}

// begin answers CHAP_A with our choice and a challenge.
func (c *chap) begin(list string, random func([]byte)) ([]Pair, bool) {
	c.algorithm = choose(list, "8", "7", "6", "5")
	if c.algorithm == reject {
		return nil, false
	}
	b := make([]byte, 1+challengeSize)
	random(b)
	c.id, c.challenge = b[0], b[1:]
	return []Pair{{"CHAP_A", c.algorithm}, {"CHAP_I", strconv.Itoa(int(c.id))}, {"CHAP_C", hexText(c.challenge)}}, true
}

// finish checks the response and gives ours if it was asked for. user is who
// answered, whether or not it was right.
func (c *chap) finish(kv map[string]string) (answer []Pair, user string, ok bool) {
	user = kv["CHAP_N"]
	got, valid := ParseBinary(kv["CHAP_R"], 64)
	want := respond(c.algorithm, c.id, c.auth.Initiator.Secret, c.challenge)
	right := subtle.ConstantTimeCompare(got, want) & subtle.ConstantTimeCompare([]byte(user), []byte(c.auth.Initiator.User))
	if !valid || right != 1 {
		return nil, user, false
	}
	idText, wantsI := kv["CHAP_I"]
	challengeText, wantsC := kv["CHAP_C"]
	if !wantsI && !wantsC {
		return nil, user, true
	}
	id, idOK := number(idText, 0, 255)
	challenge, challengeOK := ParseBinary(challengeText, challengeMax)
	switch {
	case !idOK || !challengeOK || len(challenge) == 0:
		return nil, user, false
	case subtle.ConstantTimeCompare(challenge, c.challenge) == 1:
		return nil, user, false // it wants us to compute its own answer
	case c.auth.Target.IsZero():
		return nil, user, false // it does not trust a target that proves nothing
	}
	r := respond(c.algorithm, byte(id), c.auth.Target.Secret, challenge)
	return []Pair{{"CHAP_N", c.auth.Target.User}, {"CHAP_R", hexText(r)}}, user, true
}
