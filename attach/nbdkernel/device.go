package nbdkernel

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// Config tells how the kernel is to see the volume.
type Config struct {
	// Name is written into the device as its backend, so that nobody takes over
	// another volume's.
	Name string
	// Connections is the number of sockets, and of the device's hardware queues. A
	// device that is taken up again keeps the number it has. With one, the kernel
	// repeats what was under way within resendAfter when another process has taken
	// the device up; with more, only after Patience.
	Connections int
	// Patience is for how long the kernel keeps requests when this process dies,
	// in whole seconds. The session answers all requests within that time.
	Patience time.Duration
	Log      *slog.Logger
}

// Device is a device of the kernel's nbd driver.
type Device struct {
	name   string // of the volume
	index  int
	server *nbd.Server
	served chan error
}

// exports has the one session. It is opened by each of the kernel's sockets and
// stays the caller's to close.
type exports struct {
	name string
	dev  target.Device
}

type use struct{ target.Device }

func (use) Close() {}

func (x exports) Stat(_ context.Context, name string) (target.Export, error) {
	if name != x.name {
		return target.Export{}, fault.Newf(fault.NotFound, op, name, "there is only %s", x.name)
	}
	return target.Export{Name: x.name, Size: x.dev.Size(), BlockSize: x.dev.BlockSize(), ReadOnly: x.dev.ReadOnly()}, nil
}

func (x exports) List(ctx context.Context) ([]target.Export, error) {
	e, err := x.Stat(ctx, x.name)
	return []target.Export{e}, err
}

func (x exports) Open(ctx context.Context, name, _ string) (target.Session, <-chan struct{}, error) {
	if _, err := x.Stat(ctx, name); err != nil {
		return nil, nil, err
	}
	return use{x.dev}, nil, nil
}

// pairs is a listener whose connections are the far ends of socket pairs.
type pairs struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pairs) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pairs) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func (p *pairs) Addr() net.Addr { return &net.UnixAddr{Name: "socketpair", Net: "unix"} }

