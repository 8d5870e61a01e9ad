package nbd_test

import (
	"io"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
)

// BenchmarkBursts is what a request of 4 KiB costs the server and a client that
// only copies bytes, in bursts of the depth that the name says. cpu-ns/op is
// CPU time of the process: unlike ns/op it says something on a busy machine.
func BenchmarkBursts(b *testing.B) {
	for _, x := range []struct {
		name  string
		cmd   proto.Command
		depth int
		delay time.Duration
	}{
		{"read1", proto.CmdRead, 1, 0},
		{"read32", proto.CmdRead, 32, 0},
		{"write1", proto.CmdWrite, 1, 0},
		{"write32", proto.CmdWrite, 32, 0},
		{"late1", proto.CmdWrite, 1, 50 * time.Microsecond},
		{"late32", proto.CmdWrite, 32, 50 * time.Microsecond},
	} {
		b.Run(x.name, func(b *testing.B) {
			mem := targettest.NewMemory(1<<20, 4096)
			mem.Delay = x.delay
			var e targettest.Exports
			e.Add("v", mem)
			_, addr := start(b, &e, nil)
			w := dial(b, "tcp", addr).enter("v")
			w.SetDeadline(time.Time{})
			var out []byte
			back := x.depth * proto.SimpleReplySize
			for i := range x.depth {
				out = proto.Simple.AppendRequest(out, proto.Request{Cmd: x.cmd, Offset: uint64(i) * 4096, Length: 4096})
				if x.cmd == proto.CmdWrite {
					out = append(out, make([]byte, 4096)...)
				} else {
					back += 4096
				}
			}
			in := make([]byte, back)
			targettest.ReportCPU(b, func() {
				for n := 0; n < b.N; n += x.depth {
					w.Write(out)
					if _, err := io.ReadFull(w.in, in); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
