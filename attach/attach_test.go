package attach

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/client"
	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
)

func TestAddressesThatOthersReach(t *testing.T) {
	st := &control.Status{Nodes: []control.Node{
		{Name: "a", Addr: "10.0.0.1:7400", NBD: "0.0.0.0:10809"},
		{Name: "b", Addr: "10.0.0.2:7400", NBD: "[::]:10810"},
		{Name: "off", Addr: "10.0.0.3:7400"},
		{Name: "away", Addr: "10.0.0.5:7400"},
		{Name: "here", Addr: "10.0.0.4:7400", NBD: "127.0.0.1:10809"},
	}}
	known := []client.Node{{Name: "away", Addr: "10.0.0.5:10809"}, {Name: "evicted", Addr: "10.0.0.6:10809"}, {Name: "a", Addr: "10.0.0.9:1"}}
	got := addresses(st, "here", known)
	want := []client.Node{{Name: "here", Addr: "127.0.0.1:10809"}, {Name: "a", Addr: "10.0.0.1:10809"}, {Name: "b", Addr: "10.0.0.2:10810"},
		{Name: "away", Addr: "10.0.0.5:10809"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if ask(t.TempDir(), known) != nil {
		t.Error("no node runs there")
	}
}

func testDirs(t *testing.T) Dirs {
	root := t.TempDir()
	d := Dirs{Run: filepath.Join(root, "run"), State: filepath.Join(root, "state"), Link: filepath.Join(root, "dev")}
	for _, p := range []string{d.Run, d.State, d.Link} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// The list says whether a process is behind each device, and what such a process
// has left is taken away without it.
func TestListAndDetachWithoutAProcess(t *testing.T) {
	d := testDirs(t)
	if got, err := List(d); err != nil || got == nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
	i := Info{Volume: "v", Kind: KindFUSE, Device: filepath.Join(d.Run, "loop77"), Link: filepath.Join(d.Link, "v")}
	if err := save(d.runFile("v"), i, false); err != nil {
		t.Fatal(err)
	}
	if err := link(i.Device, i.Link); err != nil {
		t.Fatal(err)
	}
	lock, err := d.lock("v", unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := List(d); err != nil || len(got) != 1 || !got[0].Running {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := d.lock("v", unix.LOCK_EX); !fault.Is(err, fault.Busy) {
		t.Errorf("a second process: %v", err)
	}
	lock.Close()
	if got, err := List(d); err != nil || len(got) != 1 || got[0].Running {
		t.Errorf("%+v %v", got, err)
	}
	if name, err := NameOf(d, "loop77"); name != "v" || err != nil {
		t.Errorf("%q %v", name, err)
	}
	if _, err := Detach(t.Context(), d, "v"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(i.Link); err == nil {
		t.Error("the name of the device is still there")
	}
	if _, err := Detach(t.Context(), d, "v"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := Detach(t.Context(), d, "../v"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// A device's name goes with it also when udev has made it, whose links are
// relative; another device's name stays.
func TestForgetTakesUdevsNameAway(t *testing.T) {
	d := testDirs(t)
	i := Info{Volume: "v", Device: filepath.Join(filepath.Dir(d.Link), "nbd77"), Link: filepath.Join(d.Link, "v")}
	for to, stays := range map[string]bool{"../nbd77": false, "../nbd78": true} {
		if err := link(to, i.Link); err != nil {
			t.Fatal(err)
		}
		forget(d, i)
		if _, err := os.Lstat(i.Link); (err == nil) != stays {
			t.Errorf("a link to %s: %v", to, err)
		}
	}
}

// The engine's last words, which come after the device is gone, leave no run file.
func TestNothingIsPublishedAfterTheEnd(t *testing.T) {
	d := testDirs(t)
	p := &process{cfg: Config{Volume: "v", Dirs: d}, moved: make(chan struct{}, 1), ready: true, info: Info{Volume: "v"}}
	p.changed(client.State{Moves: 1})
	if got, err := List(d); err != nil || len(got) != 1 || got[0].State.Moves != 1 {
		t.Errorf("%+v %v", got, err)
	}
	p.vanish()
	p.changed(client.State{Cause: "closed"})
	if got, err := List(d); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
}

// A client proves by its id and its count of starts that it is the one that
// comes back: both outlive the process.
func TestStartsAreCounted(t *testing.T) {
	d := testDirs(t)
	var id []byte
	for start := range uint32(3) {
		p := &process{cfg: Config{Volume: "v", Dirs: d}}
		if err := p.remember(); err != nil {
			t.Fatal(err)
		}
		if p.mem.Starts != start+1 || len(p.mem.ID) != 16 || id != nil && string(id) != string(p.mem.ID) {
			t.Errorf("start %d: %+v", start, p.mem)
		}
		id = p.mem.ID
	}
	if err := os.WriteFile(d.stateFile("v"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&process{cfg: Config{Volume: "v", Dirs: d}}).remember(); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a damaged file: %v", err)
	}
}
