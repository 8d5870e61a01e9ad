// Package iscsiclient is a small iSCSI initiator for tests: it negotiates what it
// is told, shows every PDU, and can break every rule. It is not for concurrent
// use: one goroutine has a Client.
package iscsiclient

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// Config is how a client logs in.
type Config struct {
	Initiator string // default "iqn.2026-11.test:client"
	Target    string // empty: discovery
	ISID      pdu.ISID
	TSIH      uint16
	// Keys are offered in the operational stage, in this order.
	Keys []login.Pair
	// Auth, if set, is used in a security stage: Initiator is what we prove, Target what
	// we demand of the other end. Algorithms is CHAP_A, default "7,6,5".
	Auth       login.Auth
	Algorithms string
	// Timeout bounds each wait, 10 s.
	Timeout time.Duration
}

// Client is one connection.
type Client struct {
	cfg Config
	nc  net.Conn
	in  *bufio.Reader

	TSIH    uint16
	Params  login.Params
	Answers map[string]string // of the target, by key
	Status  pdu.LoginStatus
	Digests pdu.Digests

	CmdSN, ExpStatSN, MaxCmdSN, ExpCmdSN uint32
	itt                                  uint32
	Commands                             map[uint32]*Command
	Events                               []pdu.Async
	Rejects                              []pdu.Reject
}

// Command is a SCSI command under way or over.
type Command struct {
	CDB       []byte
	LUN       uint64
	Out       []byte
	In        []byte // room for data-in
	Length    int    // expected data transfer length; 0: that of Out or In
	NoWrite   bool   // W bit clear in spite of Out
	Immediate bool
	Attr      pdu.Attribute

	ITT      uint32
	Done     bool
	Status   byte
	Response byte
	Sense    []byte
	Residual pdu.Residual
	Got      int // bytes of data-in
	DataSN   uint32
	R2Ts     []pdu.R2T
}

// Key, ASC of the sense data in fixed or descriptor format; zeros without.
func (c *Command) SenseKey() (key byte, asc uint16) {
	s := c.Sense
	switch {
	case len(s) >= 14 && s[0]&0x7e == 0x70:
		return s[2] & 15, uint16(s[12])<<8 | uint16(s[13])
	case len(s) >= 4 && s[0]&0x7e == 0x72:
		return s[1] & 15, uint16(s[2])<<8 | uint16(s[3])
	}
	return 0, 0
}

// Dial connects without logging in.
func Dial(addr string, cfg Config) (*Client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if cfg.Initiator == "" {
		cfg.Initiator = "iqn.2026-11.test:client"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Algorithms == "" {
		cfg.Algorithms = "7,6,5"
	}
	return &Client{
		cfg: cfg, nc: nc, in: bufio.NewReaderSize(nc, 512<<10), Params: login.Defaults(), Answers: map[string]string{},
		CmdSN: 1, Commands: map[uint32]*Command{},
	}, nil
}

// Login connects and logs in.
func Login(addr string, cfg Config) (*Client, error) {
	c, err := Dial(addr, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Login(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close drops the connection.
func (c *Client) Close() { c.nc.Close() }

// Conn is the connection itself.
func (c *Client) Conn() net.Conn { return c.nc }

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

// Send sends one PDU, with digests as agreed.
func (c *Client) Send(h *pdu.Header, ahs, data []byte) error {
	h.SetAHSLength(len(ahs))
	h.SetDataLength(len(data))
	b := make([]byte, pdu.Size(h, c.Digests))
	copy(b, h[:])
	copy(b[pdu.HeaderSize:], ahs)
	if c.Digests.Header {
		pdu.PutHeaderDigest(b, len(ahs))
	}
	if len(data) > 0 {
		at := pdu.DataOffset(h, c.Digests)
		copy(b[at:], data)
		if c.Digests.Data {
			d := pdu.DataDigest(data)
			copy(b[at+pdu.Padded(len(data)):], d[:])
		}
	}
	return c.SendRaw(b)
}

// SendRaw sends bytes.
func (c *Client) SendRaw(b []byte) error {
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.Timeout))
	_, err := c.nc.Write(b)
	return err
}

// Recv takes one PDU and checks its digests.
func (c *Client) Recv() (h pdu.Header, data []byte, err error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.Timeout))
	if _, err = io.ReadFull(c.in, h[:]); err != nil {
		return h, nil, err
	}
	b := make([]byte, pdu.Size(&h, c.Digests))
	copy(b, h[:])
	if _, err = io.ReadFull(c.in, b[pdu.HeaderSize:]); err != nil {
		return h, nil, err
	}
	if c.Digests.Header && !pdu.HeaderDigestOK(b, h.AHSLength()) {
		return h, nil, errors.New("header digest")
	}
	at := pdu.DataOffset(&h, c.Digests)
	if c.Digests.Data && h.DataLength() > 0 && !pdu.DataDigestOK(b[at:]) {
		return h, nil, errors.New("data digest")
	}
	return h, b[at : at+h.DataLength()], nil
}

