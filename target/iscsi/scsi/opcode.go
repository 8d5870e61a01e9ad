package scsi

// opcode is one row of the table of commands.
type opcode struct {
	name   string
	code   byte
	action int // service action, or noAction
	// usage is the CDB usage map of REPORT SUPPORTED OPERATION CODES: the bits that
	// the device server evaluates. Its length is the length of the CDB. For a
	// service action the map has its value (SPC-4, 6.35.3).
	usage []byte
	class class
	// vary overrides class for some contents of the CDB.
	vary func(cdb []byte) class
	// medium: needs the attached volume; on a standby port NOT READY.
	medium bool
	// quiet: carried out in spite of a pending unit attention, which stays.
	quiet bool
	// excludes: nothing else changes the blocks of the command while it runs.
	excludes bool
	// in and out are the lengths of data that the CDB asks for, in bytes, with
	// blocks of block bytes; nil is none. They are bounded by Transfer.
	in, out func(cdb []byte, block int) int64
	run     func(c *Command)
}

const noAction = -1

// class says which reservations forbid a command to others (SPC-4, table 66;
// SBC-3, table 13): a command is in conflict when its class and what its nexus is
// denied have a bit in common.
type class uint8

const (
	deniedReads   class = 1 << iota // exclusive access of another
	deniedChanges                   // exclusive access or write exclusive of another
	deniedLegacy                    // RESERVE(6) of another

	always  class = 0
	alone   class = deniedLegacy // allowed beside persistent reservations
	reads   class = deniedLegacy | deniedReads
	changes class = deniedLegacy | deniedChanges
)

