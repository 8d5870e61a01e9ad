package control

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
)

// sunPathMax is the longest path that fits into a unix socket address
// (sun_path of unix(7), less its terminating zero).
const sunPathMax = 107

// Listen makes dir/gabion.sock with mode 0600. The socket is made under
// another name and renamed, so that it is never there with another mode and a
// stale one is replaced. Closing the listener removes it. Busy when a live
// process listens there.
func Listen(dir string) (net.Listener, error) {
	const op = "control.listen"
	path := filepath.Join(dir, SocketName)
	if c, err := dial(context.Background(), dir); err == nil {
		_ = c.Close()
		return nil, fault.Newf(fault.Busy, op, path,
			"another gabion node runs in this directory; stop it or use another --dir")
	}
	fresh := SocketName + ".new"
	if err := os.Remove(filepath.Join(dir, fresh)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(kindOfOS(err), op, path, err)
	}
	addr, done, err := address(dir, fresh)
	if err != nil {
		return nil, fault.New(kindOfOS(err), op, path, err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fault.New(kindOfOS(err), op, path, err)
	}
	l.SetUnlinkOnClose(false) // it would remove by the name before the rename
	err = os.Chmod(filepath.Join(dir, fresh), 0o600)
	if err == nil {
		err = os.Rename(filepath.Join(dir, fresh), path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fault.New(kindOfOS(err), op, path, err)
	}
	return &listener{UnixListener: l, path: path}, nil
}

type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil { // only the first Close removes: the name may be another's later
		err = os.Remove(l.path)
	}
	return err
}

// address names dir/name in a way that fits into a socket address, however
// long dir is: through an open descriptor of dir if need be. done releases it
// and is called once bind or connect has returned.
func address(dir, name string) (addr string, done func(), err error) {
	path := filepath.Join(dir, name)
	if len(path) <= sunPathMax {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	addr = "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/" + name
	return addr, func() { _ = f.Close() }, nil
}

func dial(ctx context.Context, dir string) (net.Conn, error) {
	addr, done, err := address(dir, SocketName)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", addr)
}

func kindOfOS(err error) fault.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.NotFound
	case errors.Is(err, fs.ErrPermission):
		return fault.Denied
	case errors.Is(err, syscall.ENOSPC):
		return fault.NoSpace
	}
	return fault.Internal
}
