// Package scsi is the device server of a volume: what SAM-5, SPC-4 and SBC-3
// ask of a direct access block device, whatever the transport that carries the
// commands. It knows target.Device and nothing of iSCSI but the form of its
// names.
//
// A transport makes one LU for each volume it serves, a Nexus for each session,
// and passes each command in a Command, with all its data-out gathered:
//
//	in, out := lu.Transfer(cdb)        // bytes, to get buffers before any data arrive
//	c.CDB, c.Out, c.In = cdb, ..., ... // Out: what came, at most out; In: room for in
//	nexus.Execute(c)                   // c.Done(c) runs once, now or later
//	...
//	lu.Kick()                          // no further command at hand
//
// Residuals follow from c.N (what data-in there is) and out (what data-out the
// command asked for): the device server never sees the expected length of the
// initiator, but for Expected. A WRITE whose data-out is shorter than it asks for
// writes the whole blocks that there are; anything else with too little, or with a
// part of a block, writes nothing and ends with INVALID FIELD IN COMMAND
// INFORMATION UNIT.
//
// # Who does what
//
// opcode.go has the table of commands: name, usage map, data lengths, what a
// reservation and a standby port do to it, handler. Execute looks the command up
// and checks, in this order: LUN, unit attentions of resets, reservations, other
// unit attentions, opcode, then what the handler checks. taskset.go orders commands; reservation.go is the
// pure state of persistent reservations; fault.go the one table from kinds of
// faults to sense.
//
// # Unit attentions
//
//	29/00 power on        first nexus of an initiator port
//	29/03 reset           LOGICAL UNIT RESET or a target reset, to all
//	29/07 nexus loss      session reinstated
//	2A/01 mode changed    MODE SELECT by another nexus
//	2A/03 2A/04 2A/05     reservations preempted, released, registrations preempted
//	2A/06 access changed  the state of a port group changed
//	2A/09 capacity        the volume grew
//	2F/00 cleared         CLEAR TASK SET by another nexus
package scsi
