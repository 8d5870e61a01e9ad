package login

import (
	"strconv"
	"strings"
)

// Params are the operational parameters of a session as they stand (section 13).
type Params struct {
	HeaderDigest, DataDigest  bool // CRC32C
	MaxConnections            uint32
	InitialR2T, ImmediateData bool
	// SendMax is the peer's MaxRecvDataSegmentLength, RecvMax is ours; bytes.
	SendMax, RecvMax       uint32
	MaxBurst, FirstBurst   uint32 // bytes
	Time2Wait, Time2Retain uint32 // seconds
	MaxOutstandingR2T      uint32
	DataPDUInOrder         bool
	DataSequenceInOrder    bool
	ErrorRecoveryLevel     uint32
	ProtocolLevel          uint32
}

// Defaults are the values in force when a key is not negotiated.
func Defaults() Params {
	return Params{
		MaxConnections: 1, InitialR2T: true, ImmediateData: true, SendMax: 8192, RecvMax: 8192,
		MaxBurst: 262144, FirstBurst: 65536, Time2Wait: 2, Time2Retain: 20, MaxOutstandingR2T: 1,
		DataPDUInOrder: true, DataSequenceInOrder: true, ProtocolLevel: 1,
	}
}

// Offer is what a target is willing to do. The zero value of a field is not a
// default: use DefaultOffer.
type Offer struct {
	// Digests: CRC32C may be chosen. An initiator that offers None first gets None.
	Digests                   bool
	InitialR2T, ImmediateData bool
	RecvMax                   uint32 // MaxRecvDataSegmentLength, bytes
	MaxBurst, FirstBurst      uint32 // bytes
	MaxOutstandingR2T         uint32
}

// DefaultOffer lets the initiator have whatever is fastest.
func DefaultOffer() Offer {
	return Offer{Digests: true, ImmediateData: true, RecvMax: 256 << 10, MaxBurst: 1 << 20, FirstBurst: 256 << 10, MaxOutstandingR2T: 8}
}

// Values that stand for an outcome instead of a value (section 6.2).
const (
	reject        = "Reject"
	irrelevant    = "Irrelevant"
	notUnderstood = "NotUnderstood"
)

// rule is one row of the table of keys: how an offered value of the initiator
// becomes a parameter and an answer. An empty answer means a declaration, which is
// not answered.
type rule struct {
	key string
	// full: also in the full feature phase, not only in the login.
	full bool
	// discovery: it has a meaning in a discovery session.
	discovery bool
	negotiate func(p *Params, o *Offer, value string) (answer string)
}

// table has the operational keys of section 13; those of the security stage
// and the declarations of names are the state machine's.
var table = []rule{
	{"HeaderDigest", false, true, func(p *Params, o *Offer, v string) string { return digest(&p.HeaderDigest, o, v) }},
	{"DataDigest", false, true, func(p *Params, o *Offer, v string) string { return digest(&p.DataDigest, o, v) }},
	{"MaxConnections", false, false, func(p *Params, _ *Offer, v string) string { return lesser(&p.MaxConnections, v, 1, 1, 65535) }},
	{"InitialR2T", false, false, func(p *Params, o *Offer, v string) string { return or(&p.InitialR2T, o.InitialR2T, v) }},
	{"ImmediateData", false, false, func(p *Params, o *Offer, v string) string { return and(&p.ImmediateData, o.ImmediateData, v) }},
	{"MaxRecvDataSegmentLength", true, true, func(p *Params, _ *Offer, v string) string {
		if n, ok := number(v, 512, 1<<24-1); ok {
			p.SendMax = n
			return ""
		}
		return reject
	}},
	{"MaxBurstLength", false, false, func(p *Params, o *Offer, v string) string { return lesser(&p.MaxBurst, v, o.MaxBurst, 512, 1<<24-1) }},
	{"FirstBurstLength", false, false, func(p *Params, o *Offer, v string) string {
		return lesser(&p.FirstBurst, v, o.FirstBurst, 512, 1<<24-1)
	}},
	{"DefaultTime2Wait", false, true, func(p *Params, _ *Offer, v string) string { return greater(&p.Time2Wait, v, 2, 0, 3600) }},
	{"DefaultTime2Retain", false, true, func(p *Params, _ *Offer, v string) string { return lesser(&p.Time2Retain, v, 0, 0, 3600) }},
	{"MaxOutstandingR2T", false, false, func(p *Params, o *Offer, v string) string {
		return lesser(&p.MaxOutstandingR2T, v, o.MaxOutstandingR2T, 1, 65535)
	}},
	{"DataPDUInOrder", false, false, func(p *Params, _ *Offer, v string) string { return or(&p.DataPDUInOrder, true, v) }},
	{"DataSequenceInOrder", false, false, func(p *Params, _ *Offer, v string) string { return or(&p.DataSequenceInOrder, true, v) }},
	{"ErrorRecoveryLevel", false, true, func(p *Params, _ *Offer, v string) string { return lesser(&p.ErrorRecoveryLevel, v, 0, 0, 2) }},
	{"iSCSIProtocolLevel", false, true, func(p *Params, _ *Offer, v string) string { return lesser(&p.ProtocolLevel, v, 1, 0, 31) }},
	{"TaskReporting", false, false, func(_ *Params, _ *Offer, v string) string { return choose(v, "RFC3720") }},
	{"InitiatorAlias", true, true, func(*Params, *Offer, string) string { return "" }},
	// Markers are obsolete; section 13.25 has how they are declined.
	{"IFMarker", false, true, func(*Params, *Offer, string) string { return "No" }},
	{"OFMarker", false, true, func(*Params, *Offer, string) string { return "No" }},
	{"IFMarkInt", false, true, func(*Params, *Offer, string) string { return reject }},
	{"OFMarkInt", false, true, func(*Params, *Offer, string) string { return reject }},
}