// NextITT is a tag for a command.
func (c *Client) NextITT() uint32 {
	c.itt++
	return c.itt
}

// Start sends a command with what data may go unasked.
func (c *Client) Start(cmd *Command) error {
	cmd.ITT = c.NextITT()
	if cmd.Length == 0 {
		cmd.Length = max(len(cmd.Out), len(cmd.In))
	}
	p := pdu.SCSICommand{
		Immediate: cmd.Immediate, Final: true, Read: len(cmd.In) > 0, Write: len(cmd.Out) > 0 && !cmd.NoWrite, Attribute: cmd.Attr,
		LUN: cmd.LUN, ITT: cmd.ITT, Length: uint32(cmd.Length), CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN,
	}
	if p.Attribute == 0 {
		p.Attribute = pdu.Simple
	}
	copy(p.CDB[:], cmd.CDB)
	var ahs []byte
	if len(cmd.CDB) > 16 {
		ahs = (&pdu.AHS{CDB: cmd.CDB[16:]}).Append(nil)
	}
	if !cmd.Immediate {
		c.CmdSN++
	}
	c.Commands[cmd.ITT] = cmd
	var immediate []byte
	first := min(int(c.Params.FirstBurst), len(cmd.Out))
	if p.Write && c.Params.ImmediateData {
		immediate = cmd.Out[:min(first, int(c.Params.SendMax))]
	}
	p.Final = !p.Write || c.Params.InitialR2T || len(immediate) == first
	var h pdu.Header
	p.Put(&h)
	if err := c.Send(&h, ahs, immediate); err != nil {
		return err
	}
	if p.Final {
		return nil
	}
	return c.sendData(cmd, pdu.NoTag, len(immediate), first)
}

// sendData sends [at, end) of a command's data.
func (c *Client) sendData(cmd *Command, ttt uint32, at, end int) error {
	for sn := uint32(0); at < end; sn++ {
		k := min(end-at, int(c.Params.SendMax))
		p := pdu.DataOut{Final: at+k == end, LUN: cmd.LUN, ITT: cmd.ITT, TTT: ttt, ExpStatSN: c.ExpStatSN, DataSN: sn, Offset: uint32(at)}
		var h pdu.Header
		p.Put(&h)
		if err := c.Send(&h, nil, cmd.Out[at:at+k]); err != nil {
			return err
		}
		at += k
	}
	return nil
}

// Next takes PDUs until a command is over, and returns it.
func (c *Client) Next() (*Command, error) {
	for {
		h, data, err := c.Recv()
		if err != nil {
			return nil, err
		}
		cmd, err := c.Take(&h, data)
		if cmd != nil || err != nil {
			return cmd, err
		}
	}
}

