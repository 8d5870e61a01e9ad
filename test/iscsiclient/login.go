package iscsiclient

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"

	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// StatusError is a login that was refused.
type StatusError struct{ Status pdu.LoginStatus }

func (e *StatusError) Error() string { return fmt.Sprintf("login status 0x%04x", uint16(e.Status)) }

// Login takes the connection to the full feature phase.
func (c *Client) Login() error {
	names := []login.Pair{{Key: "InitiatorName", Value: c.cfg.Initiator}}
	if c.cfg.Target == "" {
		names = append(names, login.Pair{Key: "SessionType", Value: "Discovery"})
	} else {
		names = append(names, login.Pair{Key: "SessionType", Value: "Normal"}, login.Pair{Key: "TargetName", Value: c.cfg.Target})
	}
	if !c.cfg.Auth.Initiator.IsZero() {
		if err := c.authenticate(names); err != nil {
			return err
		}
		names = nil
	}
	resp, err := c.Step(pdu.StageOperational, pdu.StageFullFeature, append(names, c.cfg.Keys...))
	if err != nil {
		return err
	}
	if !resp.Transit || resp.Next != pdu.StageFullFeature {
		return fmt.Errorf("the target does not end the login: %+v", resp)
	}
	c.TSIH = resp.TSIH
	c.take()
	return nil
}

// take makes what was answered the parameters of the session.
func (c *Client) take() {
	p := &c.Params
	num := func(key string, to *uint32) {
		if n, err := strconv.ParseUint(c.Answers[key], 10, 32); err == nil {
			*to = uint32(n)
		}
	}
	yes := func(key string, to *bool) {
		if v, ok := c.Answers[key]; ok {
			*to = v == "Yes"
		}
	}
	num("MaxRecvDataSegmentLength", &p.SendMax)
	num("MaxBurstLength", &p.MaxBurst)
	num("FirstBurstLength", &p.FirstBurst)
	p.FirstBurst = min(p.FirstBurst, p.MaxBurst)
	num("MaxOutstandingR2T", &p.MaxOutstandingR2T)
	yes("InitialR2T", &p.InitialR2T)
	yes("ImmediateData", &p.ImmediateData)
	c.Digests = pdu.Digests{Header: c.Answers["HeaderDigest"] == "CRC32C", Data: c.Answers["DataDigest"] == "CRC32C"}
}

// authenticate is the security stage.
func (c *Client) authenticate(names []login.Pair) error {
	sec := pdu.StageSecurity
	if _, err := c.Step(sec, sec, append(names, login.Pair{Key: "AuthMethod", Value: "CHAP,None"})); err != nil {
		return err
	}
	if c.Answers["AuthMethod"] != "CHAP" {
		_, err := c.Step(sec, pdu.StageOperational, nil)
		return err
	}
	if _, err := c.Step(sec, sec, []login.Pair{{Key: "CHAP_A", Value: c.cfg.Algorithms}}); err != nil {
		return err
	}
	id, _ := strconv.Atoi(c.Answers["CHAP_I"])
	challenge, ok := login.ParseBinary(c.Answers["CHAP_C"], 1024)
	if !ok {
		return errors.New("no challenge")
	}
	alg := c.Answers["CHAP_A"]
	r, ok := login.Respond(alg, byte(id), c.cfg.Auth.Initiator.Secret, challenge)
	if !ok {
		return fmt.Errorf("algorithm %q", alg)
	}
	kv := []login.Pair{{Key: "CHAP_N", Value: c.cfg.Auth.Initiator.User}, {Key: "CHAP_R", Value: r}}
	ours := make([]byte, 16)
	_, _ = rand.Read(ours)
	mutual := !c.cfg.Auth.Target.IsZero()
	if mutual {
		kv = append(kv, login.Pair{Key: "CHAP_I", Value: "77"}, login.Pair{Key: "CHAP_C", Value: fmt.Sprintf("0x%x", ours)})
	}
	if _, err := c.Step(sec, pdu.StageOperational, kv); err != nil {
		return err
	}
	if mutual {
		want, _ := login.Respond(alg, 77, c.cfg.Auth.Target.Secret, ours)
		if c.Answers["CHAP_R"] != want || c.Answers["CHAP_N"] != c.cfg.Auth.Target.User {
			return errors.New("the target did not prove itself")
		}
	}
	return nil
}

// Step sends one Login Request and takes its response.
func (c *Client) Step(from, to pdu.Stage, pairs []login.Pair) (pdu.LoginResponse, error) {
	var text []byte
	for _, kv := range pairs {
		text = login.AppendPair(text, kv.Key, kv.Value)
	}
	req := pdu.LoginRequest{
		Transit: to != from, Current: from, Next: to, ISID: c.cfg.ISID, TSIH: c.cfg.TSIH, ITT: 1, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN,
	}
	var h pdu.Header
	req.Put(&h)
	if err := c.Send(&h, nil, text); err != nil {
		return pdu.LoginResponse{}, err
	}
	rh, data, err := c.Recv()
	if err != nil {
		return pdu.LoginResponse{}, err
	}
	if rh.Opcode() != pdu.OpLoginResponse {
		return pdu.LoginResponse{}, fmt.Errorf("a %v", rh.Opcode())
	}
	resp := pdu.DecodeLoginResponse(&rh)
	c.Status = resp.Status
	if resp.Status != pdu.LoginSuccess {
		return resp, &StatusError{resp.Status}
	}
	c.ExpStatSN = resp.SN.StatSN + 1
	answers, err := login.ParseText(data)
	for _, kv := range answers {
		c.Answers[kv.Key] = kv.Value
	}
	return resp, err
}

// Refused tells whether err is a login refused with that status.
func Refused(err error, s pdu.LoginStatus) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Status == s
}