// Attach connects the kernel to dev and returns when the block device is there.
// With index -1 the kernel chooses the number; otherwise the device of that
// number, which a process that died has left, is given new sockets.
func Attach(dev target.Device, index int, cfg Config) (*Device, error) {
	srv, err := nbd.NewServer(nbd.Config{Exports: exports{cfg.Name, dev}, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	l := &pairs{conns: make(chan net.Conn), done: make(chan struct{})}
	d := &Device{name: cfg.Name, index: index, server: srv, served: make(chan error, 1)}
	go func() { d.served <- srv.Serve(l) }()
	var flags uint16
	var fds []int
	defer func() { // the kernel holds its own references
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	count := max(1, cfg.Connections)
	if had := queues(index); had > 0 {
		count = had
	}
	for range count {
		fd, f, err := l.connect(cfg.Name)
		if err != nil {
			d.close()
			return nil, fault.New(fault.Internal, op, cfg.Name, err)
		}
		fds, flags = append(fds, fd), f
	}
	if err := d.introduce(dev, fds, flags, cfg); err != nil {
		d.close()
		return nil, err
	}
	if err := setTimer(d.index, cfg.Patience); err != nil && cfg.Log != nil {
		cfg.Log.Warn("the kernel keeps its own time for requests", "device", d.Path(), "error", err)
	}
	return d, nil
}

// connect makes a socket pair, gives one end to the server, negotiates over the
// other and returns that, ready for transmission.
func (p *pairs) connect(name string) (fd int, flags uint16, err error) {
	two, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	theirs := os.NewFile(uintptr(two[1]), "nbd server")
	nc, err := net.FileConn(theirs)
	theirs.Close()
	if err != nil {
		unix.Close(two[0])
		return 0, 0, err
	}
	p.conns <- nc
	if flags, err = negotiate(two[0], name); err != nil {
		unix.Close(two[0])
		return 0, 0, err
	}
	return two[0], flags, nil
}

// raw reads and writes a blocking descriptor.
type raw int

func (fd raw) Read(p []byte) (int, error) {
	n, err := unix.Read(int(fd), p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// negotiate enters transmission in the shortest way and returns the export's
// transmission flags.
func negotiate(fd int, name string) (uint16, error) {
	b := make([]byte, proto.GreetingSize)
	if _, err := io.ReadFull(raw(fd), b); err != nil {
		return 0, err
	}
	out := proto.AppendClientFlags(nil, proto.ClientFlags{FixedNewstyle: true, NoZeroes: true})
	out = proto.AppendOption(out, proto.OptExportName, []byte(name))
	if _, err := unix.Write(fd, out); err != nil {
		return 0, err
	}
	b = b[:10] // size and flags
	if _, err := io.ReadFull(raw(fd), b); err != nil {
		return 0, err
	}
	return uint16(b[8])<<8 | uint16(b[9]), nil
}

// kernelFlags are the transmission flags that mean something to the driver.
const kernelFlags = proto.FlagHasFlags | proto.FlagReadOnly | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim |
	proto.FlagSendWriteZeroes | proto.FlagCanMultiConn

// introduce tells the kernel of its sockets.
func (d *Device) introduce(dev target.Device, fds []int, flags uint16, cfg Config) error {
	backend := backendOf(cfg.Name)
	// Shared by both commands. No request timeout: the session has its own.
	attrs := []nl.NetlinkRequestData{sockets(fds), u64(attrDeadConn, uint64(cfg.Patience/time.Second)), text(attrBackend, backend)}
	if d.index >= 0 {
		// The volume may have grown since the process died.
		attrs = append(attrs, u32(attrIndex, uint32(d.index)), u64(attrSize, uint64(dev.Size())))
		if _, err := request(cmdReconfigure, attrs...); err != nil {
			return explain(err)
		}
		return nil
	}
	attrs = append(attrs, u64(attrSize, uint64(dev.Size())), u64(attrBlockSize, uint64(dev.BlockSize())),
		u64(attrServerFlags, uint64(flags&kernelFlags)))
	msgs, err := request(cmdConnect, attrs...)
	if err != nil {
		return explain(err)
	}
	for _, m := range msgs {
		if x := decodeDevice(m); x.index >= 0 {
			d.index = x.index
		}
	}
	if d.index < 0 {
		return fault.Newf(fault.Internal, op, cfg.Name, "the kernel does not say which device it took")
	}
	return d.appear()
}

// backendOf is what the device is marked with.
func backendOf(name string) string { return "gabion:" + name }

// IsOurs tells whether device number index serves the volume name.
func IsOurs(index int, name string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/nbd%d/backend", index))
	return err == nil && strings.TrimSpace(string(b)) == backendOf(name)
}

// queues is the number of hardware queues of a device, one for each socket that
// it was made with; 0 if there is no such device.
func queues(index int) int {
	list, err := os.ReadDir(fmt.Sprintf("/sys/block/nbd%d/mq", index))
	if err != nil {
		return 0
	}
	return len(list)
}

const (
	// resendAfter is the time after which the kernel looks at a request that was
	// not answered, on a device of one socket: if that is another one by then it
	// sends the request again, else it says so in its log and goes on waiting.
	resendAfter = 5 * time.Second
	// patienceMargin is what the session has to answer for the last time.
	patienceMargin = 30 * time.Second
)

// timerOf is the block layer's time for a request. On a device of several
// sockets the driver takes it for the death of the socket, which it closes, and
// sends the request over another as well, until none is left. So it must not come
// while the session may still answer.
func timerOf(sockets int, patience time.Duration) time.Duration {
	if sockets == 1 {
		return resendAfter
	}
	return patience + patienceMargin
}

// setTimer replaces the kernel's 30 s. It counts for requests to come.
func setTimer(index int, patience time.Duration) error {
	ms := timerOf(queues(index), patience).Milliseconds()
	return os.WriteFile(fmt.Sprintf("/sys/block/nbd%d/queue/io_timeout", index), fmt.Append(nil, ms), 0)
}

func devicePath(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// Path is the block device.
func (d *Device) Path() string { return devicePath(d.index) }

// Index is its number.
func (d *Device) Index() int { return d.index }

// appear waits until the device node can be opened.
func (d *Device) appear() error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.Open(d.Path())
		if err == nil {
			f.Close()
			return nil
		}
		if time.Now().After(end) {
			_ = Disconnect(d.index)
			return fault.Newf(fault.Unavailable, op, filepath.Base(d.Path()), "the kernel made the device and there is no node for it: %w", err)
		}
	}
}

// Grow has the kernel see that the volume has become size bytes long. It can do
// so while the device is mounted.
func (d *Device) Grow(size int64) error {
	// The backend must be named again: a device that has one is nobody else's.
	_, err := request(cmdReconfigure, u32(attrIndex, uint32(d.index)), u64(attrSize, uint64(size)), text(attrBackend, backendOf(d.name)))
	if err != nil {
		return explain(err)
	}
	return nil
}

// Detach disconnects the device. Nobody may use it but udev.
func (d *Device) Detach() error {
	release := d.settle()
	err := Disconnect(d.index)
	release()
	d.close()
	return err
}

// settleMax bounds the wait for udev.
const settleMax = 5 * time.Second

// settle waits until udev has done with the device and keeps it from beginning
// again before release. It looks at a device whenever somebody who could write
// has closed it (mkfs, umount), and what it reads of one that goes away is an I/O
// error in the kernel's log. Meanwhile it has a shared lock on it (systemd,
// "Locking Block Device Access").
func (d *Device) settle() (release func()) {
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for end := time.Now().Add(settleMax); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil || time.Now().After(end) {
			return func() { unix.Close(fd) }
		}
	}
}

func (d *Device) close() {
	_ = d.server.Close()
	<-d.served
}
