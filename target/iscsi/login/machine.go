package login

import (
	"strconv"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// RequestsMax bounds the requests of one login: a client that never comes to
// an end is sent away.
const RequestsMax = 32

// Who is what an initiator says of itself and of what it wants.
type Who struct {
	Initiator string // iSCSI name
	Target    string // iSCSI name; empty for discovery
	Discovery bool
	ISID      pdu.ISID
	TSIH      uint16
	CID       uint16
}

// Grant is the answer to Who: whom it may be, and what it has to prove.
type Grant struct {
	// Status other than LoginSuccess refuses.
	Status pdu.LoginStatus
	Auth   Auth
	// PortalGroup is the tag of the portal group that was reached.
	PortalGroup uint16
	// Alias is shown to people; may be empty.
	Alias string
}

// Config is what a Machine needs of its surroundings.
type Config struct {
	Offer Offer
	// Admit is asked once, when it is known who wants what.
	Admit func(Who) Grant
	// Random fills b with unpredictable bytes.
	Random func(b []byte)
}

// State of a Machine.
type State uint8

const (
	// Going: the next request is awaited.
	Going State = iota
	// Ready: the response begins the full feature phase. The caller must set its
	// TSIH before it sends it.
	Ready
	// Failed: the connection is to be closed behind the response.
	Failed
)

// Machine is the login of one connection. Its methods must not be called
// concurrently.
type Machine struct {
	cfg Config

	Who    Who
	Grant  Grant
	Params Params
	// User is the CHAP name that was proven; empty without authentication.
	User string
	// Err says why the login failed; for logs. Denied: it could not prove itself.
	Err error

	first    pdu.LoginRequest
	requests int
	stage    pdu.Stage
	begun    bool
	text     []byte // of requests that continue
	seen     map[string]bool
	admitted bool
	proven   bool
	chap     *chap
	auth     authStep
	declared bool // our MaxRecvDataSegmentLength
	named    bool // our TargetPortalGroupTag
}

type authStep uint8

const (
	authNone      authStep = iota
	authChosen             // AuthMethod=CHAP was answered
	authChallenge          // our challenge is out
)

// New begins a login.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg, Params: Defaults(), seen: map[string]bool{}}
}

// Step answers one Login Request with data as its data segment. Sequence
// numbers of the response are the caller's.
func (m *Machine) Step(req pdu.LoginRequest, data []byte) (pdu.LoginResponse, []byte, State) {
	resp := pdu.LoginResponse{
		Current: req.Current, ISID: req.ISID, TSIH: req.TSIH, ITT: req.ITT,
	}
	out, status := m.step(&req, data, &resp)
	if status != pdu.LoginSuccess {
		resp.Transit, resp.Continue, resp.Next, resp.Status = false, false, 0, status
		if m.Err == nil {
			m.Err = fault.Newf(fault.Invalid, "iscsi.login", m.Who.Initiator, "status 0x%04x", uint16(status))
		}
		return resp, nil, Failed
	}
	if resp.Transit {
		m.stage = resp.Next
		if m.stage == pdu.StageFullFeature {
			m.Params.FirstBurst = min(m.Params.FirstBurst, m.Params.MaxBurst)
			if m.declared {
				m.Params.RecvMax = m.cfg.Offer.RecvMax
			}
			return resp, out, Ready
		}
	}
	return resp, out, Going
}

func (m *Machine) fail(status pdu.LoginStatus, kind fault.Kind, format string, args ...any) pdu.LoginStatus {
	m.Err = fault.Newf(kind, "iscsi.login", m.Who.Initiator, format, args...)
	return status
}

func (m *Machine) step(req *pdu.LoginRequest, data []byte, resp *pdu.LoginResponse) ([]byte, pdu.LoginStatus) {
	if status := m.checkHeader(req); status != pdu.LoginSuccess {
		return nil, status
	}
	if len(m.text)+len(data) > TextMax {
		return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "more than %d bytes of text", TextMax)
	}
	m.text = append(m.text, data...)
	if req.Continue {
		if req.Transit {
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "a request that continues and transits")
		}
		return nil, pdu.LoginSuccess
	}
	pairs, err := ParseText(m.text)
	m.text = m.text[:0]
	if err != nil {
		m.Err = err
		return nil, pdu.LoginInitiatorError
	}
	for _, kv := range pairs {
		if m.seen[kv.Key] {
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "the key %s came twice", kv.Key)
		}
		m.seen[kv.Key] = true
	}
	if status := m.meet(pairs); status != pdu.LoginSuccess {
		return nil, status
	}
	var answers []Pair
	var status pdu.LoginStatus
	if m.stage == pdu.StageSecurity {
		answers, status = m.security(req, pairs, resp)
	} else {
		answers, status = m.operational(req, pairs, resp)
	}
	if status != pdu.LoginSuccess {
		return nil, status
	}
	var out []byte
	for _, kv := range answers {
		out = AppendPair(out, kv.Key, kv.Value)
	}
	return out, pdu.LoginSuccess
}

