package nbdkernel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
	"github.com/gabion-storage/gabion/target/targettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The bytes of a CONNECT with two sockets, by hand from linux/nbd-netlink.h and
// linux/netlink.h.
func TestConnectBytes(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes below are those of a little-endian machine")
	}
	got := append((&nl.Genlmsg{Command: cmdConnect, Version: familyVersion}).Serialize(), sockets([]int{7, 8}).Serialize()...)
	got = append(got, u64(attrSize, 1<<20).Serialize()...)
	got = append(got, text(attrBackend, "gabion:v").Serialize()...)
	want := "01010000" + // CONNECT, version 1
		"1c000780" + // SOCKETS, nested, 28 bytes
		"0c000180" + "08000100" + "07000000" +
		"0c000180" + "08000100" + "08000000" +
		"0c000200" + "0000100000000000" +
		"0d000a00" + "676162696f6e3a7600" + "000000"
	if hex.EncodeToString(got) != want {
		t.Errorf("\n%x\n%s", got, want)
	}
}

func TestAnswersAreRead(t *testing.T) {
	head := (&nl.Genlmsg{Command: cmdStatus, Version: familyVersion}).Serialize()
	if d := decodeDevice(append(head, u32(attrIndex, 5).Serialize()...)); d.index != 5 || d.connected {
		t.Errorf("%+v", d)
	}
	list := nl.NewRtAttr(attrDeviceList|unix.NLA_F_NESTED, nil)
	item := list.AddRtAttr(deviceItem|unix.NLA_F_NESTED, nil)
	item.AddRtAttr(deviceIndex, binary.NativeEndian.AppendUint32(nil, 3))
	item.AddRtAttr(deviceConnected, []byte{1})
	if d := decodeDevice(append(head, list.Serialize()...)); d.index != 3 || !d.connected {
		t.Errorf("%+v", d)
	}
}

func FuzzDecodeDevice(f *testing.F) {
	f.Add([]byte{5, 1, 0, 0, 8, 0, 1, 0, 5, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { decodeDevice(b) })
}

// The kernel's end of a socket pair is ready for requests, with the flags of
// the device and its data behind it.
func TestSocketsAreReadyForTransmission(t *testing.T) {
	mem := targettest.NewMemory(1<<20, 4096)
	srv, err := nbd.NewServer(nbd.Config{Exports: exports{"v", mem}})
	if err != nil {
		t.Fatal(err)
	}
	l := &pairs{conns: make(chan net.Conn), done: make(chan struct{})}
	d := &Device{server: srv, served: make(chan error, 1)}
	go func() { d.served <- srv.Serve(l) }()
	defer d.close()
	fd, flags, err := l.connect("v")
	if err != nil {
		t.Fatal(err)
	}
	want := proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim | proto.FlagCanMultiConn
	if flags&want != want || flags&proto.FlagReadOnly != 0 {
		t.Errorf("flags %#x", flags)
	}
	file := os.NewFile(uintptr(fd), "kernel")
	defer file.Close()
	p := bytes.Repeat([]byte{7}, 4096)
	file.Write(append(proto.Simple.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Cookie: 9, Length: 4096}), p...))
	b := make([]byte, proto.SimpleReplySize)
	if _, err := file.Read(b); err != nil {
		t.Fatal(err)
	}
	if e, cookie, err := proto.DecodeSimpleReply(b); e != proto.OK || cookie != 9 || err != nil {
		t.Errorf("%v %d %v", e, cookie, err)
	}
	if got, _ := targettest.Read(mem, 0, 4096); !bytes.Equal(got, p) {
		t.Error("it did not arrive")
	}
	if _, _, err := l.connect("w"); err == nil {
		t.Error("another name was let in")
	}
}
