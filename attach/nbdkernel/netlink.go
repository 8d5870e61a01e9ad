// Package nbdkernel gives a target.Session to the kernel's nbd driver, over
// generic netlink.
//
// The kernel is connected by unix socket pairs to an NBD server in this process
// whose only export is the session. So the kernel knows nothing of nodes, never
// loses a connection while this process lives, and sees no errors but those that
// the session reports. If the process dies, the kernel keeps its requests and
// waits for another to hand it new sockets.
package nbdkernel

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
)

const op = "attach"

// Commands and attributes of the family "nbd" (linux/nbd-netlink.h).
const (
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdStatus      = 5

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadConn    = 8
	attrDeviceList  = 9
	attrBackend     = 10

	sockItem = 1
	sockFD   = 1

	deviceItem      = 1
	deviceIndex     = 1
	deviceConnected = 2
)

// family is the number of the family, or why there is none.
func family() (uint16, error) {
	f, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		return 0, fault.Newf(fault.Unavailable, op, "nbd", "the kernel has no nbd driver (module nbd): %w", err)
	}
	return f.ID, nil
}

// Available tells whether the kernel has the driver, after having asked for its
// module, or what is missing.
func Available() error {
	_, err := family()
	if err == nil {
		return nil
	}
	// The driver's own devices are not wanted: netlink makes them as needed.
	if exec.Command("modprobe", "nbd", "nbds_max=16").Run() != nil {
		return err
	}
	_, err = family()
	return err
}

// request is one message to the driver.
func request(cmd uint8, attrs ...nl.NetlinkRequestData) ([][]byte, error) {
	id, err := family()
	if err != nil {
		return nil, err
	}
	r := nl.NewNetlinkRequest(int(id), unix.NLM_F_ACK)
	r.AddData(&nl.Genlmsg{Command: cmd, Version: familyVersion})
	for _, a := range attrs {
		r.AddData(a)
	}
	return r.Execute(unix.NETLINK_GENERIC, 0)
}

func u32(kind int, v uint32) nl.NetlinkRequestData {
	return nl.NewRtAttr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func u64(kind int, v uint64) nl.NetlinkRequestData {
	return nl.NewRtAttr(kind, binary.NativeEndian.AppendUint64(nil, v))
}

func text(kind int, s string) nl.NetlinkRequestData { return nl.NewRtAttr(kind, nl.ZeroTerminated(s)) }

// sockets is the nested list of file descriptors.
func sockets(fds []int) nl.NetlinkRequestData {
	list := nl.NewRtAttr(attrSockets|unix.NLA_F_NESTED, nil)
	for _, fd := range fds {
		list.AddRtAttr(sockItem|unix.NLA_F_NESTED, nil).AddRtAttr(sockFD, binary.NativeEndian.AppendUint32(nil, uint32(fd)))
	}
	return list
}

// attributes splits the body of an answer, or of a nested attribute.
func attributes(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return out
	}
	for _, a := range list {
		out[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return out
}

// device is one device as the driver tells of it.
type device struct {
	index     int
	connected bool
}

// decodeDevice reads the answer to CONNECT or STATUS about one device: index is
// -1 when it names none. b begins with the header of generic netlink.
func decodeDevice(b []byte) device {
	d := device{index: -1}
	if len(b) < nl.SizeofGenlmsg {
		return d
	}
	top := attributes(b[nl.SizeofGenlmsg:])
	if v := top[attrIndex]; len(v) == 4 {
		d.index = int(binary.NativeEndian.Uint32(v))
	}
	item := attributes(attributes(top[attrDeviceList])[deviceItem])
	if v := item[deviceIndex]; len(v) == 4 {
		d.index = int(binary.NativeEndian.Uint32(v))
	}
	if v := item[deviceConnected]; len(v) == 1 {
		d.connected = v[0] != 0
	}
	return d
}

// Connected tells whether the driver has device number index connected.
func Connected(index int) bool {
	msgs, err := request(cmdStatus, u32(attrIndex, uint32(index)))
	if err != nil {
		return false
	}
	for _, m := range msgs {
		if d := decodeDevice(m); d.index == index {
			return d.connected
		}
	}
	return false
}

// Disconnect ends device number index; what it has under way is finished first.
func Disconnect(index int) error {
	if _, err := request(cmdDisconnect, u32(attrIndex, uint32(index))); err != nil {
		return fault.Newf(fault.Unavailable, op, devicePath(index), "cannot disconnect: %w", err)
	}
	return nil
}

// explain adds what to do to what the driver says.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fault.Newf(fault.Denied, op, "nbd", "the kernel lets only root do that: %w", err)
	case errors.Is(err, syscall.EBUSY):
		return fault.Newf(fault.Busy, op, "nbd", "the device is in use: %w", err)
	}
	return fault.Newf(fault.Unavailable, op, "nbd", "the kernel's driver refuses: %w", err)
}