// Take acts on one PDU as an initiator does; it returns the command that it ended.
func (c *Client) Take(h *pdu.Header, data []byte) (*Command, error) {
	sn := pdu.SN{StatSN: binary.BigEndian.Uint32(h[24:]), ExpCmdSN: binary.BigEndian.Uint32(h[28:]), MaxCmdSN: binary.BigEndian.Uint32(h[32:])}
	if pdu.Before(sn.MaxCmdSN, c.MaxCmdSN) && c.MaxCmdSN != 0 {
		return nil, fmt.Errorf("%v: MaxCmdSN falls from %d to %d", h.Opcode(), c.MaxCmdSN, sn.MaxCmdSN)
	}
	c.MaxCmdSN, c.ExpCmdSN = sn.MaxCmdSN, sn.ExpCmdSN
	status := func() error {
		if sn.StatSN != c.ExpStatSN {
			return fmt.Errorf("%v: StatSN %d, %d is due", h.Opcode(), sn.StatSN, c.ExpStatSN)
		}
		c.ExpStatSN++
		return nil
	}
	cmd := c.Commands[h.ITT()]
	switch h.Opcode() {
	case pdu.OpSCSIResponse:
		p := pdu.DecodeSCSIResponse(h)
		if cmd == nil {
			return nil, fmt.Errorf("a response to nothing: %+v", p)
		}
		cmd.Done, cmd.Status, cmd.Response, cmd.Residual = true, p.Status, p.Response, p.Residual
		if len(data) >= 2 {
			cmd.Sense = append([]byte(nil), data[2:2+int(binary.BigEndian.Uint16(data))]...)
		}
		if want := cmd.DataSN + uint32(len(cmd.R2Ts)); p.ExpDataSN != want {
			return nil, fmt.Errorf("ExpDataSN %d, %d is right", p.ExpDataSN, want)
		}
		delete(c.Commands, cmd.ITT)
		return cmd, status()
	case pdu.OpDataIn:
		return c.takeData(cmd, h, data, status)
	case pdu.OpR2T:
		p := pdu.DecodeR2T(h)
		if cmd == nil || p.Length == 0 || int(p.Offset)+int(p.Length) > len(cmd.Out) || p.R2TSN != uint32(len(cmd.R2Ts)) ||
			p.Length > c.Params.MaxBurst || sn.StatSN != c.ExpStatSN {
			return nil, fmt.Errorf("an R2T that makes no sense: %+v", p)
		}
		cmd.R2Ts = append(cmd.R2Ts, p)
		return nil, c.sendData(cmd, p.TTT, int(p.Offset), int(p.Offset)+int(p.Length))
	case pdu.OpNopIn:
		if h.ITT() != pdu.NoTag {
			return nil, status()
		}
		q := pdu.NopOut{Immediate: true, ITT: pdu.NoTag, TTT: pdu.DecodeNopIn(h).TTT, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
		var out pdu.Header
		q.Put(&out)
		return nil, c.Send(&out, nil, nil)
	case pdu.OpAsync:
		c.Events = append(c.Events, pdu.DecodeAsync(h))
		return nil, status()
	case pdu.OpReject:
		c.Rejects = append(c.Rejects, pdu.DecodeReject(h))
		return nil, status()
	}
	return nil, fmt.Errorf("an unexpected %v", h.Opcode())
}

func (c *Client) takeData(cmd *Command, h *pdu.Header, data []byte, status func() error) (*Command, error) {
	p := pdu.DecodeDataIn(h)
	switch {
	case cmd == nil:
		return nil, fmt.Errorf("data for nothing: %+v", p)
	case p.DataSN != cmd.DataSN || int(p.Offset) != cmd.Got || cmd.Got+len(data) > len(cmd.In):
		return nil, fmt.Errorf("data at %d, DataSN %d, of %d bytes; %d and %d are due", p.Offset, p.DataSN, len(data), cmd.Got, cmd.DataSN)
	}
	cmd.Got += copy(cmd.In[cmd.Got:], data)
	cmd.DataSN++
	if !p.HasStatus {
		return nil, nil
	}
	cmd.Done, cmd.Status, cmd.Residual = true, p.Status, p.Residual
	delete(c.Commands, cmd.ITT)
	return cmd, status()
}

// Do carries out one command alone.
func (c *Client) Do(cmd *Command) error {
	if err := c.Start(cmd); err != nil {
		return err
	}
	for !cmd.Done {
		if _, err := c.Next(); err != nil {
			return err
		}
	}
	return nil
}

// Exchange sends a PDU and takes PDUs until one of type want comes.
func (c *Client) Exchange(h *pdu.Header, data []byte, want pdu.Opcode) (pdu.Header, []byte, error) {
	if err := c.Send(h, nil, data); err != nil {
		return pdu.Header{}, nil, err
	}
	for {
		rh, rdata, err := c.Recv()
		if err != nil {
			return rh, nil, err
		}
		if rh.Opcode() == want {
			if want != pdu.OpNopIn || rh.ITT() != pdu.NoTag {
				c.ExpStatSN = binary.BigEndian.Uint32(rh[24:]) + 1
				return rh, rdata, nil
			}
		}
		if _, err := c.Take(&rh, rdata); err != nil {
			return rh, nil, err
		}
	}
}

// Text sends text and gathers the whole answer.
func (c *Client) Text(pairs ...login.Pair) ([]login.Pair, error) {
	var text, all []byte
	for _, kv := range pairs {
		text = login.AppendPair(text, kv.Key, kv.Value)
	}
	for ttt := uint32(pdu.NoTag); ; text = nil {
		p := pdu.TextRequest{Immediate: true, Final: true, ITT: c.NextITT(), TTT: ttt, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
		var h pdu.Header
		p.Put(&h)
		rh, data, err := c.Exchange(&h, text, pdu.OpTextResponse)
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
		r := pdu.DecodeTextResponse(&rh)
		if r.Final {
			return login.ParseText(all)
		}
		ttt = r.TTT
	}
}

// Discover lists targets and their addresses.
func (c *Client) Discover() (map[string][]string, error) {
	pairs, err := c.Text(login.Pair{Key: "SendTargets", Value: "All"})
	out := map[string][]string{}
	name := ""
	for _, kv := range pairs {
		switch kv.Key {
		case "TargetName":
			name = kv.Value
			out[name] = nil
		case "TargetAddress":
			out[name] = append(out[name], kv.Value)
		default:
			return nil, fmt.Errorf("%s=%s", kv.Key, kv.Value)
		}
	}
	return out, err
}

// Manage carries out a task management function and returns its response.
func (c *Client) Manage(f pdu.Function, lun uint64, ref uint32) (byte, error) {
	p := pdu.TaskMgmt{Immediate: true, Function: f, LUN: lun, ITT: c.NextITT(), RefITT: ref, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
	var h pdu.Header
	p.Put(&h)
	rh, _, err := c.Exchange(&h, nil, pdu.OpTaskMgmtResponse)
	return pdu.DecodeTaskMgmtResponse(&rh).Response, err
}

// Logout ends the session.
func (c *Client) Logout() error {
	p := pdu.LogoutRequest{Immediate: true, ITT: c.NextITT(), CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
	var h pdu.Header
	p.Put(&h)
	rh, _, err := c.Exchange(&h, nil, pdu.OpLogoutResponse)
	if err == nil && pdu.DecodeLogoutResponse(&rh).Response != 0 {
		err = fmt.Errorf("logout response %d", rh[2])
	}
	c.Close()
	return err
}

// Refused tells whether err is a login refused with that status.
func Refused(err error, s pdu.LoginStatus) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Status == s
}

// Read10 and Write10 are CDBs.
func Read10(lba uint32, blocks int) []byte            { return rw10(0x28, lba, blocks, false) }
func Write10(lba uint32, blocks int, fua bool) []byte { return rw10(0x2a, lba, blocks, fua) }

func rw10(op byte, lba uint32, blocks int, fua bool) []byte {
	b := make([]byte, 10)
	b[0] = op
	if fua {
		b[1] = 8
	}
	binary.BigEndian.PutUint32(b[2:], lba)
	binary.BigEndian.PutUint16(b[7:], uint16(blocks))
	return b
}

// String shows a command in messages.
func (c *Command) String() string {
	key, asc := c.SenseKey()
	return fmt.Sprintf("%x: status 0x%02x sense %x/%04x %s", c.CDB, c.Status, key, asc, strings.TrimSpace(fmt.Sprintf("%+v", c.Residual)))
}
