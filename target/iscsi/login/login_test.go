package login

import (
	"slices"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

const (
	initiator = "iqn.2026-11.test:i"
	target    = "iqn.2026-11.test:t"
	sec       = pdu.StageSecurity
	op        = pdu.StageOperational
	full      = pdu.StageFullFeature
)

var (
	one = Secret{User: "alice", Secret: "twelve bytes"}
	two = Secret{User: "disk", Secret: "another twelve"}
)

// machine has a target that wants auth.
func machine(auth Auth) *Machine {
	return New(Config{
		Offer:  DefaultOffer(),
		Random: func(b []byte) { copy(b, strings.Repeat("\x07", len(b))) },
		Admit: func(w Who) Grant {
			g := Grant{Auth: auth, PortalGroup: 3}
			if !w.Discovery && w.Target != target {
				g.Status = pdu.LoginNotFound
			}
			return g
		},
	})
}

// step sends "Key=value Key=value" and returns the answer in the same form.
func step(m *Machine, from, to pdu.Stage, text string) (pdu.LoginResponse, string, State) {
	var b []byte
	for kv := range strings.FieldsSeq(text) {
		b = append(append(b, kv...), 0)
	}
	resp, out, state := m.Step(pdu.LoginRequest{Transit: to != from, Current: from, Next: to, ITT: 1}, b)
	pairs, err := ParseText(out)
	if err != nil {
		return resp, err.Error(), state
	}
	var words []string
	for _, p := range pairs {
		words = append(words, p.Key+"="+p.Value)
	}
	return resp, strings.Join(words, " "), state
}

const names = "InitiatorName=" + initiator + " TargetName=" + target + " SessionType=Normal "

func TestKeysAreNegotiatedAsTheTableSays(t *testing.T) {
	for _, c := range []struct {
		offer, answer string
		check         func(p Params) bool
	}{
		{"HeaderDigest=CRC32C,None", "CRC32C", func(p Params) bool { return p.HeaderDigest }},
		{"HeaderDigest=None,CRC32C", "None", func(p Params) bool { return !p.HeaderDigest }},
		{"DataDigest=SHA9,CRC32C", "CRC32C", func(p Params) bool { return p.DataDigest }},
		{"DataDigest=SHA9", "Reject", func(p Params) bool { return !p.DataDigest }},
		{"MaxConnections=8", "1", func(p Params) bool { return p.MaxConnections == 1 }},
		{"InitialR2T=No", "No", func(p Params) bool { return !p.InitialR2T }},
		{"InitialR2T=Yes", "Yes", func(p Params) bool { return p.InitialR2T }},
		{"InitialR2T=yes", "Reject", func(p Params) bool { return p.InitialR2T }},
		{"ImmediateData=No", "No", func(p Params) bool { return !p.ImmediateData }},
		{"ImmediateData=Yes", "Yes", func(p Params) bool { return p.ImmediateData }},
		{"MaxRecvDataSegmentLength=65536", "", func(p Params) bool { return p.SendMax == 65536 }},
		{"MaxRecvDataSegmentLength=511", "Reject", func(p Params) bool { return p.SendMax == 8192 }},
		{"MaxRecvDataSegmentLength=16777216", "Reject", func(p Params) bool { return p.SendMax == 8192 }},
		{"MaxRecvDataSegmentLength=0x10000", "", func(p Params) bool { return p.SendMax == 65536 }},
		{"MaxBurstLength=16776192", "1048576", func(p Params) bool { return p.MaxBurst == 1<<20 }},
		{"MaxBurstLength=4096", "4096", func(p Params) bool { return p.MaxBurst == 4096 && p.FirstBurst == 4096 }},
		{"FirstBurstLength=512", "512", func(p Params) bool { return p.FirstBurst == 512 }},
		{"DefaultTime2Wait=0", "2", func(p Params) bool { return p.Time2Wait == 2 }},
		{"DefaultTime2Wait=9", "9", func(p Params) bool { return p.Time2Wait == 9 }},
		{"DefaultTime2Retain=20", "0", func(p Params) bool { return p.Time2Retain == 0 }},
		{"MaxOutstandingR2T=16", "8", func(p Params) bool { return p.MaxOutstandingR2T == 8 }},
		{"MaxOutstandingR2T=0", "Reject", func(p Params) bool { return p.MaxOutstandingR2T == 1 }},
		{"DataPDUInOrder=No", "Yes", func(p Params) bool { return p.DataPDUInOrder }},
		{"DataSequenceInOrder=No", "Yes", func(p Params) bool { return p.DataSequenceInOrder }},
		{"ErrorRecoveryLevel=2", "0", func(p Params) bool { return p.ErrorRecoveryLevel == 0 }},
		{"ErrorRecoveryLevel=3", "Reject", func(p Params) bool { return p.ErrorRecoveryLevel == 0 }},
		{"iSCSIProtocolLevel=2", "1", func(p Params) bool { return p.ProtocolLevel == 1 }},
		{"TaskReporting=FastAbort,RFC3720", "RFC3720", nil},
		{"InitiatorAlias=x", "", nil},
		{"IFMarker=Yes", "No", nil},
		{"OFMarkInt=1~2", "Reject", nil},
		{"X-com.example.thing=1", "NotUnderstood", nil},
		{"MaxConnections=-1", "Reject", nil},
		{"MaxConnections=1x", "Reject", nil},
	} {
		key, _, _ := strings.Cut(c.offer, "=")
		m := machine(Auth{})
		resp, answer, state := step(m, op, full, names+c.offer)
		if state != Ready || resp.Status != 0 || resp.Next != full || !resp.Transit {
			t.Errorf("%s: %+v %v %v", c.offer, resp, state, m.Err)
			continue
		}
		words := strings.Fields(answer)
		want := key + "=" + c.answer
		if got := slices.Contains(words, want); c.answer != "" && !got {
			t.Errorf("%s: %q does not have %s", c.offer, answer, want)
		}
		if c.answer == "" && strings.Contains(strings.ReplaceAll(answer, "MaxRecvDataSegmentLength=262144", ""), key) {
			t.Errorf("%s is declared, but was answered: %s", c.offer, answer)
		}
		if !slices.Contains(words, "TargetPortalGroupTag=3") || !slices.Contains(words, "MaxRecvDataSegmentLength=262144") {
			t.Errorf("%s: what the target declares is missing: %s", c.offer, answer)
		}
		if c.check != nil && !c.check(m.Params) {
			t.Errorf("%s: %+v", c.offer, m.Params)
		}
	}
}

func TestEveryKeyOfTheTableIsTested(t *testing.T) {
	for _, r := range table {
		if r.key == "" || (r.negotiate == nil) {
			t.Errorf("%+v", r)
		}
		if find(r.key) == nil || !keyOK(r.key) {
			t.Errorf("%s is not found or no key", r.key)
		}
	}
}

func TestDiscoveryNeedsNoTarget(t *testing.T) {
	m := machine(Auth{})
	_, answer, state := step(m, op, full, "InitiatorName="+initiator+" SessionType=Discovery InitialR2T=No HeaderDigest=None")
	if state != Ready || answer != "InitialR2T=Irrelevant HeaderDigest=None MaxRecvDataSegmentLength=262144" {
		t.Errorf("%q %v %v", answer, state, m.Err)
	}
}

func TestLoginsThatAreRefused(t *testing.T) {
	chap := Auth{Initiator: one}
	for _, c := range []struct {
		name   string
		auth   Auth
		text   string
		change func(r *pdu.LoginRequest)
		status pdu.LoginStatus
	}{
		{"no initiator", Auth{}, "TargetName=" + target, nil, pdu.LoginMissingParameter},
		{"no target", Auth{}, "InitiatorName=" + initiator, nil, pdu.LoginMissingParameter},
		{"not a name", Auth{}, "InitiatorName=bob TargetName=" + target, nil, pdu.LoginInitiatorError},
		{"long name", Auth{}, "InitiatorName=iqn." + strings.Repeat("a", 220) + " TargetName=" + target, nil, pdu.LoginInitiatorError},
		{"session type", Auth{}, "SessionType=Other " + "InitiatorName=" + initiator, nil, pdu.LoginSessionType},
		{"unknown target", Auth{}, "InitiatorName=" + initiator + " TargetName=iqn.x:y", nil, pdu.LoginNotFound},
		{"a key twice", Auth{}, names + "InitialR2T=No InitialR2T=No", nil, pdu.LoginInitiatorError},
		{"no pairs", Auth{}, names + "nonsense", nil, pdu.LoginInitiatorError},
		{"version", Auth{}, names, func(r *pdu.LoginRequest) { r.VersionMin = 1 }, pdu.LoginUnsupportedVersion},
		{"backwards", Auth{}, names, func(r *pdu.LoginRequest) { r.Next = op }, pdu.LoginInvalidRequest},
		{"full feature first", Auth{}, names, func(r *pdu.LoginRequest) { r.Current = full }, pdu.LoginInvalidRequest},
		{"stage 2", Auth{}, names, func(r *pdu.LoginRequest) { r.Current = 2 }, pdu.LoginInvalidRequest},
		{"continues and transits", Auth{}, names, func(r *pdu.LoginRequest) { r.Continue = true }, pdu.LoginInitiatorError},
		{"skips authentication", chap, names, nil, pdu.LoginNotAuthenticated},
		{"None where CHAP is needed", chap, names + "AuthMethod=None", func(r *pdu.LoginRequest) { r.Current = sec }, pdu.LoginNotAuthenticated},
		{"KRB5", Auth{}, names + "AuthMethod=KRB5", func(r *pdu.LoginRequest) { r.Current = sec }, pdu.LoginNotAuthenticated},
		{"CHAP where there is no secret", Auth{}, names + "AuthMethod=CHAP", func(r *pdu.LoginRequest) { r.Current = sec }, pdu.LoginNotAuthenticated},
		{"operational key in security", chap, names + "InitialR2T=No", func(r *pdu.LoginRequest) { r.Current = sec }, pdu.LoginInitiatorError},
		{"CHAP before AuthMethod", chap, names + "CHAP_A=5", func(r *pdu.LoginRequest) { r.Current = sec }, pdu.LoginInitiatorError},
	} {
		m := machine(c.auth)
		req := pdu.LoginRequest{Transit: true, Current: op, Next: full, ITT: 1}
		if c.change != nil {
			c.change(&req)
		}
		resp, out, state := m.Step(req, []byte(strings.ReplaceAll(c.text, " ", "\x00")))
		if state != Failed || resp.Status != c.status || len(out) > 0 || m.Err == nil || resp.Transit {
			t.Errorf("%s: status 0x%04x, want 0x%04x; %v, %v", c.name, uint16(resp.Status), uint16(c.status), state, m.Err)
		}
	}
}

// chapLogin plays the initiator of a CHAP login.
func chapLogin(m *Machine, algorithms string, who Secret, mutual func(challenge string) string) (pdu.LoginResponse, map[string]string, State) {
	resp, _, state := step(m, sec, sec, names+"AuthMethod=CHAP,None")
	if state == Failed {
		return resp, nil, state
	}
	resp, answer, state := step(m, sec, sec, "CHAP_A="+algorithms)
	if state == Failed {
		return resp, nil, state
	}
	kv := parse(answer)
	challenge, _ := ParseBinary(kv["CHAP_C"], 1024)
	id, _ := number(kv["CHAP_I"], 0, 255)
	r, _ := Respond(kv["CHAP_A"], byte(id), who.Secret, challenge)
	text := "CHAP_N=" + who.User + " CHAP_R=" + r
	if mutual != nil {
		text += " CHAP_I=9 CHAP_C=" + mutual(kv["CHAP_C"])
	}
	resp, answer, state = step(m, sec, op, text)
	out := parse(answer)
	out["algorithm"] = kv["CHAP_A"]
	return resp, out, state
}

func parse(text string) map[string]string {
	kv := map[string]string{}
	for w := range strings.FieldsSeq(text) {
		k, v, _ := strings.Cut(w, "=")
		kv[k] = v
	}
	return kv
}

func TestCHAPProvesTheInitiator(t *testing.T) {
	for _, alg := range []string{"5", "6", "7", "8"} {
		m := machine(Auth{Initiator: one})
		resp, kv, state := chapLogin(m, "99,"+alg+",5", one, nil)
		if state != Going || !resp.Transit || resp.Next != op || kv["algorithm"] != alg || m.User != "alice" {
			t.Errorf("algorithm %s: %+v %v %v", alg, resp, kv, m.Err)
		}
		if _, _, state = step(m, op, full, "InitialR2T=No"); state != Ready {
			t.Errorf("algorithm %s: %v", alg, m.Err)
		}
	}
	for _, wrong := range []Secret{{"alice", "twelve bytez"}, {"bob", one.Secret}, {"alice", ""}} {
		m := machine(Auth{Initiator: one})
		resp, _, state := chapLogin(m, "7", wrong, nil)
		if state != Failed || resp.Status != pdu.LoginNotAuthenticated || !fault.Is(m.Err, fault.Denied) {
			t.Errorf("%+v got in: %v", wrong, m.Err)
		}
	}
	m := machine(Auth{Initiator: one})
	if resp, _, state := chapLogin(m, "1,2,3", one, nil); state != Failed || resp.Status != pdu.LoginNotAuthenticated {
		t.Error("an algorithm that nobody has was agreed on")
	}
}

func TestMutualCHAPProvesTheTarget(t *testing.T) {
	own := "0x000102030405060708090a0b0c0d0e0f"
	m := machine(Auth{Initiator: one, Target: two})
	_, kv, state := chapLogin(m, "7", one, func(string) string { return own })
	challenge, _ := ParseBinary(own, 64)
	want, _ := Respond("7", 9, two.Secret, challenge)
	if state != Going || kv["CHAP_N"] != "disk" || kv["CHAP_R"] != want {
		t.Errorf("%v %v", kv, m.Err)
	}
	for name, c := range map[string]struct {
		auth   Auth
		mutual func(string) string
	}{
		"reflection of the challenge":   {Auth{Initiator: one, Target: two}, func(c string) string { return c }},
		"no secret of the target":       {Auth{Initiator: one}, func(string) string { return own }},
		"an empty challenge":            {Auth{Initiator: one, Target: two}, func(string) string { return "0x" }},
		"a challenge that is no number": {Auth{Initiator: one, Target: two}, func(string) string { return "zzz" }},
		"a very long challenge":         {Auth{Initiator: one, Target: two}, func(string) string { return "0x" + strings.Repeat("ab", 1030) }},
	} {
		m := machine(c.auth)
		if resp, _, state := chapLogin(m, "7", one, c.mutual); state != Failed || resp.Status != pdu.LoginNotAuthenticated {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestRulesOfSecrets(t *testing.T) {
	long := strings.Repeat("x", SecretMax)
	for _, c := range []struct {
		a  Auth
		ok bool
	}{
		{Auth{}, true}, {Auth{Initiator: one}, true}, {Auth{one, two}, true}, {Auth{Secret{"a", long}, two}, true},
		{Auth{Initiator: Secret{"a", "eleven byte"}}, false}, {Auth{Initiator: Secret{"a", long + "x"}}, false},
		{Auth{Initiator: Secret{"", one.Secret}}, false}, {Auth{Initiator: Secret{"a b", one.Secret}}, false},
		{Auth{Target: two}, false}, {Auth{one, Secret{"disk", one.Secret}}, false}, {Auth{one, Secret{"disk", "short"}}, false},
	} {
		err := c.a.Check()
		if (err == nil) != c.ok || (err != nil && !fault.Is(err, fault.Invalid)) {
			t.Errorf("%+v: %v", c.a, err)
		}
		for _, s := range []Secret{c.a.Initiator, c.a.Target} {
			if err != nil && s.Secret != "" && strings.Contains(err.Error(), s.Secret) {
				t.Errorf("the error tells a secret: %v", err)
			}
		}
	}
}

func TestTextOverSeveralRequests(t *testing.T) {
	m := machine(Auth{})
	req := pdu.LoginRequest{Continue: true, Current: op, ITT: 1}
	half := len(names) / 2
	text := strings.ReplaceAll(strings.TrimSpace(names), " ", "\x00")
	if resp, out, state := m.Step(req, []byte(text[:half])); state != Going || len(out) > 0 || resp.Status != 0 {
		t.Fatalf("%+v", resp)
	}
	if _, _, state := m.Step(pdu.LoginRequest{Transit: true, Current: op, Next: full, ITT: 1}, []byte(text[half:])); state != Ready {
		t.Fatal(m.Err)
	}
	m = machine(Auth{})
	for range 2 {
		resp, _, state := m.Step(req, []byte(strings.Repeat("A", TextMax-1)))
		if state == Failed {
			if resp.Status != pdu.LoginInitiatorError {
				t.Errorf("%+v", resp)
			}
			return
		}
	}
	t.Error("text without end is gathered")
}

func TestALoginEnds(t *testing.T) {
	m := machine(Auth{})
	for i := range RequestsMax + 1 {
		text := ""
		if i == 0 {
			text = names
		}
		if _, _, state := step(m, op, op, text); state == Failed {
			if i < 5 {
				t.Fatal(m.Err)
			}
			return
		}
	}
	t.Error("a login without end")
}

func FuzzParseText(f *testing.F) {
	f.Add([]byte("A=b\x00C=\x00\x00"))
	f.Add([]byte("=\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := ParseText(b)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		var out []byte
		for _, p := range pairs {
			out = AppendPair(out, p.Key, p.Value)
		}
		again, err := ParseText(out)
		if err != nil || !slices.Equal(again, pairs) {
			t.Fatalf("%q became %q: %v", pairs, again, err)
		}
	})
}

func FuzzParseBinary(f *testing.F) {
	f.Add("0x0102")
	f.Add("0bAQI=")
	f.Fuzz(func(t *testing.T, s string) {
		b, ok := ParseBinary(s, 64)
		if again, ok2 := ParseBinary(hexText(b), 64); ok && len(b) > 0 && (!ok2 || string(again) != string(b)) {
			t.Fatalf("%x", b)
		}
		if len(b) > 64 && ok {
			t.Fatal("too long")
		}
	})
}

// FuzzLogin: whatever arrives, nobody gets in who did not prove what is asked.
func FuzzLogin(f *testing.F) {
	f.Add(byte(0x87), []byte(strings.ReplaceAll(names, " ", "\x00")), byte(0x81), []byte("AuthMethod=None\x00"))
	f.Add(byte(0x80), []byte(strings.ReplaceAll(names+"AuthMethod=CHAP", " ", "\x00")), byte(0x81), []byte("CHAP_A=5\x00"))
	f.Fuzz(func(t *testing.T, f1 byte, t1 []byte, f2 byte, t2 []byte) {
		m := machine(Auth{Initiator: one, Target: two})
		for i, x := range []struct {
			flags byte
			text  []byte
		}{{f1, t1}, {f2, t2}, {f1, t2}, {f2, t1}} {
			h := pdu.Header{0: 0x43, 1: x.flags}
			resp, out, state := m.Step(pdu.DecodeLoginRequest(&h), x.text)
			if state == Ready {
				t.Fatalf("let in at step %d: %+v", i, resp)
			}
			if state == Failed {
				if resp.Status == 0 || m.Err == nil {
					t.Fatalf("failed without a status: %+v", resp)
				}
				return
			}
			if _, err := ParseText(out); err != nil {
				t.Fatal(err)
			}
		}
	})
}
