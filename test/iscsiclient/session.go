package iscsiclient

import (
	"encoding/binary"
	"fmt"

	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

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
