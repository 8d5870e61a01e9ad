package scsi

import "encoding/binary"

// sense is a sense key and an additional sense code with its qualifier, as
// 0xKKAAQQ (SPC-4, tables 48 and F.2).
type sense uint32

const (
	noSense                  sense = 0x000000
	notReadyTransition       sense = 0x02040a // asymmetric access state transition
	notReadyStandby          sense = 0x02040b // target port in standby state
	notReadyUnavailable      sense = 0x02040c // target port in unavailable state
	mediumUnrecoveredRead    sense = 0x031100
	hardwareInternal         sense = 0x044400 // internal target failure
	hardwareStateFailed      sense = 0x04670a // set target port groups command failed
	illegalParameterLength   sense = 0x051a00 // parameter list length error
	illegalOpcode            sense = 0x052000
	illegalNoAccess          sense = 0x052002 // access denied, no access rights
	illegalRange             sense = 0x052100 // logical block address out of range
	illegalField             sense = 0x052400 // invalid field in CDB
	illegalLUN               sense = 0x052500 // logical unit not supported
	illegalParameter         sense = 0x052600 // invalid field in parameter list
	illegalRelease           sense = 0x052604 // invalid release of persistent reservation
	illegalInformationUnit   sense = 0x050e03 // invalid field in command information unit
	illegalSaving            sense = 0x053900 // saving parameters not supported
	illegalMessage           sense = 0x054900 // invalid message error
	illegalRegistrations     sense = 0x055504 // insufficient registration resources
	attentionPowerOn         sense = 0x062900
	attentionReset           sense = 0x062903 // bus device reset function occurred
	attentionNexusLoss       sense = 0x062907
	attentionMode            sense = 0x062a01
	attentionPreempted       sense = 0x062a03 // reservations preempted
	attentionReleased        sense = 0x062a04 // reservations released
	attentionRegistrations   sense = 0x062a05 // registrations preempted
	attentionAccess          sense = 0x062a06 // asymmetric access state changed
	attentionCapacity        sense = 0x062a09
	attentionCleared         sense = 0x062f00 // commands cleared by another initiator
	protectReadOnly          sense = 0x072700 // write protected
	protectSoftware          sense = 0x072702 // logical unit software write protected
	protectSpace             sense = 0x072707 // space allocation failed write protect
	abortedCommunication     sense = 0x0b0800 // logical unit communication failure
	abortedCommunicationTime sense = 0x0b0801 // logical unit communication time-out
	miscompare               sense = 0x0e1d00 // miscompare during verify operation
)

func (s sense) key() byte { return byte(s >> 16) }
func (s sense) asc() byte { return byte(s >> 8) }
func (s sense) asq() byte { return byte(s) }

// detail is what sense data may say besides.
type detail struct {
	information    uint64
	hasInformation bool
	// hasField: the byte and bit of the CDB, or of the parameter list, that the
	// device server does not like (SPC-4, 4.5.2.4.2).
	hasField bool
	inData   bool
	field    int // byte; bit 7 is the highest
	bit      int // -1: the whole byte or more
}

// encodeSense writes sense data to p, in descriptor or fixed format
// (SPC-4, 4.5.2 and 4.5.3), and returns its length. p has SenseMax bytes.
func encodeSense(p []byte, s sense, d detail, descriptors bool) int {
	if descriptors {
		return encodeDescriptors(p, s, d)
	}
	clear(p[:18])
	p[0], p[2], p[7], p[12], p[13] = 0x70, s.key(), 10, s.asc(), s.asq()
	// An information that is longer than four bytes does not fit, and is left out.
	if d.hasInformation && d.information <= 0xffffffff {
		p[0] |= 0x80
		binary.BigEndian.PutUint32(p[3:], uint32(d.information))
	}
	if d.hasField {
		d.putField(p[15:18])
	}
	return 18
}

func encodeDescriptors(p []byte, s sense, d detail) int {
	clear(p[:8])
	p[0], p[1], p[2], p[3] = 0x72, s.key(), s.asc(), s.asq()
	n := 8
	if d.hasInformation {
		clear(p[n : n+12])
		p[n+1], p[n+2] = 0x0a, 0x80
		binary.BigEndian.PutUint64(p[n+4:], d.information)
		n += 12
	}
	if d.hasField {
		clear(p[n : n+8])
		p[n], p[n+1] = 0x02, 0x06
		d.putField(p[n+4 : n+7])
		n += 8
	}
	p[7] = byte(n - 8)
	return n
}

// putField writes the three bytes that are specific to ILLEGAL REQUEST.
func (d detail) putField(p []byte) {
	p[0] = 0x80
	if !d.inData {
		p[0] |= 0x40
	}
	if d.bit >= 0 {
		p[0] |= 0x08 | byte(d.bit)
	}
	binary.BigEndian.PutUint16(p[1:], uint16(d.field))
}
