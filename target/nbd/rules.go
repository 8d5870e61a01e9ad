package nbd

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"path"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Rules says which exports clients may see and write. Immutable.
//
// The text form has one rule a line, empty lines and what follows a # aside:
//
//	SUBJECT EXPORT read|write
//
// SUBJECT is a common name or a subject alternative name (DNS, e-mail, URI or
// IP) of the client's certificate, or the word anonymous for a client without a
// verified certificate. EXPORT is the name of an export; a snapshot's is
// VOLUME@SNAPSHOT. In both, * ? and [...] are those of the shell and do not
// match a slash. Rules add up; what no rule mentions, a client does not see.
type Rules struct{ rules []rule }

type rule struct {
	subject, export string
	access          access
}

// access is what a client may do with an export; higher includes lower.
type access uint8

const (
	accessNone access = iota
	accessRead
	accessWrite
)

const (
	anonymous = "anonymous"
	// rulesMax bounds the rules of one text.
	rulesMax = 10000
)

// ParseRules reads the text form. Kind Invalid names the line.
func ParseRules(text []byte) (*Rules, error) {
	r := &Rules{}
	in := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; in.Scan(); n++ {
		line, _, _ := strings.Cut(in.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		bad := func(why string) (*Rules, error) {
			return nil, fault.Newf(fault.Invalid, "nbd.rules", fmt.Sprintf("line %d", n), "%s: %s", strings.TrimSpace(line), why)
		}
		if len(f) != 3 {
			return bad("want SUBJECT EXPORT read|write")
		}
		one := rule{subject: f[0], export: f[1]}
		switch f[2] {
		case "read":
			one.access = accessRead
		case "write":
			one.access = accessWrite
		default:
			return bad("the access is read or write")
		}
		for _, p := range f[:2] {
			if _, err := path.Match(p, ""); err != nil {
				return bad(p + " is not a pattern")
			}
		}
		if r.rules = append(r.rules, one); len(r.rules) > rulesMax {
			return bad("too many rules")
		}
	}
	if err := in.Err(); err != nil {
		return nil, fault.New(fault.Invalid, "nbd.rules", "", err)
	}
	return r, nil
}

func (r *Rules) access(who names, export string) (a access) {
	for _, one := range r.rules {
		if one.access > a && who.match(one.subject) {
			if ok, _ := path.Match(one.export, export); ok {
				a = one.access
			}
		}
	}
	return a
}

// names are those that a client proved to have; none: anonymous.
type names []string

// namesOf takes them from a certificate that was verified.
func namesOf(s tls.ConnectionState) (who names) {
	if len(s.VerifiedChains) == 0 {
		return nil
	}
	leaf := s.PeerCertificates[0]
	who = append(who, leaf.Subject.CommonName)
	who = append(who, leaf.DNSNames...)
	who = append(who, leaf.EmailAddresses...)
	for _, u := range leaf.URIs {
		who = append(who, u.String())
	}
	for _, ip := range leaf.IPAddresses {
		who = append(who, ip.String())
	}
	return who
}

func (n names) match(subject string) bool {
	if n == nil || subject == anonymous {
		return n == nil && subject == anonymous
	}
	for _, name := range n {
		if ok, _ := path.Match(subject, name); ok {
			return true
		}
	}
	return false
}

func (n names) String() string {
	if n == nil {
		return anonymous
	}
	return strings.Join(n, ", ")
}