// checkHeader judges what does not depend on text.
func (m *Machine) checkHeader(req *pdu.LoginRequest) pdu.LoginStatus {
	if m.requests++; m.requests > RequestsMax {
		return m.fail(pdu.LoginInitiatorError, fault.Invalid, "no end after %d requests", RequestsMax)
	}
	if req.VersionMin > 0 {
		return m.fail(pdu.LoginUnsupportedVersion, fault.Invalid, "version %d and above", req.VersionMin)
	}
	if !m.begun {
		m.begun, m.first, m.stage = true, *req, req.Current
		m.Who.ISID, m.Who.TSIH, m.Who.CID = req.ISID, req.TSIH, req.CID
	}
	f := &m.first
	switch {
	case req.ISID != f.ISID || req.TSIH != f.TSIH || req.CID != f.CID || req.ITT != f.ITT:
		return m.fail(pdu.LoginInvalidRequest, fault.Invalid, "a request of another login")
	case req.Current != m.stage || req.Current > pdu.StageOperational:
		return m.fail(pdu.LoginInvalidRequest, fault.Invalid, "a request of the %v stage in the %v stage", req.Current, m.stage)
	case req.Transit && (req.Next <= req.Current || req.Next == 2):
		return m.fail(pdu.LoginInvalidRequest, fault.Invalid, "from the %v to the %v stage", req.Current, req.Next)
	}
	return pdu.LoginSuccess
}

// meet finds out who it is, from the first text.
func (m *Machine) meet(pairs []Pair) pdu.LoginStatus {
	if m.admitted {
		return pdu.LoginSuccess
	}
	sessionType := "Normal"
	for _, kv := range pairs {
		switch kv.Key {
		case "InitiatorName":
			m.Who.Initiator = strings.ToLower(kv.Value)
		case "TargetName":
			m.Who.Target = strings.ToLower(kv.Value)
		case "SessionType":
			sessionType = kv.Value
		}
	}
	m.Who.Discovery = sessionType == "Discovery"
	switch {
	case m.Who.Initiator == "":
		return m.fail(pdu.LoginMissingParameter, fault.Invalid, "no InitiatorName")
	case !NameOK(m.Who.Initiator):
		return m.fail(pdu.LoginInitiatorError, fault.Invalid, "the InitiatorName is no iSCSI name")
	case sessionType != "Normal" && sessionType != "Discovery":
		return m.fail(pdu.LoginSessionType, fault.Invalid, "session type %.20q", sessionType)
	case !m.Who.Discovery && m.Who.Target == "":
		return m.fail(pdu.LoginMissingParameter, fault.Invalid, "no TargetName")
	}
	m.admitted = true
	m.Grant = m.cfg.Admit(m.Who)
	if m.Grant.Status != pdu.LoginSuccess {
		return m.fail(m.Grant.Status, fault.Denied, "target %.250q: status 0x%04x", m.Who.Target, uint16(m.Grant.Status))
	}
	m.proven = m.Grant.Auth.Initiator.IsZero()
	if !m.proven && m.stage != pdu.StageSecurity {
		return m.fail(pdu.LoginNotAuthenticated, fault.Denied, "it skips authentication")
	}
	return pdu.LoginSuccess
}

// greet adds what a target says once of itself.
func (m *Machine) greet(answers []Pair) []Pair {
	if m.named {
		return answers
	}
	m.named = true
	if m.Who.Discovery {
		return answers
	}
	answers = append(answers, Pair{"TargetPortalGroupTag", strconv.Itoa(int(m.Grant.PortalGroup))})
	if m.Grant.Alias != "" {
		answers = append(answers, Pair{"TargetAlias", m.Grant.Alias})
	}
	return answers
}

// naming are the keys that meet has dealt with.
func naming(key string) bool {
	switch key {
	case "InitiatorName", "TargetName", "SessionType", "InitiatorAlias":
		return true
	}
	return false
}

