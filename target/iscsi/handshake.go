package iscsi

import (
	"crypto/rand"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
)

// negotiate takes a new connection through its login. On success the session is
// open, its Login Response sent, and the deadline of the connection lifted.
func (c *conn) negotiate(ec *edge.Conn[*conn]) error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.cfg.LoginTimeout)); err != nil {
		return fault.New(fault.Unavailable, "iscsi.login", c.peer, err)
	}
	m := login.New(login.Config{Offer: c.srv.cfg.Offer, Admit: c.admit, Random: random})
	for {
		if err := c.fill(pdu.HeaderSize); err != nil {
			return err
		}
		h := *(*pdu.Header)(c.Input())
		if h.Opcode() != pdu.OpLogin || h.AHSLength() > 0 || h.DataLength() > login.TextMax {
			return fault.Newf(fault.Invalid, "iscsi.login", c.peer, "a %v of %d bytes where a Login Request is due", h.Opcode(), h.DataLength())
		}
		data, err := c.segment(&h)
		if err != nil {
			return err
		}
		resp, out, state := m.Step(pdu.DecodeLoginRequest(&h), data)
		c.expCmdSN = h.CmdSN()
		if state == login.Ready {
			c.who, c.params = m.Who, m.Params
			c.establish(ec, &resp)
			if resp.Status != pdu.LoginSuccess {
				state = login.Failed
			}
		}
		resp.SN = c.stamp()
		if err := c.sendLogin(&resp, out); err != nil {
			return err
		}
		switch state {
		case login.Ready:
			c.digests = pdu.Digests{Header: c.params.HeaderDigest, Data: c.params.DataDigest}
			c.recvMax = int(c.params.RecvMax)
			c.nc.SetDeadline(time.Time{})
			c.Widen(edge.StreamBytes) // who only logs in gets less
			return nil
		case login.Failed:
			if m.Err != nil {
				return m.Err
			}
			return fault.Newf(fault.Unavailable, "iscsi.login", m.Who.Initiator, "status 0x%04x", uint16(resp.Status))
		}
	}
}

func random(b []byte) {
	_, _ = rand.Read(b) // it never fails
}

// sendLogin sends a Login Response, which may have to wait for the client.
func (c *conn) sendLogin(p *pdu.LoginResponse, data []byte) error {
	var h pdu.Header
	p.Put(&h)
	h.SetDataLength(len(data))
	b := make([]byte, pdu.Size(&h, pdu.Digests{}))
	copy(b, h[:])
	copy(b[pdu.HeaderSize:], data)
	// The end of an older session may have taken longer than a login may.
	c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.LoginTimeout))
	_, err := c.nc.Write(b)
	return err
}

// admit decides about an initiator that has said who it is.
func (c *conn) admit(w login.Who) login.Grant {
	targets := c.srv.cfg.Targets
	g := login.Grant{PortalGroup: targets.PortalGroup()}
	if w.Discovery {
		g.Auth = targets.Discovery()
		if w.TSIH != 0 {
			g.Status = pdu.LoginNoSession
		}
		return g
	}
	t, err := targets.Find(w.Target)
	switch {
	case err != nil && fault.Is(err, fault.NotFound):
		g.Status = pdu.LoginNotFound
	case err != nil:
		g.Status = pdu.LoginServiceUnavailable
	case !allows(t.Initiators, w.Initiator):
		g.Status = pdu.LoginNotAuthorized
	case w.TSIH != 0 && c.srv.sessions.find(w) != nil:
		// A second connection, or the replacement of one, which both are beyond
		// level 0 with one connection.
		g.Status = pdu.LoginTooManyConnections
	case w.TSIH != 0:
		g.Status = pdu.LoginNoSession
	}
	g.Auth, g.Alias = t.Auth, t.Alias
	return g
}

// establish opens the session that a login ends in: an older one of the same
// initiator port is ended first (section 6.3.5). It sets the status of resp.
func (c *conn) establish(ec *edge.Conn[*conn], resp *pdu.LoginResponse) {
	if !ec.Choose() {
		resp.Status = pdu.LoginOutOfResources
		return
	}
	if !c.who.Discovery {
		if resp.Status = c.open(); resp.Status != pdu.LoginSuccess {
			return
		}
	}
	c.tsih = c.srv.sessions.enrol(c)
	resp.TSIH = c.tsih
}

func (c *conn) open() pdu.LoginStatus {
	if !c.srv.sessions.replace(c, c.srv.cfg.ReinstateMax) {
		c.log.Warn("the session that a new one replaces does not end", "initiator", c.who.Initiator, "target", c.who.Target)
		return pdu.LoginTargetError
	}
	u, err := c.srv.cfg.Targets.Open(c.Context(), c.who.Target, c.who.Initiator, c.peer)
	if err != nil {
		c.log.Info("a target cannot be opened", "target", c.who.Target, "error", err)
		if fault.Is(err, fault.NotFound) {
			return pdu.LoginNotFound
		}
		return pdu.LoginServiceUnavailable
	}
	c.unit = u
	c.nexus = u.LU.Nexus(scsi.NexusID{Initiator: c.who.Initiator, ISID: c.who.ISID})
	return pdu.LoginSuccess
}
