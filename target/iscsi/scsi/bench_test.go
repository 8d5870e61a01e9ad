package scsi

import "testing"

// BenchmarkExecute is what the device server adds to an operation of a device in
// memory: table, checks, task set, completion.
func BenchmarkExecute(b *testing.B) {
	for _, x := range []struct {
		name string
		cdb  string
		n    int
	}{
		{"read4k", "28 00 00000000 00 0008 00", 4096},
		{"write4k", "2a 00 00000000 00 0008 00", 4096},
		{"testUnitReady", "00 00 00 00 00 00", 0},
	} {
		b.Run(x.name, func(b *testing.B) {
			r := newRig(b, 1<<20, 512)
			r.do("28 00 00000000 00 0001 00", nil) // attaches
			p := make([]byte, x.n)
			c := &Command{CDB: bytesOf(b, x.cdb), In: p, Out: p, Done: func(*Command) {}}
			b.ReportAllocs()
			for b.Loop() {
				r.lu.Transfer(c.CDB)
				r.n.Execute(c)
				r.lu.Kick()
			}
		})
	}
}
