package iscsi_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// raw sends a SCSI command as it is.
func raw(t *testing.T, c *iscsiclient.Client, p pdu.SCSICommand, ahs, data []byte) {
	t.Helper()
	var h pdu.Header
	p.Put(&h)
	if err := c.Send(&h, ahs, data); err != nil {
		t.Fatal(err)
	}
}

// ends demands that the connection ends, after a Reject with that reason unless it is 0.
func ends(t *testing.T, c *iscsiclient.Client, what string, reason byte) {
	t.Helper()
	for {
		h, _, err := c.Recv()
		if err != nil {
			if reason != 0 {
				t.Errorf("%s: no reject", what)
			}
			return
		}
		if h.Opcode() == pdu.OpReject && pdu.DecodeReject(&h).Reason == reason {
			reason = 0
		}
	}
}

func TestCommandsOutsideOfTheWindowAreIgnored(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{})
	for _, sn := range []uint32{c.CmdSN - 1, c.CmdSN + 128, c.CmdSN + 1<<31 - 1} {
		raw(t, c, pdu.SCSICommand{Final: true, Read: true, ITT: 7, CmdSN: sn, CDB: [16]byte{0x12, 4: 36}, Length: 36}, nil, nil)
	}
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
	if got := c.MaxCmdSN - c.ExpCmdSN; got != 127 {
		t.Errorf("a window of %d", got+1)
	}
	raw(t, c, pdu.SCSICommand{Final: true, ITT: 7, CmdSN: c.CmdSN + 1}, nil, nil)
	ends(t, c, "a gap", 0)
}

func TestTheWindowClosesAndOpens(t *testing.T) {
	r, m := memory(t, func(c *iscsi.Config) { c.CommandsMax = 4 })
	m.Delay = 20 * time.Millisecond
	c := r.ready(iscsiclient.Config{})
	for i := range 4 {
		if err := c.Start(&iscsiclient.Command{CDB: iscsiclient.Write10(uint32(i), 1, false), Out: make([]byte, 512)}); err != nil {
			t.Fatal(err)
		}
	}
	p := pdu.NopOut{Immediate: true, ITT: 900, TTT: pdu.NoTag, CmdSN: c.CmdSN}
	var h pdu.Header
	p.Put(&h)
	if _, _, err := c.Exchange(&h, nil, pdu.OpNopIn); err != nil {
		t.Fatal(err)
	}
	for len(c.Commands) > 0 {
		if _, err := c.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.MaxCmdSN - c.ExpCmdSN + 1; got != 4 {
		t.Errorf("with nothing under way the window is %d", got)
	}
}

func TestInputThatBreaksTheProtocolEndsTheSession(t *testing.T) {
	big := make([]byte, 300<<10)
	for _, x := range []struct {
		name   string
		keys   []login.Pair
		p      pdu.SCSICommand
		ahs    []byte
		data   []byte
		reason byte
	}{
		{"immediate data that were not agreed on", keys("ImmediateData", "No"), pdu.SCSICommand{Final: true, Write: true, Length: 512}, nil, big[:512], pdu.RejectProtocol},
		{"more data than announced", nil, pdu.SCSICommand{Final: true, Write: true, Length: 512}, nil, big[:1024], pdu.RejectProtocol},
		{"more than the first burst", keys("FirstBurstLength", "512"), pdu.SCSICommand{Final: true, Write: true, Length: 4096}, nil, big[:1024], pdu.RejectProtocol},
		{"data of a read", nil, pdu.SCSICommand{Final: true, Read: true, Length: 512}, nil, big[:512], pdu.RejectProtocol},
		{"unsolicited data that were not agreed on", keys("InitialR2T", "Yes"), pdu.SCSICommand{Write: true, Length: 512}, nil, nil, pdu.RejectProtocol},
		{"a command without a tag", nil, pdu.SCSICommand{Final: true, ITT: pdu.NoTag}, nil, nil, pdu.RejectProtocol},
		{"a long data segment", nil, pdu.SCSICommand{Final: true, Write: true, Length: 1 << 20}, nil, big, pdu.RejectProtocol},
		{"nonsense in additional headers", nil, pdu.SCSICommand{Final: true}, []byte{9, 9, 1, 1}, nil, pdu.RejectInvalidField},
	} {
		r, _ := memory(t, nil)
		c := r.ready(iscsiclient.Config{Keys: x.keys})
		x.p.CmdSN = c.CmdSN
		raw(t, c, x.p, x.ahs, x.data)
		ends(t, c, x.name, x.reason)
		eventually(t, x.name+" is not counted", func() bool { return r.srv.Stats().Malformed == 1 })
	}
}

func TestInputThatIsRefusedAlone(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{})
	cmd := half(t, c)
	for name, x := range map[string]struct {
		h      func(h *pdu.Header)
		reason byte
	}{
		"SNACK":            {func(h *pdu.Header) { (&pdu.SNACK{ITT: 1, TTT: pdu.NoTag}).Put(h) }, pdu.RejectSNACK},
		"unknown":          {func(h *pdu.Header) { *h = pdu.Header{0: 0x1d} }, pdu.RejectNotSupported},
		"a second login":   {func(h *pdu.Header) { (&pdu.LoginRequest{}).Put(h) }, pdu.RejectNotSupported},
		"tag in use":       {func(h *pdu.Header) { (&pdu.SCSICommand{Final: true, ITT: cmd.ITT, Immediate: true}).Put(h) }, pdu.RejectTaskInUse},
		"foreign text tag": {func(h *pdu.Header) { (&pdu.TextRequest{Immediate: true, Final: true, ITT: 77, TTT: 5}).Put(h) }, pdu.RejectInvalidField},
	} {
		var h pdu.Header
		x.h(&h)
		_, data, err := c.Exchange(&h, nil, pdu.OpReject)
		if err != nil || !bytes.Equal(data[:16], h[:16]) {
			t.Fatalf("%s: %v %x", name, err, data)
		}
	}
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
}