// find returns the row of a key.
func find(key string) *rule {
	for i := range table {
		if table[i].key == key {
			return &table[i]
		}
	}
	return nil
}

// negotiate answers one key of the operational stage, or of the full feature phase.
func negotiate(p *Params, o *Offer, kv Pair, discovery, full bool) (answer string) {
	r := find(kv.Key)
	switch {
	case r == nil:
		return notUnderstood
	case kv.Value == notUnderstood || kv.Value == irrelevant || kv.Value == reject:
		return "" // an answer to something that was offered
	case full && !r.full:
		return reject
	case discovery && !r.discovery:
		return irrelevant
	}
	return r.negotiate(p, o, kv.Value)
}

// number reads a decimal or hexadecimal constant within bounds.
func number(v string, lo, hi uint32) (uint32, bool) {
	base := 10
	if len(v) > 2 && v[0] == '0' && (v[1] == 'x' || v[1] == 'X') {
		v, base = v[2:], 16
	}
	if v == "" || v[0] == '+' || v[0] == '-' {
		return 0, false
	}
	n, err := strconv.ParseUint(v, base, 32)
	return uint32(n), err == nil && uint32(n) >= lo && uint32(n) <= hi
}

func lesser(p *uint32, v string, ours, lo, hi uint32) string {
	n, ok := number(v, lo, hi)
	if !ok {
		return reject
	}
	*p = min(n, ours)
	return strconv.FormatUint(uint64(*p), 10)
}

func greater(p *uint32, v string, ours, lo, hi uint32) string {
	n, ok := number(v, lo, hi)
	if !ok {
		return reject
	}
	*p = max(n, ours)
	return strconv.FormatUint(uint64(*p), 10)
}

func or(p *bool, ours bool, v string) string {
	if v != "Yes" && v != "No" {
		return reject
	}
	*p = v == "Yes" || ours
	return yes(*p)
}

func and(p *bool, ours bool, v string) string {
	if v != "Yes" && v != "No" {
		return reject
	}
	*p = v == "Yes" && ours
	return yes(*p)
}

func yes(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

// choose picks the first of the initiator's list that is ours.
func choose(list string, ours ...string) string {
	for v := range strings.SplitSeq(list, ",") {
		for _, o := range ours {
			if v == o {
				return v
			}
		}
	}
	return reject
}

func digest(p *bool, o *Offer, v string) string {
	ours := []string{"None"}
	if o.Digests {
		ours = []string{"CRC32C", "None"}
	}
	a := choose(v, ours...)
	*p = a == "CRC32C"
	return a
}
