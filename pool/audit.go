package pool

import (
	"github.com/gabion-storage/gabion/internal/ident"
)

// AuditMax is how many records are kept, the newest ones.
const AuditMax = 64

// auditText bounds each text of a record, in bytes.
const auditText = 512

// Audit is the record of something that an operator forced: that promises may have
// been broken, by whom and when.
type Audit struct {
	When    int64        `json:"when"` // unix seconds
	Node    ident.NodeID `json:"node"` // that carried it out
	What    string       `json:"what"`
	Subject string       `json:"subject"`
	Detail  string       `json:"detail"`
	// Above: the state's version is raised above this one. Nodes may know newer states than
	// a forced recovery has left, and must take over the one that counts.
	Above uint64 `json:"above,omitempty"`
}

func putAudit(s *State, a Audit) error {
	const op = "pool.audit"
	for _, t := range []string{a.What, a.Subject, a.Detail} {
		if len(t) > auditText || !printable(t) {
			return invalid(op, shown(a.Subject), "the texts of a record are printable and at most %d bytes long", auditText)
		}
	}
	if a.Above > s.Version+1<<32 {
		return invalid(op, a.Subject, "version %d is out of sight", a.Above)
	}
	s.Version = max(s.Version, a.Above)
	a.Above = 0
	s.Audit = append(s.Audit[max(0, len(s.Audit)-AuditMax+1):len(s.Audit):len(s.Audit)], a)
	return nil
}
