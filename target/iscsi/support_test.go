package iscsi_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/iscsi"
	"github.com/gabion-storage/gabion/target/iscsi/login"
	"github.com/gabion-storage/gabion/target/iscsi/scsi"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const iqn = "iqn.2026-11.test:"

// shelf is an iscsi.Targets over devices in memory.
type shelf struct {
	discovery login.Auth

	mu      sync.Mutex
	entries map[string]*entry
}

type entry struct {
	iscsi.Target
	portals []iscsi.Portal
	lu      *scsi.LU
	dev     target.Device
	gone    chan struct{}
	open    int
}

func newShelf() *shelf { return &shelf{entries: map[string]*entry{}} }

// add makes a target of dev.
func (s *shelf) add(name string, dev target.Device) *entry {
	e := &entry{Target: iscsi.Target{Name: iqn + name, Alias: name}, dev: dev, gone: make(chan struct{})}
	e.lu = scsi.NewLU(scsi.Config{
		Identity: scsi.Identity{Volume: ident.VolumeID{byte(len(name)), 2, 3, 15: 9}, Target: e.Name, Port: 1},
		Backend:  &backend{dev},
	})
	s.mu.Lock()
	s.entries[e.Name] = e
	s.mu.Unlock()
	return e
}

func (s *shelf) PortalGroup() uint16   { return 1 }
func (s *shelf) Discovery() login.Auth { return s.discovery }

func (s *shelf) Find(name string) (iscsi.Target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[name]; e != nil {
		return e.Target, nil
	}
	return iscsi.Target{}, fault.Newf(fault.NotFound, "find", name, "no such target")
}

func (s *shelf) List() []iscsi.Listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []iscsi.Listing
	for _, e := range s.entries {
		out = append(out, iscsi.Listing{Target: e.Target, Portals: e.portals})
	}
	slices.SortFunc(out, func(a, b iscsi.Listing) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *shelf) Open(_ context.Context, name, _, _ string) (iscsi.Unit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	e.open++
	return iscsi.Unit{LU: e.lu, Gone: e.gone, Close: func() {
		s.mu.Lock()
		e.open--
		s.mu.Unlock()
	}}, nil
}

func (s *shelf) used(e *entry) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.open
}

// backend is a scsi.Backend that is always attached.
type backend struct{ dev target.Device }

func (b *backend) Geometry() scsi.Geometry {
	return scsi.Geometry{Size: b.dev.Size(), BlockSize: b.dev.BlockSize(), ReadOnly: b.dev.ReadOnly(), WriteCache: true}
}
func (b *backend) Device() target.Device                               { return b.dev }
func (b *backend) Attach(context.Context) (target.Device, error)       { return b.dev, nil }
func (b *backend) SetState(context.Context, uint16, scsi.Access) error { return nil }
func (b *backend) Groups() []scsi.PortGroup {
	return []scsi.PortGroup{{ID: 1, State: scsi.ActiveOptimized, Ports: []uint16{1}}}
}

// rig is a server on loopback.
type rig struct {
	t    testing.TB
	srv  *iscsi.Server
	addr string
	*shelf
}

// serve starts a server with s; tune may change its configuration.
func serve(t testing.TB, s *shelf, tune func(*iscsi.Config)) *rig {
	t.Helper()
	cfg := iscsi.Config{Targets: s}
	if tune != nil {
		tune(&cfg)
	}
	srv, err := iscsi.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.entries {
			if e.open != 0 {
				t.Errorf("%s: %d sessions are not closed", e.Name, e.open)
			}
			e.lu.Close()
		}
	})
	return &rig{t: t, srv: srv, addr: l.Addr().String(), shelf: s}
}

// memory starts a server with one volume of 1 MiB in 512 byte blocks.
func memory(t *testing.T, tune func(*iscsi.Config)) (*rig, *targettest.Memory) {
	m := targettest.NewMemory(1<<20, 512)
	s := newShelf()
	s.add("v", m)
	return serve(t, s, tune), m
}

// login begins a session with the volume "v".
func (r *rig) login(cfg iscsiclient.Config) *iscsiclient.Client {
	r.t.Helper()
	if cfg.Target == "" {
		cfg.Target = iqn + "v"
	}
	c, err := iscsiclient.Login(r.addr, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// ready is login, and takes the unit attentions that a new session meets.
func (r *rig) ready(cfg iscsiclient.Config) *iscsiclient.Client {
	r.t.Helper()
	c := r.login(cfg)
	for range 5 {
		cmd := &iscsiclient.Command{CDB: make([]byte, 6)}
		if err := c.Do(cmd); err != nil {
			r.t.Fatal(err)
		}
		if cmd.Status == 0 {
			return c
		}
	}
	r.t.Fatal("the unit does not get ready")
	return nil
}

// good carries out a command that must succeed.
func good(t *testing.T, c *iscsiclient.Client, cmd *iscsiclient.Command) *iscsiclient.Command {
	t.Helper()
	if err := c.Do(cmd); err != nil {
		t.Fatal(err)
	}
	if cmd.Status != 0 {
		t.Fatal(cmd)
	}
	return cmd
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatal(what)
		}
		time.Sleep(time.Millisecond)
	}
}

func keys(kv ...string) (out []login.Pair) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, login.Pair{Key: kv[i], Value: kv[i+1]})
	}
	return out
}
