//go:build !mutate

package brick

// skipFsync is a deliberate defect that only -tags mutate can switch on.
func skipFsync() bool { return false }
