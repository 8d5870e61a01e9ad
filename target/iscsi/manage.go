package iscsi

import (
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// lunOK tells whether a LUN field names logical unit 0, in peripheral or in flat
// addressing (SAM-5, 4.7.7).
func lunOK(lun uint64) bool { return lun == 0 || lun == 0x4000<<48 }

// manage carries out a task management function (section 11.5). The response
// comes when nothing of the commands it is about can take effect any more.
func (c *conn) manage(p pdu.TaskMgmt) error {
	c.Lock()
	if c.managing >= ImmediateMax {
		c.appendManaged(p.ITT, pdu.FunctionRejected)
		c.Unlock()
		return nil
	}
	c.managing++
	c.Unlock()
	answer := func(response byte) { c.managed(p.ITT, response) }
	wholeUnit := p.Function == pdu.AbortTaskSet || p.Function == pdu.ClearTaskSet || p.Function == pdu.LUNReset
	if wholeUnit && !lunOK(p.LUN) {
		answer(pdu.FunctionNoLUN)
		return nil
	}
	all := func(*task) bool { return true }
	switch p.Function {
	case pdu.AbortTask:
		c.abortTask(&p, answer)
	case pdu.AbortTaskSet:
		c.Lock()
		c.dropGathering(all)
		c.Unlock()
		c.nexus.AbortTaskSet(func() { answer(pdu.FunctionComplete) })
	case pdu.ClearTaskSet:
		c.srv.sessions.dropGathering(c.who.Target)
		c.nexus.ClearTaskSet(func() { answer(pdu.FunctionComplete) })
	case pdu.LUNReset, pdu.TargetWarmReset:
		c.srv.sessions.dropGathering(c.who.Target)
		c.unit.LU.Reset(func() { answer(pdu.FunctionComplete) })
	case pdu.TargetColdReset:
		c.srv.sessions.dropGathering(c.who.Target)
		c.unit.LU.Reset(func() {
			answer(pdu.FunctionComplete)
			c.srv.sessions.coldReset(c)
		})
	case pdu.TaskReassign:
		answer(pdu.FunctionNoReassign)
	default:
		answer(pdu.FunctionNotSupported)
	}
	c.dirty = true // an abort may wait for what is held back
	return nil
}

func (c *conn) abortTask(p *pdu.TaskMgmt, answer func(byte)) {
	c.Lock()
	t := c.tasks[p.RefITT]
	if t == nil || t.cmd.LUN != p.LUN {
		c.Unlock()
		answer(pdu.FunctionNoTask)
		return
	}
	if t.gathering {
		c.dropGathering(func(x *task) bool { return x == t })
		c.Unlock()
		answer(pdu.FunctionComplete)
		return
	}
	c.Unlock()
	c.nexus.AbortTask(uint64(p.RefITT), func(found bool) {
		if found {
			answer(pdu.FunctionComplete)
		} else {
			answer(pdu.FunctionNoTask)
		}
	})
}

// managed ends a task management function.
func (c *conn) managed(itt uint32, response byte) {
	c.Lock()
	c.managing--
	c.appendManaged(itt, response)
	c.UnlockAndSend(c.executing == 0)
}

// appendManaged appends the response to a task management function, under mu.
func (c *conn) appendManaged(itt uint32, response byte) {
	p := pdu.TaskMgmtResponse{Response: response, ITT: itt, SN: c.stamp()}
	var h pdu.Header
	p.Put(&h)
	c.appendPDU(&h, nil)
}

// nopOut answers a NOP-Out, or takes it for the answer to a ping.
func (c *conn) nopOut(p pdu.NopOut, data []byte) error {
	c.Lock()
	defer c.Unlock()
	if p.ITT == pdu.NoTag {
		if p.TTT == c.ping {
			c.ping = 0
		}
		return nil
	}
	q := pdu.NopIn{LUN: p.LUN, ITT: p.ITT, TTT: pdu.NoTag, SN: c.stamp()}
	var h pdu.Header
	q.Put(&h)
	c.appendPDU(&h, data[:min(len(data), int(c.params.SendMax))])
	return nil
}

// pingOrWait asks a silent client for a sign of life, or ends the connection of
// one that gave none, and says when to look again.
func (c *conn) pingOrWait() time.Duration {
	silent := time.Since(time.Unix(0, c.heard.Load()))
	c.Lock()
	switch {
	case silent < c.srv.cfg.PingInterval:
		c.ping = 0
		c.Unlock()
		return c.srv.cfg.PingInterval - silent
	case c.ping != 0:
		c.Unlock()
		c.Kill(fault.Newf(fault.Timeout, "iscsi.ping", c.peer, "the initiator gave no sign of life for %v", silent.Round(time.Second)))
		return c.srv.cfg.PingInterval
	}
	c.ping = c.newTTT()
	q := pdu.NopIn{ITT: pdu.NoTag, TTT: c.ping, SN: c.unstamped()}
	var h pdu.Header
	q.Put(&h)
	c.appendPDU(&h, nil)
	c.UnlockAndSend(c.executing == 0)
	return c.srv.cfg.PingTimeout
}

// logout answers a Logout Request when everything before it is over.
func (c *conn) logout(p pdu.LogoutRequest) error {
	response := byte(pdu.LoggedOut)
	switch {
	case p.Reason == pdu.LogoutSession:
	case p.Reason == pdu.LogoutConnection && p.CID == c.who.CID:
	case p.Reason == pdu.LogoutConnection:
		response = pdu.LogoutNoCID
	default:
		response = pdu.LogoutNoRecovery
	}
	if response == pdu.LoggedOut {
		c.Lock()
		c.dropGathering(func(*task) bool { return true })
		c.Unlock()
		c.Await(c.busy)
	}
	c.Lock()
	q := pdu.LogoutResponse{Response: response, ITT: p.ITT, SN: c.stamp(), Time2Wait: uint16(c.params.Time2Wait)}
	var h pdu.Header
	q.Put(&h)
	c.appendPDU(&h, nil)
	c.Unlock()
	if response == pdu.LoggedOut {
		return errLogout
	}
	return nil
}

// askLogout tells the client that the server is going away.
func (c *conn) askLogout(timeout time.Duration) {
	c.Lock()
	p := pdu.Async{SN: c.stamp(), Event: pdu.EventLogout, Parameter3: uint16(max(1, timeout/time.Second))}
	var h pdu.Header
	p.Put(&h)
	c.appendPDU(&h, nil)
	c.UnlockAndSend(c.executing == 0)
}

// textState is a text negotiation of the full feature phase.
type textState struct {
	gathered []byte // of requests that continue each other
	reply    []byte // what is not sent yet
	ttt      uint32 // its tag; 0: none
}

// textMax bounds the data of one Text Response, in bytes.
const textMax = 64 << 10

// textRequest answers a Text Request: SendTargets, and what may be declared in the
// full feature phase.
func (c *conn) textRequest(h *pdu.Header, p pdu.TextRequest, data []byte) error {
	s := &c.text
	if p.TTT == pdu.NoTag {
		*s = textState{}
	} else if p.TTT != s.ttt {
		c.Lock()
		c.appendReject(h, pdu.RejectInvalidField)
		c.Unlock()
		return nil
	}
	if len(s.gathered)+len(data) > login.TextMax {
		return fault.Newf(fault.Invalid, "iscsi.text", c.peer, "more than %d bytes of text", login.TextMax)
	}
	s.gathered = append(s.gathered, data...)
	if !p.Continue && len(s.gathered) > 0 {
		pairs, err := login.ParseText(s.gathered)
		s.gathered = nil
		if err != nil {
			return err
		}
		s.reply = append(s.reply, c.answerText(pairs)...)
	}
	k := min(len(s.reply), int(c.params.SendMax), textMax)
	c.Lock()
	defer c.Unlock()
	q := pdu.TextResponse{ITT: p.ITT, TTT: pdu.NoTag, LUN: p.LUN, Continue: k < len(s.reply)}
	q.Final = p.Final && !q.Continue && !p.Continue
	if !q.Final {
		if s.ttt == 0 {
			s.ttt = c.newTTT()
		}
		q.TTT = s.ttt
	}
	q.SN = c.stamp()
	var out pdu.Header
	q.Put(&out)
	c.appendPDU(&out, s.reply[:k])
	s.reply = s.reply[k:]
	if q.Final {
		*s = textState{}
	}
	return nil
}

func (c *conn) answerText(pairs []login.Pair) []byte {
	var out []byte
	var rest []login.Pair
	for _, kv := range pairs {
		if kv.Key == "SendTargets" {
			out = c.sendTargets(out, kv.Value)
		} else {
			rest = append(rest, kv)
		}
	}
	for _, kv := range login.Full(&c.params, rest, c.who.Discovery) {
		out = login.AppendPair(out, kv.Key, kv.Value)
	}
	return out
}
