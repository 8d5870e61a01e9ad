package vfs

import (
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
)

var errPowerOff = errors.New("the power is off")

// memTotal is the size that an unlimited Mem reports.
const memTotal = 1 << 40

// begin asks the hook and the faults and takes the lock. after is the error that
// the operation must report once it is done; err ends it at once, without the
// lock.
func (m *Mem) begin(op, name string) (after, err error) {
	v, err := m.beginRange(op, name, 0, -1)
	return v.after, err
}

// beginRange is begin for an operation on the bytes [off, off+n) of a file.
func (m *Mem) beginRange(op, name string, off, n int64) (v verdict, err error) {
	m.mu.Lock()
	if h := m.hook; h != nil {
		m.mu.Unlock()
		err := h(op, name)
		var a Applied
		switch {
		case errors.As(err, &a):
			v.after = a.Err
		case err != nil:
			return v, err
		}
		m.mu.Lock()
	}
	err = m.judge(&v, op, name, off, n)
	if err == nil && m.off {
		err = fault.New(fault.Unavailable, "vfs."+op, name, errPowerOff)
	}
	if err != nil {
		m.mu.Unlock()
	}
	return v, err
}

// cleanName is checkName for Mem: the clean path, "." for the root.
func cleanName(op, name string) (string, error) {
	if name == "" {
		return ".", nil
	}
	c := path.Clean(name)
	if strings.HasPrefix(c, "/") || c == ".." || strings.HasPrefix(c, "../") {
		return "", fault.Newf(fault.Invalid, op, name, "the name leaves the directory of the disk")
	}
	return c, nil
}

func (m *Mem) change(op dirOp) {
	op.dir = path.Dir(op.name)
	if op.kind == 'm' {
		op.dir = path.Dir(op.to)
	}
	m.now.apply(op)
	m.pending = append(m.pending, op)
}

func (m *Mem) unlink(n *inode) {
	n.links--
	if n.links == 0 && n.handles == 0 {
		m.used -= int64(len(n.pages)) * pageSize
	}
}

func (m *Mem) Create(name string) (File, error) {
	name, err := cleanName("vfs.create", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("create", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	switch {
	case m.now.files[name] != nil || m.now.dirs[name]:
		return nil, fault.New(fault.Exists, "vfs.create", name, os.ErrExist)
	case !m.now.dirs[path.Dir(name)]:
		return nil, fault.New(fault.NotFound, "vfs.create", name, os.ErrNotExist)
	}
	n := newInode()
	n.links, n.handles = 1, 1
	m.change(dirOp{kind: 'c', name: name, node: n})
	if after != nil {
		return nil, after
	}
	return &memFile{m: m, n: n, name: name}, nil
}

func (m *Mem) Open(name string) (File, error) {
	name, err := cleanName("vfs.open", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("open", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	n := m.now.files[name]
	if n == nil {
		return nil, fault.New(fault.NotFound, "vfs.open", name, os.ErrNotExist)
	}
	if after != nil {
		return nil, after
	}
	n.handles++
	return &memFile{m: m, n: n, name: name}, nil
}

func (m *Mem) Remove(name string) error {
	name, err := cleanName("vfs.remove", name)
	if err != nil {
		return err
	}
	after, err := m.begin("remove", name)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	n := m.now.files[name]
	if n == nil {
		return fault.New(fault.NotFound, "vfs.remove", name, os.ErrNotExist)
	}
	m.change(dirOp{kind: 'r', name: name})
	m.unlink(n)
	return after
}

func (m *Mem) Rename(oldname, newname string) error {
	from, err := cleanName("vfs.rename", oldname)
	if err != nil {
		return err
	}
	to, err := cleanName("vfs.rename", newname)
	if err != nil {
		return err
	}
	after, err := m.begin("rename", from)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	n := m.now.files[from]
	if n == nil || !m.now.dirs[path.Dir(to)] {
		return fault.New(fault.NotFound, "vfs.rename", from, os.ErrNotExist)
	}
	if old := m.now.files[to]; old != nil && old != n {
		m.unlink(old)
	}
	m.change(dirOp{kind: 'm', name: from, to: to, node: n})
	return after
}

func (m *Mem) List(dir string) ([]string, error) {
	dir, err := cleanName("vfs.list", dir)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("list", dir)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if !m.now.dirs[dir] {
		return nil, fault.New(fault.NotFound, "vfs.list", dir, os.ErrNotExist)
	}
	var names []string
	for d := range m.now.dirs {
		if d != "." && path.Dir(d) == dir {
			names = append(names, path.Base(d))
		}
	}
	for f := range m.now.files {
		if path.Dir(f) == dir {
			names = append(names, path.Base(f))
		}
	}
	slices.Sort(names)
	return names, after
}

func (m *Mem) MkdirAll(dir string) error {
	dir, err := cleanName("vfs.mkdir", dir)
	if err != nil {
		return err
	}
	after, err := m.begin("mkdir", dir)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		d := dir[:i]
		if m.now.files[d] != nil {
			return fault.Newf(fault.Invalid, "vfs.mkdir", d, "a file has this name")
		}
		if !m.now.dirs[d] {
			m.change(dirOp{kind: 'd', name: d})
		}
	}
	return after
}

func (m *Mem) SyncDir(dir string) error {
	dir, err := cleanName("vfs.syncdir", dir)
	if err != nil {
		return err
	}
	after, err := m.begin("syncdir", dir)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if !m.now.dirs[dir] {
		return fault.New(fault.NotFound, "vfs.syncdir", dir, os.ErrNotExist)
	}
	rest := m.pending[:0:0]
	for _, op := range m.pending {
		if op.dir == dir {
			m.durable.apply(op)
		} else {
			rest = append(rest, op)
		}
	}
	m.pending = rest
	return after
}

func (m *Mem) Free() (free, total int64, err error) {
	after, err := m.begin("free", "")
	if err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	total = m.capacity
	if total == 0 {
		total = memTotal
	}
	return max(0, total-m.used), total, after
}

func (m *Mem) Lock(name string) (func(), error) {
	name, err := cleanName("vfs.lock", name)
	if err != nil {
		return nil, err
	}
	after, err := m.begin("lock", name)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if after != nil {
		return nil, after
	}
	if m.locks[name] != nil {
		return nil, fault.Newf(fault.Busy, "vfs.lock", name, "another process holds the lock")
	}
	if !m.now.dirs[path.Dir(name)] {
		return nil, fault.New(fault.NotFound, "vfs.lock", name, os.ErrNotExist)
	}
	if m.now.files[name] == nil {
		n := newInode()
		n.links = 1
		m.change(dirOp{kind: 'c', name: name, node: n})
	}
	held := new(bool)
	m.locks[name] = held
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.locks[name] == held {
			delete(m.locks, name)
		}
	}, nil
}