func (m *Machine) operational(req *pdu.LoginRequest, pairs []Pair, resp *pdu.LoginResponse) ([]Pair, pdu.LoginStatus) {
	answers := m.greet(nil)
	offered := false
	for _, kv := range pairs {
		if naming(kv.Key) {
			continue
		}
		offered = true
		if a := negotiate(&m.Params, &m.cfg.Offer, kv, m.Who.Discovery, false); a != "" {
			answers = append(answers, Pair{kv.Key, a})
		}
	}
	if (offered || req.Transit) && !m.declared {
		m.declared = true
		answers = append(answers, Pair{"MaxRecvDataSegmentLength", strconv.FormatUint(uint64(m.cfg.Offer.RecvMax), 10)})
	}
	if req.Transit {
		resp.Transit, resp.Next = true, pdu.StageFullFeature
	}
	return answers, pdu.LoginSuccess
}

// security takes one step of authentication.
func (m *Machine) security(req *pdu.LoginRequest, pairs []Pair, resp *pdu.LoginResponse) ([]Pair, pdu.LoginStatus) {
	kv := map[string]string{}
	answers := m.greet(nil)
	for _, p := range pairs {
		switch {
		case naming(p.Key):
		case p.Key == "AuthMethod" || strings.HasPrefix(p.Key, "CHAP_"):
			kv[p.Key] = p.Value
		case find(p.Key) != nil:
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "the key %s in the security stage", p.Key)
		default:
			answers = append(answers, Pair{p.Key, notUnderstood})
		}
	}
	more, status := m.authenticate(kv)
	if status != pdu.LoginSuccess {
		return nil, status
	}
	answers = append(answers, more...)
	if req.Transit && m.proven {
		resp.Transit, resp.Next = true, req.Next
	}
	return answers, pdu.LoginSuccess
}

func (m *Machine) authenticate(kv map[string]string) ([]Pair, pdu.LoginStatus) {
	if len(kv) == 0 {
		if m.auth != authNone {
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "nothing where a CHAP key is due")
		}
		return nil, pdu.LoginSuccess // only names yet, or no authentication is wanted
	}
	if list, ok := kv["AuthMethod"]; ok {
		if len(kv) > 1 || m.auth != authNone {
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "AuthMethod together with or behind CHAP keys")
		}
		return m.chooseMethod(list)
	}
	switch m.auth {
	case authChosen:
		list, ok := kv["CHAP_A"]
		if !ok || len(kv) > 1 {
			return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "CHAP_A and nothing else is due")
		}
		answers, ok := m.chap.begin(list, m.cfg.Random)
		if !ok {
			return nil, m.fail(pdu.LoginNotAuthenticated, fault.Denied, "none of the CHAP algorithms %.40q is supported", list)
		}
		m.auth = authChallenge
		return answers, pdu.LoginSuccess
	case authChallenge:
		answers, user, ok := m.chap.finish(kv)
		if !ok {
			return nil, m.fail(pdu.LoginNotAuthenticated, fault.Denied, "the CHAP response of %.64q is not accepted", user)
		}
		m.User, m.proven, m.auth = user, true, authNone
		return answers, pdu.LoginSuccess
	}
	return nil, m.fail(pdu.LoginInitiatorError, fault.Invalid, "CHAP keys before AuthMethod")
}

func (m *Machine) chooseMethod(list string) ([]Pair, pdu.LoginStatus) {
	want := "None"
	if !m.proven {
		want = "CHAP"
	}
	switch {
	case choose(list, want) == want:
	case want == "None" && m.Grant.Auth.Initiator.IsZero() && choose(list, "CHAP") == "CHAP":
		// It insists on authentication, and there is nobody to check it against.
		return nil, m.fail(pdu.LoginNotAuthenticated, fault.Denied, "it offers only %.40q, and this target has no secret for it", list)
	default:
		return nil, m.fail(pdu.LoginNotAuthenticated, fault.Denied, "it offers only %.40q, %s is needed", list, want)
	}
	if want == "CHAP" {
		m.auth, m.chap = authChosen, &chap{auth: m.Grant.Auth}
	}
	return []Pair{{"AuthMethod", want}}, pdu.LoginSuccess
}

// Full answers keys of a Text Request in the full feature phase, SendTargets
// excepted, which is the caller's.
func Full(p *Params, pairs []Pair, discovery bool) []Pair {
	var answers []Pair
	offer := DefaultOffer()
	for _, kv := range pairs {
		if a := negotiate(p, &offer, kv, discovery, true); a != "" {
			answers = append(answers, Pair{kv.Key, a})
		}
	}
	return answers
}
