package iscsi

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/gabion-storage/gabion/target/iscsi/login"
)

// sendTargets appends the answer to SendTargets (appendix C): every target that
// this initiator may log in to, or the one that it named; in a normal session only
// the one that it uses. Each comes with the
// address it was reached at and those of the other nodes.
func (c *conn) sendTargets(out []byte, value string) []byte {
	want := strings.ToLower(value)
	switch {
	case !c.who.Discovery && want != "" && want != c.who.Target, value == "" && c.who.Discovery:
		return login.AppendPair(out, "SendTargets", "Reject")
	case value == "All":
		want = ""
	case value == "":
		want = c.who.Target
	}
	here := c.srv.cfg.Targets.PortalGroup()
	for _, l := range c.srv.cfg.Targets.List() {
		if (want != "" && l.Name != want) || !allows(l.Initiators, c.who.Initiator) {
			continue
		}
		out = login.AppendPair(out, "TargetName", l.Name)
		if c.local != "" {
			out = login.AppendPair(out, "TargetAddress", address(c.local, here))
		}
		for _, p := range l.Portals {
			if p.Tag != here {
				out = login.AppendPair(out, "TargetAddress", address(p.Addr, p.Tag))
			}
		}
	}
	return out
}

// address is the form that section 13.8 gives a portal.
func address(hostPort string, tag uint16) string {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort + "," + strconv.Itoa(int(tag))
	}
	if i := strings.IndexByte(host, '%'); i >= 0 {
		host = host[:i] // a zone means nothing to others
	}
	return net.JoinHostPort(host, port) + "," + strconv.Itoa(int(tag))
}

// allows tells whether a list of initiators lets one in.
func allows(list []string, initiator string) bool {
	return len(list) == 0 || slices.Contains(list, initiator)
}