func TestDamagedDataEndTheCommandOrTheSession(t *testing.T) {
	r, _ := memory(t, nil)
	k := keys("HeaderDigest", "CRC32C", "DataDigest", "CRC32C", "InitialR2T", "Yes", "ImmediateData", "No")
	c := r.ready(iscsiclient.Config{Keys: k})
	cmd := half(t, c)
	p := pdu.DataOut{Final: true, ITT: cmd.ITT, TTT: cmd.R2Ts[0].TTT}
	var h pdu.Header
	p.Put(&h)
	h.SetDataLength(4096)
	b := make([]byte, pdu.Size(&h, c.Digests))
	copy(b, h[:])
	pdu.PutHeaderDigest(b, 0)
	if err := c.SendRaw(b); err != nil { // the digest of the data is zeros
		t.Fatal(err)
	}
	seen := false
	for {
		rh, data, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if rh.Opcode() == pdu.OpReject {
			seen = pdu.DecodeReject(&rh).Reason == pdu.RejectDataDigest
			continue
		}
		resp := pdu.DecodeSCSIResponse(&rh)
		if resp.ITT != cmd.ITT || resp.Status != 2 || binary.BigEndian.Uint16(data[14:]) != 0x4705 || !seen {
			t.Fatalf("%+v, sense %x, reject %v", resp, data, seen)
		}
		c.ExpStatSN = resp.SN.StatSN + 1
		break
	}
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
	(&pdu.NopOut{Immediate: true, ITT: 1, TTT: pdu.NoTag}).Put(&h)
	if err := c.SendRaw(append(h[:], 1, 2, 3, 4)); err != nil {
		t.Fatal(err)
	}
	ends(t, c, "a damaged header", 0)
}

func TestDataOutOfSequenceEndTheCommand(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{})
	for _, change := range []func(p *pdu.DataOut){
		func(p *pdu.DataOut) { p.DataSN = 1 },
		func(p *pdu.DataOut) { p.DataSN = 0xffffffff },
	} {
		cmd := half(t, c)
		p := pdu.DataOut{Final: true, ITT: cmd.ITT, TTT: cmd.R2Ts[0].TTT}
		change(&p)
		var h pdu.Header
		p.Put(&h)
		rh, data, err := c.Exchange(&h, make([]byte, 4096), pdu.OpSCSIResponse)
		if err != nil || pdu.DecodeSCSIResponse(&rh).Status != 2 || binary.BigEndian.Uint16(data[14:]) != 0x4705 {
			t.Fatalf("%x %v", data, err)
		}
	}
	for name, change := range map[string]func(p *pdu.DataOut){
		"another tag":    func(p *pdu.DataOut) { p.TTT++ },
		"unsolicited":    func(p *pdu.DataOut) { p.TTT = pdu.NoTag },
		"elsewhere":      func(p *pdu.DataOut) { p.Offset = 512 },
		"far away":       func(p *pdu.DataOut) { p.Offset = 0xfffffe00 },
		"final too soon": func(p *pdu.DataOut) { p.ExpStatSN = 1 }, // with short data, below
	} {
		c := r.ready(iscsiclient.Config{})
		cmd := half(t, c)
		p := pdu.DataOut{Final: true, ITT: cmd.ITT, TTT: cmd.R2Ts[0].TTT}
		change(&p)
		n := 4096
		if p.ExpStatSN == 1 {
			n = 512
		}
		var h pdu.Header
		p.Put(&h)
		if err := c.Send(&h, nil, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		ends(t, c, name, pdu.RejectProtocol)
	}
}

