//go:build !mutate

package brick

// skipFsync is a deliberate defect that only -tags mutate can switch on.
func skipFsync() bool { return false }

// So are these; mutate_on.go says what they break.
func acceptWrongSum() bool    { return false }
func acceptWrongCRC() bool    { return false }
func indexBeforeData() bool   { return false }
func holeBeforeIndex() bool   { return false }
func punchWrongRange() bool   { return false }
func tornMiddle() bool        { return false }
func putUnverified() bool     { return false }
func scrubTrustsCache() bool  { return false }
func scrubSkipsJournal() bool { return false }