// opcodes has all commands, in ascending order of code and service action.
// Commands that it has not, such as EXTENDED COPY, SANITIZE, WRITE ATOMIC and FORMAT
// UNIT, end with INVALID COMMAND OPERATION CODE.
var opcodes = []opcode{
	{name: "test unit ready", code: 0x00, action: noAction, class: alone, run: testUnitReady,
		usage: []byte{0x00, 0, 0, 0, 0, controlUsage}},
	{name: "request sense", code: 0x03, action: noAction, class: always, quiet: true, in: length(4, 1), run: requestSense,
		usage: []byte{0x03, 0x01, 0, 0, 0xff, controlUsage}},
	{name: "read(6)", code: 0x08, action: noAction, class: reads, medium: true, in: blocks6, run: read,
		usage: []byte{0x08, 0x1f, 0xff, 0xff, 0xff, controlUsage}},
	{name: "write(6)", code: 0x0a, action: noAction, class: changes, medium: true, out: blocks6, run: write,
		usage: []byte{0x0a, 0x1f, 0xff, 0xff, 0xff, controlUsage}},
	{name: "inquiry", code: 0x12, action: noAction, class: always, quiet: true, in: length(3, 2), run: inquiry,
		usage: []byte{0x12, 0x01, 0xff, 0xff, 0xff, controlUsage}},
	{name: "mode select(6)", code: 0x15, action: noAction, class: changes, out: length(4, 1), run: modeSelect,
		usage: []byte{0x15, 0x11, 0, 0, 0xff, controlUsage}},
	{name: "reserve(6)", code: 0x16, action: noAction, class: always, medium: true, run: reserve,
		usage: []byte{0x16, 0, 0, 0, 0, controlUsage}},
	{name: "release(6)", code: 0x17, action: noAction, class: always, run: release,
		usage: []byte{0x17, 0, 0, 0, 0, controlUsage}},
	{name: "mode sense(6)", code: 0x1a, action: noAction, class: reads, in: length(4, 1), run: modeSense,
		usage: []byte{0x1a, 0x08, 0xff, 0xff, 0xff, controlUsage}},
	{name: "start stop unit", code: 0x1b, action: noAction, class: alone, vary: startStopClass, medium: true, run: startStop,
		usage: []byte{0x1b, 0x01, 0, 0, 0x05, controlUsage}},
	{name: "send diagnostic", code: 0x1d, action: noAction, class: changes, out: length(3, 2), run: sendDiagnostic,
		usage: []byte{0x1d, 0x04, 0, 0xff, 0xff, controlUsage}},
	{name: "prevent allow medium removal", code: 0x1e, action: noAction, class: always, vary: preventClass, run: preventAllow,
		usage: []byte{0x1e, 0, 0, 0, 0x03, controlUsage}},
	{name: "read capacity(10)", code: 0x25, action: noAction, class: alone, in: fixed(8), run: readCapacity10,
		usage: []byte{0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, controlUsage}},
	{name: "read(10)", code: 0x28, action: noAction, class: reads, medium: true, in: blocksAt(7, 2), run: read,
		usage: []byte{0x28, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "write(10)", code: 0x2a, action: noAction, class: changes, medium: true, out: blocksAt(7, 2), run: write,
		usage: []byte{0x2a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "write and verify(10)", code: 0x2e, action: noAction, class: changes, medium: true, excludes: true, out: blocksAt(7, 2), run: writeAndVerify,
		usage: []byte{0x2e, 0xf6, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "verify(10)", code: 0x2f, action: noAction, class: reads, medium: true, out: verifyBlocks(7, 2), run: verify,
		usage: []byte{0x2f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "pre-fetch(10)", code: 0x34, action: noAction, class: reads, medium: true, run: prefetch,
		usage: []byte{0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "synchronize cache(10)", code: 0x35, action: noAction, class: changes, medium: true, run: synchronizeCache,
		usage: []byte{0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "read defect data(10)", code: 0x37, action: noAction, class: reads, in: length(7, 2), run: readDefectData,
		usage: []byte{0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, controlUsage}},
	{name: "write same(10)", code: 0x41, action: noAction, class: changes, medium: true, out: sameBlock, run: writeSame,
		usage: []byte{0x41, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "unmap", code: 0x42, action: noAction, class: changes, medium: true, out: length(7, 2), run: unmap,
		usage: []byte{0x42, 0x01, 0, 0, 0, 0, 0x3f, 0xff, 0xff, controlUsage}},
	{name: "mode select(10)", code: 0x55, action: noAction, class: changes, out: length(7, 2), run: modeSelect,
		usage: []byte{0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, controlUsage}},
	{name: "reserve(10)", code: 0x56, action: noAction, class: always, medium: true, run: reserve,
		usage: []byte{0x56, 0x12, 0, 0, 0, 0, 0, 0xff, 0xff, controlUsage}},
	{name: "release(10)", code: 0x57, action: noAction, class: always, run: release,
		usage: []byte{0x57, 0x12, 0, 0, 0, 0, 0, 0xff, 0xff, controlUsage}},
	{name: "mode sense(10)", code: 0x5a, action: noAction, class: reads, in: length(7, 2), run: modeSense,
		usage: []byte{0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, controlUsage}},
	reserveIn(0x00, "persistent reserve in: read keys", readKeys),
	reserveIn(0x01, "persistent reserve in: read reservation", readReservation),
	reserveIn(0x02, "persistent reserve in: report capabilities", reportCapabilities),
	reserveIn(0x03, "persistent reserve in: read full status", readFullStatus),
	reserveOut(0x00, "persistent reserve out: register", 0x00),
	reserveOut(0x01, "persistent reserve out: reserve", 0xff),
	reserveOut(0x02, "persistent reserve out: release", 0xff),
	reserveOut(0x03, "persistent reserve out: clear", 0x00),
	reserveOut(0x04, "persistent reserve out: preempt", 0xff),
	reserveOut(0x05, "persistent reserve out: preempt and abort", 0xff),
	reserveOut(0x06, "persistent reserve out: register and ignore existing key", 0x00),
	reserveOut(0x07, "persistent reserve out: register and move", 0x00),
	{name: "read(16)", code: 0x88, action: noAction, class: reads, medium: true, in: blocksAt(10, 4), run: read,
		usage: usage16(0x88, 0xf8)},
	{name: "compare and write", code: 0x89, action: noAction, class: changes, medium: true, excludes: true, out: compareBlocks, run: compareAndWrite,
		usage: []byte{0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x3f, controlUsage}},
	{name: "write(16)", code: 0x8a, action: noAction, class: changes, medium: true, out: blocksAt(10, 4), run: write,
		usage: usage16(0x8a, 0xf8)},
	{name: "orwrite(16)", code: 0x8b, action: noAction, class: changes, medium: true, excludes: true, out: blocksAt(10, 4), run: orWrite,
		usage: usage16(0x8b, 0xf8)},
	{name: "write and verify(16)", code: 0x8e, action: noAction, class: changes, medium: true, excludes: true, out: blocksAt(10, 4), run: writeAndVerify,
		usage: usage16(0x8e, 0xf6)},
	{name: "verify(16)", code: 0x8f, action: noAction, class: reads, medium: true, out: verifyBlocks(10, 4), run: verify,
		usage: usage16(0x8f, 0xf6)},
	{name: "pre-fetch(16)", code: 0x90, action: noAction, class: reads, medium: true, run: prefetch,
		usage: usage16(0x90, 0x02)},
	{name: "synchronize cache(16)", code: 0x91, action: noAction, class: changes, medium: true, run: synchronizeCache,
		usage: usage16(0x91, 0x02)},
	{name: "write same(16)", code: 0x93, action: noAction, class: changes, medium: true, out: sameBlock, run: writeSame,
		usage: usage16(0x93, 0xf9)},
	{name: "read capacity(16)", code: 0x9e, action: 0x10, class: alone, in: length(10, 4), run: readCapacity16,
		usage: []byte{0x9e, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, controlUsage}},
	{name: "get lba status", code: 0x9e, action: 0x12, class: reads, medium: true, in: length(10, 4), run: getLBAStatus,
		usage: []byte{0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "report luns", code: 0xa0, action: noAction, class: always, quiet: true, in: length(6, 4), run: reportLUNs,
		usage: []byte{0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "report target port groups", code: 0xa3, action: 0x0a, class: always, in: length(6, 4), run: reportTargetPortGroups,
		usage: []byte{0xa3, 0xea, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "report supported operation codes", code: 0xa3, action: 0x0c, class: reads, in: length(6, 4), run: reportOpcodes,
		usage: []byte{0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "report supported task management functions", code: 0xa3, action: 0x0d, class: reads, in: length(6, 4), run: reportFunctions,
		usage: []byte{0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "set target port groups", code: 0xa4, action: 0x0a, class: changes, out: length(6, 4), run: setTargetPortGroups,
		usage: []byte{0xa4, 0x0a, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
	{name: "read(12)", code: 0xa8, action: noAction, class: reads, medium: true, in: blocksAt(6, 4), run: read,
		usage: usage12(0xa8, 0xf8)},
	{name: "write(12)", code: 0xaa, action: noAction, class: changes, medium: true, out: blocksAt(6, 4), run: write,
		usage: usage12(0xaa, 0xf8)},
	{name: "write and verify(12)", code: 0xae, action: noAction, class: changes, medium: true, excludes: true, out: blocksAt(6, 4), run: writeAndVerify,
		usage: usage12(0xae, 0xf6)},
	{name: "verify(12)", code: 0xaf, action: noAction, class: reads, medium: true, out: verifyBlocks(6, 4), run: verify,
		usage: usage12(0xaf, 0xf6)},
	{name: "read defect data(12)", code: 0xb7, action: noAction, class: reads, in: length(6, 4), run: readDefectData,
		usage: []byte{0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, controlUsage}},
}

// controlUsage: of the CONTROL byte, NACA is evaluated (and refused).
const controlUsage = 0x04

func usage12(code, flags byte) []byte {
	return []byte{code, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, controlUsage}
}

func usage16(code, flags byte) []byte {
	return []byte{code, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, controlUsage}
}

func reserveIn(action int, name string, run func(*Command)) opcode {
	return opcode{name: name, code: 0x5e, action: action, class: alone, in: length(7, 2), run: run,
		usage: []byte{0x5e, byte(action), 0, 0, 0, 0, 0, 0xff, 0xff, controlUsage}}
}

// reserveOut is a row of PERSISTENT RESERVE OUT. What a reservation of another
// forbids of it depends on the registration; the handler knows.
func reserveOut(action int, name string, scopeAndType byte) opcode {
	return opcode{name: name, code: 0x5f, action: action, class: alone, out: length(5, 4), run: reserveOutRun,
		usage: []byte{0x5f, byte(action), scopeAndType, 0, 0, 0xff, 0xff, 0xff, 0xff, controlUsage}}
}

// byCode and byAction find the row of a CDB.
var (
	byCode   [256]*opcode
	byAction [256]*[32]*opcode
)

func init() {
	for i := range opcodes {
		o := &opcodes[i]
		if o.action == noAction {
			byCode[o.code] = o
			continue
		}
		if byAction[o.code] == nil {
			byAction[o.code] = new([32]*opcode)
		}
		byAction[o.code][o.action] = o
	}
}

// lookup finds the row of a CDB, or nil and the reason.
func lookup(cdb []byte) (*opcode, sense, detail) {
	if len(cdb) == 0 {
		return nil, illegalOpcode, detail{}
	}
	o := byCode[cdb[0]]
	if actions := byAction[cdb[0]]; actions != nil {
		if len(cdb) > 1 {
			o = actions[cdb[1]&0x1f]
		}
		if o == nil {
			return nil, illegalField, detail{hasField: true, field: 1, bit: 4}
		}
	}
	if o == nil {
		return nil, illegalOpcode, detail{hasField: true, bit: -1}
	}
	if len(cdb) < len(o.usage) {
		return nil, illegalField, detail{hasField: true, field: len(cdb), bit: -1}
	}
	if cdb[len(o.usage)-1]&controlUsage != 0 { // NACA
		return nil, illegalField, detail{hasField: true, field: len(o.usage) - 1, bit: 2}
	}
	return o, 0, detail{}
}

// Name is the name of the command that a CDB holds, in lower case, as in
// "read(10)", or "unknown": a bounded set, for metrics.
func Name(cdb []byte) string {
	if o, _, _ := lookup(cdb); o != nil {
		return o.name
	}
	return "unknown"
}

// number reads n bytes of a CDB, big-endian.
func number(cdb []byte, at, n int) uint64 {
	var v uint64
	for _, b := range cdb[at : at+n] {
		v = v<<8 | uint64(b)
	}
	return v
}

// length is a data length in bytes that stands in the CDB.
func length(at, n int) func([]byte, int) int64 {
	return func(cdb []byte, _ int) int64 { return int64(number(cdb, at, n)) }
}

func fixed(n int64) func([]byte, int) int64 {
	return func([]byte, int) int64 { return n }
}

// blocksAt is a transfer length in blocks that stands in the CDB.
func blocksAt(at, n int) func([]byte, int) int64 {
	return func(cdb []byte, block int) int64 { return int64(number(cdb, at, n)) * int64(block) }
}

// blocks6 is that of READ(6) and WRITE(6): 0 means 256.
func blocks6(cdb []byte, block int) int64 {
	return (int64(cdb[4]-1) + 1) * int64(block)
}

// verifyBlocks is what VERIFY compares with: nothing, all, or one block.
func verifyBlocks(at, n int) func([]byte, int) int64 {
	return func(cdb []byte, block int) int64 {
		all := int64(number(cdb, at, n)) * int64(block)
		switch cdb[1] >> 1 & 3 {
		case 1:
			return all
		case 3:
			return min(all, int64(block))
		}
		return 0
	}
}

// compareBlocks: one half to compare with, one to write.
func compareBlocks(cdb []byte, block int) int64 { return 2 * int64(cdb[13]) * int64(block) }

// sameBlock: WRITE SAME brings one block, or none with NDOB.
func sameBlock(cdb []byte, block int) int64 {
	if cdb[0] == 0x93 && cdb[1]&1 != 0 {
		return 0
	}
	return int64(block)
}
