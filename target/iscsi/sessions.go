package iscsi

import (
	"sync"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/mutant"
	"github.com/gabion-storage/gabion/target/edge"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
)

// sessions are those of a server, by the names that the protocol has for them.
type sessions struct {
	mu       sync.Mutex
	byTSIH   map[uint16]*conn
	byPort   map[port]*conn // normal ones
	lastTSIH uint16
}

// port names the two ends of a session, which there can be one of (section 4.4.1).
type port struct {
	initiator, target string
	isid              pdu.ISID
}

func (c *conn) port() port { return port{c.who.Initiator, c.who.Target, c.who.ISID} }

// enrol gives a session its handle and makes it known.
func (s *sessions) enrol(c *conn) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		s.lastTSIH++
		if s.lastTSIH != 0 && s.byTSIH[s.lastTSIH] == nil {
			break
		}
	}
	s.byTSIH[s.lastTSIH] = c
	return s.lastTSIH
}

// leave forgets a session that is over, and ends its use of the unit.
func (s *sessions) leave(c *conn) {
	s.mu.Lock()
	if c.tsih != 0 {
		delete(s.byTSIH, c.tsih)
	}
	if s.byPort[c.port()] == c {
		delete(s.byPort, c.port())
	}
	s.mu.Unlock()
	if c.unit.Close != nil {
		c.unit.Close()
	}
}

// replace makes c the session of its port, and waits until the one it replaces,
// if there is one, is over, or for limit: nothing of that one may take effect behind the login.
func (s *sessions) replace(c *conn, limit time.Duration) bool {
	s.mu.Lock()
	old := s.byPort[c.port()]
	s.byPort[c.port()] = c
	s.mu.Unlock()
	if old == nil {
		return true
	}
	if mutant.On("reinstate-at-once") {
		go old.Kill(edge.ErrDrain)
		return true
	}
	old.Kill(fault.Newf(fault.Fenced, "iscsi.session", c.who.Initiator, "the initiator logged in again"))
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-old.Ended():
		return true
	case <-t.C:
		return false
	}
}

// find returns the session that a login claims to belong to, or nil.
func (s *sessions) find(w login.Who) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.byTSIH[w.TSIH]
	if c == nil || c.who.Initiator != w.Initiator || c.who.Target != w.Target || c.who.ISID != w.ISID {
		return nil
	}
	return c
}

// of lists the sessions of a target.
func (s *sessions) of(target string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*conn
	for _, c := range s.byTSIH {
		if c.who.Target == target && !c.who.Discovery {
			out = append(out, c)
		}
	}
	return out
}

// dropGathering forgets the commands of a target that await data.
func (s *sessions) dropGathering(target string) {
	for _, c := range s.of(target) {
		c.Lock()
		c.dropGathering(func(*task) bool { return true })
		c.Unlock()
	}
}

// coldReset ends every session of the target of by: that one when it has its
// response (section 11.5.1).
func (s *sessions) coldReset(by *conn) {
	for _, c := range s.of(by.who.Target) {
		if c != by {
			c.Kill(fault.Newf(fault.Fenced, "iscsi.session", c.peer, "the target was reset"))
		}
	}
	by.Lock()
	by.leaving = true
	by.Unlock()
	by.nc.SetReadDeadline(edge.Past)
}
