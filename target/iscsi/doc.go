// Package iscsi serves volumes over iSCSI (RFC 7143) on TCP, at error recovery
// level 0 with one connection for each session. Package pdu is its codec,
// package login its negotiation, package scsi the device server behind it.
//
// One goroutine per connection reads. It decodes PDUs in place, gathers the
// data of writes, and gives whole commands to the device server, whose
// completions append responses from whichever goroutine they run on. Under one
// lock a response gets its StatSN and its place in the output, so that the two
// orders are one. While a further PDU is already buffered the reader puts off
// sending and kicking, so that deep queues cost one system call for many
// commands; the last command of a burst is answered at once.
//
// # What bounds memory
//
// A command may be taken up while fewer than CommandsMax are under way: MaxCmdSN
// says so, and what lies beyond it is ignored. Its data, in and out, are
// reserved when the command arrives, at most scsi.TransferMax, from BytesFree of
// the connection and then from MemoryMax of the server; without room it ends
// with TASK SET FULL, or BUSY if it is alone. No reservation waits for another,
// so that no two writes can wait for each other's data. A client that does not
// take its responses is not read from any more, and cut after StallTimeout.
//
// # Error recovery
//
// At level 0 a session ends with its connection. What cannot be told apart from a
// lost byte ends it: a bad header digest, a gap of CmdSN, data out of order. A bad
// data digest ends the command alone, if it is one that awaits its data.
package iscsi
