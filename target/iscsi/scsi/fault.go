package scsi

import "github.com/gabion-storage/gabion/internal/fault"

// faultSense is the one table from kinds of faults to sense.
//
// What an initiator does with each is the reason for it: NOT READY with a
// standby port makes a multipath driver take another path; ABORTED COMMAND is
// tried again; MEDIUM ERROR, DATA PROTECT and HARDWARE ERROR reach the application.
var faultSense = map[fault.Kind]sense{
	fault.Internal:      hardwareInternal,
	fault.Invalid:       illegalField, // the device refuses what the checks here let pass
	fault.NotFound:      illegalLUN,   // the volume was deleted
	fault.Exists:        hardwareInternal,
	fault.Conflict:      abortedCommunication,
	fault.Busy:          notReadyStandby,      // another node has the volume
	fault.Fenced:        notReadyStandby,      // another node took it
	fault.Unavailable:   abortedCommunication, // no majority answered in the volume's stated time
	fault.Indeterminate: abortedCommunication, // a block written twice is the same block
	fault.Corrupt:       mediumUnrecoveredRead,
	fault.NoSpace:       protectSpace,
	fault.Denied:        illegalNoAccess,
	fault.Timeout:       abortedCommunicationTime,
	fault.ReadOnly:      protectReadOnly,
}

// senseOf is the sense for an error that is not nil.
func senseOf(err error) sense { return faultSense[fault.KindOf(err)] }
