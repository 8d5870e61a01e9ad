package iscsi_test

import (
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// BenchmarkBursts is what a command of 4 KiB costs the server and a client that
// only copies bytes, in bursts of the depth that the name says.
func BenchmarkBursts(b *testing.B) {
	for _, x := range []struct {
		name  string
		write bool
		depth int
		delay time.Duration
	}{
		{"read1", false, 1, 0},
		{"read32", false, 32, 0},
		{"write1", true, 1, 0},
		{"write32", true, 32, 0},
		{"late1", true, 1, 50 * time.Microsecond},
		{"late32", true, 32, 50 * time.Microsecond},
	} {
		b.Run(x.name, func(b *testing.B) {
			mem := targettest.NewMemory(1<<20, 512)
			mem.Delay = x.delay
			s := newShelf()
			s.add("v", mem)
			c := serve(b, s, nil).ready(iscsiclient.Config{})
			c.Conn().SetDeadline(time.Time{})
			out, size, back := burst(x.write, x.depth)
			in := make([]byte, back)
			sn := c.CmdSN
			targettest.ReportCPU(b, func() {
				for n := 0; n < b.N; n += x.depth {
					for i := range x.depth {
						binary.BigEndian.PutUint32(out[i*size+24:], sn) // CmdSN
						sn++
					}
					c.Conn().Write(out)
					if _, err := io.ReadFull(c.Conn(), in); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// burst is n commands, of size bytes each, and the length of what answers them.
func burst(write bool, n int) (out []byte, size, back int) {
	for i := range n {
		cdb := iscsiclient.Read10(uint32(i)*8, 8)
		if write {
			cdb = iscsiclient.Write10(uint32(i)*8, 8, false)
		}
		p := pdu.SCSICommand{Final: true, Read: !write, Write: write, ITT: uint32(100 + i), Length: 4096}
		copy(p.CDB[:], cdb)
		var h pdu.Header
		p.Put(&h)
		back += pdu.HeaderSize
		if write {
			h.SetDataLength(4096)
			out = append(out, h[:]...)
			out = append(out, make([]byte, 4096)...)
			continue
		}
		out = append(out, h[:]...)
		back += 4096
	}
	return out, len(out) / n, back
}