// TestNoMemoryIsTaskSetFull: what one client announces cannot take what others need.
func TestNoMemoryIsTaskSetFull(t *testing.T) {
	r, _ := memory(t, func(c *iscsi.Config) { c.BytesMax, c.MemoryMax = 2*scsi.TransferMax, 2*scsi.TransferMax })
	greedy := r.ready(iscsiclient.Config{})
	announce := func(c *iscsiclient.Client, blocks int) pdu.Header {
		p := pdu.SCSICommand{Final: true, Write: true, Attribute: pdu.Simple, ITT: c.NextITT(), Length: uint32(blocks * 512), CmdSN: c.CmdSN}
		copy(p.CDB[:], iscsiclient.Write10(0, blocks, false))
		c.CmdSN++
		var h pdu.Header
		p.Put(&h)
		if err := c.Send(&h, nil, nil); err != nil {
			t.Fatal(err)
		}
		rh, _, err := c.Recv()
		for err == nil && rh.Opcode() == pdu.OpR2T && pdu.DecodeR2T(&rh).Offset > 0 {
			rh, _, err = c.Recv() // further R2Ts of the command before
		}
		if err != nil {
			t.Fatal(err)
		}
		return rh
	}
	const eight = scsi.TransferMax / 512
	for range 2 {
		if h := announce(greedy, eight); h.Opcode() != pdu.OpR2T {
			t.Fatalf("%v for the first ones", h.Opcode())
		}
	}
	h := announce(greedy, eight)
	for h.Opcode() == pdu.OpR2T {
		h, _, _ = greedy.Recv()
	}
	if p := pdu.DecodeSCSIResponse(&h); p.Status != byte(scsi.TaskSetFull) {
		t.Errorf("beyond the limit: %+v", p)
	}
	modest := r.ready(iscsiclient.Config{ISID: pdu.ISID{3}})
	good(t, modest, &iscsiclient.Command{CDB: iscsiclient.Write10(0, 512, false), Out: make([]byte, 256<<10)})
	if held := r.srv.Stats().BytesHeld; held > 2*scsi.TransferMax+4*iscsi.BytesFree {
		t.Errorf("%d bytes are held", held)
	}
}

// TestFloods: those who connect and say nothing, or nonsense, keep nobody out.
func TestFloods(t *testing.T) {
	r, _ := memory(t, func(c *iscsi.Config) { c.ConnectionsMax = 16 })
	c := r.ready(iscsiclient.Config{})
	var idle []net.Conn
	defer func() {
		for _, nc := range idle {
			nc.Close()
		}
	}()
	for i := range 100 {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, nc)
		switch i % 4 {
		case 0: // half a header
			_, _ = nc.Write(make([]byte, 20))
		case 1: // an absurd length
			_, _ = nc.Write((&pdu.Header{0: 0x43, 1: 0x87, 5: 0xff, 6: 0xff, 7: 0xff})[:])
		case 2: // additional headers in a login
			_, _ = nc.Write((&pdu.Header{0: 0x43, 1: 0x87, 4: 255})[:])
		}
	}
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
	other := r.ready(iscsiclient.Config{ISID: pdu.ISID{1}})
	good(t, other, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
	if st := r.srv.Stats(); st.Connections > 16 || st.Sessions[iqn+"v"] != 2 {
		t.Errorf("%+v", st)
	}
}

// FuzzSession: whatever a client sends in the full feature phase, the server goes
// on and serves others.
func FuzzSession(f *testing.F) {
	var h pdu.Header
	(&pdu.SCSICommand{Final: true, Write: true, ITT: 1, Length: 4096, CmdSN: 1, CDB: [16]byte{0x2a, 8: 8}}).Put(&h)
	f.Add(bytes.Clone(h[:]))
	(&pdu.TaskMgmt{Immediate: true, Function: pdu.LUNReset, ITT: 2}).Put(&h)
	f.Add(bytes.Clone(h[:]))
	(&pdu.TextRequest{Final: true, ITT: 3, TTT: pdu.NoTag, CmdSN: 1}).Put(&h)
	h.SetDataLength(4)
	f.Add(append(bytes.Clone(h[:]), 'A', '=', 'b', 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _ := memory(t, nil)
		c := r.login(iscsiclient.Config{})
		if err := c.SendRaw(b); err != nil {
			return
		}
		_ = c.Conn().(*net.TCPConn).CloseWrite()
		for {
			if _, _, err := c.Recv(); err != nil {
				break
			}
		}
		other := r.ready(iscsiclient.Config{ISID: pdu.ISID{9}})
		good(t, other, &iscsiclient.Command{CDB: []byte{0x12, 0, 0, 0, 36, 0}, In: make([]byte, 36)})
	})
}
