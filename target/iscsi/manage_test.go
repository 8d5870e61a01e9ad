package iscsi_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

// half begins a WRITE and never sends its data: only the R2T comes.
func half(t *testing.T, c *iscsiclient.Client) *iscsiclient.Command {
	t.Helper()
	cmd := &iscsiclient.Command{CDB: iscsiclient.Write10(0, 8, false), Length: 4096, ITT: c.NextITT()}
	p := pdu.SCSICommand{Final: true, Write: true, Attribute: pdu.Simple, ITT: cmd.ITT, Length: 4096, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
	copy(p.CDB[:], cmd.CDB)
	c.CmdSN++
	var h pdu.Header
	p.Put(&h)
	if err := c.Send(&h, nil, nil); err != nil {
		t.Fatal(err)
	}
	rh, _, err := c.Recv()
	if err != nil || rh.Opcode() != pdu.OpR2T {
		t.Fatalf("%v, %v", rh.Opcode(), err)
	}
	cmd.R2Ts = append(cmd.R2Ts, pdu.DecodeR2T(&rh))
	return cmd
}

func TestAbortOfACommandThatAwaitsItsData(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{})
	cmd := half(t, c)
	if got, err := c.Manage(pdu.AbortTask, 0, cmd.ITT); err != nil || got != pdu.FunctionComplete {
		t.Fatalf("response %d, %v", got, err)
	}
	if got, err := c.Manage(pdu.AbortTask, 0, cmd.ITT); err != nil || got != pdu.FunctionNoTask {
		t.Errorf("again: response %d, %v", got, err)
	}
	// Its data were under way: they are passed over, and change nothing.
	p := pdu.DataOut{Final: true, ITT: cmd.ITT, TTT: cmd.R2Ts[0].TTT}
	var h pdu.Header
	p.Put(&h)
	if err := c.Send(&h, nil, bytes.Repeat([]byte{0xee}, 4096)); err != nil {
		t.Fatal(err)
	}
	back := good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 8), In: make([]byte, 4096)})
	if !bytes.Equal(back.In, make([]byte, 4096)) {
		t.Error("an aborted write took effect")
	}
	eventually(t, "memory is not given back", func() bool { return r.srv.Stats().InFlight == 0 && r.srv.Stats().BytesHeld == 0 })
}

func TestFunctionsOfTaskManagement(t *testing.T) {
	m := targettest.NewMemory(1<<20, 512)
	m.Delay = 30 * time.Millisecond
	s := newShelf()
	s.add("v", m)
	r := serve(t, s, nil)
	for _, f := range []struct {
		function pdu.Function
		lun      uint64
		want     byte
		aborts   bool
	}{
		{pdu.AbortTaskSet, 0, pdu.FunctionComplete, true},
		{pdu.ClearTaskSet, 0, pdu.FunctionComplete, true},
		{pdu.LUNReset, 0, pdu.FunctionComplete, true},
		{pdu.LUNReset, 0x4000 << 48, pdu.FunctionComplete, true},
		{pdu.TargetWarmReset, 0, pdu.FunctionComplete, true},
		{pdu.LUNReset, 1 << 48, pdu.FunctionNoLUN, false},
		{pdu.AbortTaskSet, 1 << 48, pdu.FunctionNoLUN, false},
		{pdu.TaskReassign, 0, pdu.FunctionNoReassign, false},
		{pdu.ClearACA, 0, pdu.FunctionNotSupported, false},
		{pdu.QueryTask, 0, pdu.FunctionNotSupported, false},
		{99, 0, pdu.FunctionNotSupported, false},
	} {
		c := r.ready(iscsiclient.Config{})
		half(t, c)
		if err := c.Start(&iscsiclient.Command{CDB: iscsiclient.Write10(0, 8, false), Out: make([]byte, 4096)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the write does not arrive", func() bool { return r.srv.Stats().InFlight >= 1 })
		got, err := c.Manage(f.function, f.lun, 0)
		if err != nil || got != f.want {
			t.Errorf("%v of LUN %x: response %d, %v; want %d", f.function, f.lun, got, err, f.want)
		}
		if n := r.srv.Stats().InFlight; f.aborts && n != 0 {
			t.Errorf("%v leaves %d commands", f.function, n)
		}
		c.Close()
		eventually(t, "the session does not end", func() bool { return r.srv.Stats().Connections == 0 })
	}
}

func TestColdResetEndsEverySession(t *testing.T) {
	r, _ := memory(t, nil)
	other := r.ready(iscsiclient.Config{ISID: pdu.ISID{5}})
	c := r.ready(iscsiclient.Config{})
	if got, err := c.Manage(pdu.TargetColdReset, 0, 0); err != nil || got != pdu.FunctionComplete {
		t.Errorf("response %d, %v", got, err)
	}
	for _, x := range []*iscsiclient.Client{c, other} {
		if h, _, err := x.Recv(); err == nil {
			t.Errorf("a session goes on with %v", h.Opcode())
		}
	}
}
