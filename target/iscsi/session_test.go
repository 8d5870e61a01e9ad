package iscsi_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

var (
	alice = login.Secret{User: "alice", Secret: "a secret of alice"}
	disk  = login.Secret{User: "disk", Secret: "a secret of the disk"}
)

func TestCHAPGuardsTheVolume(t *testing.T) {
	r, _ := memory(t, nil)
	r.entries[iqn+"v"].Auth = login.Auth{Initiator: alice, Target: disk}
	for _, alg := range []string{"5", "6", "7", "8"} {
		c := r.login(iscsiclient.Config{Auth: login.Auth{Initiator: alice, Target: disk}, Algorithms: alg,
			Keys: keys("HeaderDigest", "CRC32C", "DataDigest", "CRC32C")})
		if err := c.Logout(); err != nil {
			t.Error(err)
		}
	}
	for name, cfg := range map[string]iscsiclient.Config{
		"nothing":        {},
		"another name":   {Auth: login.Auth{Initiator: login.Secret{User: "bob", Secret: alice.Secret}}},
		"another secret": {Auth: login.Auth{Initiator: login.Secret{User: "alice", Secret: disk.Secret}}},
	} {
		cfg.Target = iqn + "v"
		if _, err := iscsiclient.Login(r.addr, cfg); !iscsiclient.Refused(err, pdu.LoginNotAuthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong := iscsiclient.Config{Target: iqn + "v", Auth: login.Auth{Initiator: alice, Target: alice}}
	if _, err := iscsiclient.Login(r.addr, wrong); err == nil || !strings.Contains(err.Error(), "prove itself") {
		t.Errorf("the target passed for another: %v", err)
	}
	eventually(t, "refusals are not counted", func() bool { return r.srv.Stats().Denied == 3 })
}

func TestWhoMayLogIn(t *testing.T) {
	r, _ := memory(t, nil)
	r.shelf.discovery = login.Auth{Initiator: alice}
	e := r.entries[iqn+"v"]
	e.Initiators = []string{"iqn.2026-11.test:friend"}
	e.portals = []iscsi.Portal{{Addr: "10.0.0.2:3260", Tag: 2}, {Addr: "[fd00::1]:3260", Tag: 3}, {Addr: "10.0.0.1:3260", Tag: 1}}
	if _, err := iscsiclient.Login(r.addr, iscsiclient.Config{Target: iqn + "v"}); !iscsiclient.Refused(err, pdu.LoginNotAuthorized) {
		t.Error(err)
	}
	if _, err := iscsiclient.Login(r.addr, iscsiclient.Config{Target: iqn + "w"}); !iscsiclient.Refused(err, pdu.LoginNotFound) {
		t.Error(err)
	}
	r.login(iscsiclient.Config{Initiator: "IQN.2026-11.test:Friend"})
	if _, err := iscsiclient.Login(r.addr, iscsiclient.Config{}); !iscsiclient.Refused(err, pdu.LoginNotAuthenticated) {
		t.Errorf("discovery without a proof: %v", err)
	}
	for _, x := range []struct {
		initiator string
		want      int
	}{{"iqn.2026-11.test:friend", 3}, {"iqn.2026-11.test:stranger", 0}} {
		c, err := iscsiclient.Login(r.addr, iscsiclient.Config{Initiator: x.initiator, Auth: login.Auth{Initiator: alice}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.Discover()
		got := list[iqn+"v"]
		if err != nil || len(got) != x.want {
			t.Errorf("%s is shown %v, %v", x.initiator, list, err)
		}
		if x.want > 0 && (got[0] != r.addr+",1" || got[1] != "10.0.0.2:3260,2" || got[2] != "[fd00::1]:3260,3") {
			t.Errorf("portals %q", got)
		}
		c.Close()
	}
}

func TestDiscoveryOfManyTargetsComesInParts(t *testing.T) {
	s := newShelf()
	m := targettest.NewMemory(1<<20, 512)
	for i := range 60 {
		s.add("volume-with-a-rather-long-name-"+strings.Repeat("x", 40)+string(rune('a'+i%26))+strings.Repeat("y", i/26), m)
	}
	r := serve(t, s, nil)
	c, err := iscsiclient.Login(r.addr, iscsiclient.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.Discover()
	if err != nil || len(list) != 60 {
		t.Errorf("%d targets, %v", len(list), err)
	}
}

func TestSessionIsReinstatedByTheSamePort(t *testing.T) {
	r, _ := memory(t, nil)
	first := r.ready(iscsiclient.Config{})
	other := r.ready(iscsiclient.Config{ISID: pdu.ISID{9}})
	second := r.login(iscsiclient.Config{})
	if _, _, err := first.Recv(); err == nil {
		t.Error("the session that was replaced goes on")
	}
	if second.TSIH == 0 || second.TSIH == first.TSIH || second.TSIH == other.TSIH {
		t.Errorf("handles %d, %d, %d", first.TSIH, second.TSIH, other.TSIH)
	}
	good(t, other, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)})
	told := &iscsiclient.Command{CDB: make([]byte, 6)}
	if err := second.Do(told); err != nil {
		t.Fatal(err)
	}
	if key, asc := told.SenseKey(); told.Status != 2 || key != 6 || asc != 0x2907 {
		t.Errorf("the new session is not told of the loss: %v", told)
	}
	eventually(t, "sessions do not end", func() bool { return r.srv.Stats().Sessions[iqn+"v"] == 2 })
	for tsih, want := range map[uint16]pdu.LoginStatus{other.TSIH: pdu.LoginTooManyConnections, 9999: pdu.LoginNoSession} {
		_, err := iscsiclient.Login(r.addr, iscsiclient.Config{Target: iqn + "v", ISID: pdu.ISID{9}, TSIH: tsih})
		if !iscsiclient.Refused(err, want) {
			t.Errorf("a login to session %d: %v", tsih, err)
		}
	}
}

// TestReinstatementWaitsForWhatIsUnderWay: a write of the old session must not
// take effect behind the login of the new one.
func TestReinstatementWaitsForWhatIsUnderWay(t *testing.T) {
	m := targettest.NewMemory(1<<20, 512)
	m.Delay = 200 * time.Millisecond
	s := newShelf()
	s.add("v", m)
	r := serve(t, s, nil)
	c := r.ready(iscsiclient.Config{})
	if err := c.Start(&iscsiclient.Command{CDB: iscsiclient.Write10(0, 8, false), Out: bytes.Repeat([]byte{1}, 4096)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the write does not arrive", func() bool { return r.srv.Stats().InFlight == 1 })
	r.login(iscsiclient.Config{})
	if n := r.srv.Stats().InFlight; n != 0 {
		t.Errorf("%d commands are under way behind the login", n)
	}
}

func TestLogoutComesBehindEverything(t *testing.T) {
	m := targettest.NewMemory(1<<20, 512)
	m.Delay = 50 * time.Millisecond
	s := newShelf()
	e := s.add("v", m)
	r := serve(t, s, nil)
	c := r.ready(iscsiclient.Config{})
	var cmds []*iscsiclient.Command
	for i := range 20 {
		cmd := &iscsiclient.Command{CDB: iscsiclient.Write10(uint32(i), 1, false), Out: bytes.Repeat([]byte{byte(i)}, 512)}
		if err := c.Start(cmd); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	if err := c.Logout(); err != nil {
		t.Fatal(err)
	}
	for i, cmd := range cmds {
		if !cmd.Done || cmd.Status != 0 {
			t.Errorf("write %d: %v", i, cmd)
		}
	}
	eventually(t, "the unit is not closed", func() bool { return s.used(e) == 0 })
}

func TestSessionEndsWithItsVolume(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{})
	close(r.entries[iqn+"v"].gone)
	if _, _, err := c.Recv(); err == nil {
		t.Error("the session goes on")
	}
}

func TestDrainAsksToLogOut(t *testing.T) {
	r, _ := memory(t, func(c *iscsi.Config) { c.LogoutTimeout = 5 * time.Second })
	c := r.ready(iscsiclient.Config{})
	r.ready(iscsiclient.Config{ISID: pdu.ISID{2}}) // says nothing any more
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		done <- r.srv.Shutdown(ctx)
	}()
	h, data, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Take(&h, data); err != nil || len(c.Events) != 1 || c.Events[0].Event != pdu.EventLogout || c.Events[0].Parameter3 != 5 {
		t.Fatalf("%+v %v", c.Events, err)
	}
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1), In: make([]byte, 512)}) // it still serves
	if err := c.Logout(); err != nil {
		t.Error(err)
	}
	<-done // the silent one is cut when ctx ends
	eventually(t, "connections are left", func() bool { return r.srv.Stats().Connections == 0 })
}

func TestSilentInitiatorIsPingedAndCut(t *testing.T) {
	r, _ := memory(t, func(c *iscsi.Config) { c.PingInterval, c.PingTimeout = 30*time.Millisecond, 200*time.Millisecond })
	c := r.ready(iscsiclient.Config{})
	for range 3 { // it answers: Take does
		h, data, err := c.Recv()
		if err != nil || h.Opcode() != pdu.OpNopIn || h.ITT() != pdu.NoTag {
			t.Fatalf("%v %v", h.Opcode(), err)
		}
		if _, err := c.Take(&h, data); err != nil {
			t.Fatal(err)
		}
	}
	if h, _, err := c.Recv(); err != nil || h.Opcode() != pdu.OpNopIn {
		t.Fatal(err)
	}
	if h, _, err := c.Recv(); err == nil {
		t.Errorf("a silent initiator got %v", h.Opcode())
	}
}

func TestPingOfTheInitiatorComesBack(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{Keys: keys("MaxRecvDataSegmentLength", "512")})
	p := pdu.NopOut{Immediate: true, ITT: c.NextITT(), TTT: pdu.NoTag, CmdSN: c.CmdSN, ExpStatSN: c.ExpStatSN}
	for _, n := range []int{0, 5, 512, 600} {
		var h pdu.Header
		p.Put(&h)
		ping := bytes.Repeat([]byte{7}, n)
		_, back, err := c.Exchange(&h, ping, pdu.OpNopIn)
		if err != nil || !bytes.Equal(back, ping[:min(n, 512)]) {
			t.Errorf("%d bytes: %d came back, %v", n, len(back), err)
		}
	}
}
