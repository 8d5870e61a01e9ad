package vfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("got error %v, want kind %v", err, k)
	}
}

func newOS(t testing.TB) *OS {
	t.Helper()
	fs, err := NewOS(t.TempDir())
	must(t, err)
	t.Cleanup(func() { fs.Close() })
	return fs
}

// onBoth runs one test of the contract on every implementation.
func onBoth(t *testing.T, f func(t *testing.T, fs FS)) {
	t.Run("os", func(t *testing.T) { f(t, newOS(t)) })
	t.Run("mem", func(t *testing.T) { f(t, NewMem()) })
}

func create(t testing.TB, fs FS, name string) File {
	t.Helper()
	f, err := fs.Create(name)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func put(t testing.TB, f File, off int64, s string) {
	t.Helper()
	if n, err := f.WriteAt([]byte(s), off); err != nil || n != len(s) {
		t.Fatalf("write: %d %v", n, err)
	}
}

func get(t testing.TB, f File, off int64, n int) string {
	t.Helper()
	b := make([]byte, n)
	m, err := f.ReadAt(b, off)
	if err != nil && err != io.EOF {
		t.Fatalf("read: %v", err)
	}
	return string(b[:m])
}

func TestContractFiles(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		put(t, f, 3, "hello")
		if s := get(t, f, 0, 100); s != "\x00\x00\x00hello" {
			t.Fatalf("read %q", s)
		}
		if n, err := f.ReadAt(make([]byte, 10), 4); n != 4 || err != io.EOF {
			t.Fatalf("read over the end: %d %v, want 4 EOF", n, err)
		}
		if n, err := f.ReadAt(make([]byte, 1), 100); n != 0 || err != io.EOF {
			t.Fatalf("read behind the end: %d %v, want 0 EOF", n, err)
		}
		must(t, f.Sync())
		g, err := fs.Open("a")
		must(t, err)
		put(t, g, 0, "x")
		if s := get(t, f, 0, 4); s != "x\x00\x00h" {
			t.Fatalf("read %q through another handle", s)
		}
		must(t, g.Close())
		wantKind(t, g.Close(), fault.Invalid)
		_, err = g.ReadAt(make([]byte, 1), 0)
		wantKind(t, err, fault.Invalid)
		wantKind(t, g.Sync(), fault.Invalid)
		if g.(TryReader).TryReadAt(make([]byte, 1), 0) {
			t.Fatal("a closed file was read")
		}
	})
}

func TestContractVectors(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		var want []byte
		bufs := [][]byte{}
		for i := range 3000 { // over the limit of one call
			b := bytes.Repeat([]byte{byte(i)}, i%7)
			bufs, want = append(bufs, b), append(want, b...)
		}
		n, err := f.WritevAt(bufs, 5)
		if err != nil || n != len(want) {
			t.Fatalf("wrote %d of %d: %v", n, len(want), err)
		}
		if got := get(t, f, 5, len(want)+10); got != string(want) {
			t.Fatal("other bytes than written")
		}
		if len(bufs) != 3000 || len(bufs[6]) != 6 {
			t.Fatal("the caller's slice changed")
		}
	})
}

func TestContractTryRead(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		put(t, f, 0, "hello")
		try := f.(TryReader)
		b := make([]byte, 5)
		if !try.TryReadAt(b, 0) || string(b) != "hello" {
			t.Fatalf("bytes just written are not in memory: %q", b)
		}
		if try.TryReadAt(make([]byte, 6), 0) {
			t.Fatal("a read over the end was whole")
		}
		if !try.TryReadAt(nil, 0) || try.TryReadAt(b, -1) {
			t.Fatal("empty or negative range")
		}
		if n := testing.AllocsPerRun(100, func() { try.TryReadAt(b, 0) }); n > 0 {
			t.Fatalf("%v allocations", n)
		}
	})
}

func TestContractDirectReads(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		want := make([]byte, 3*directMax+777)
		for i := range want {
			want[i] = byte(i * 7 >> 3)
		}
		put(t, f, 0, string(want))
		must(t, f.Sync())
		size := int64(len(want))
		for _, r := range [][2]int64{{0, 1}, {0, size}, {4096, 4096}, {4095, 2}, {5000, 2 * directMax}, {size - 1, 1}} {
			got := make([]byte, r[1])
			n, err := ReadDirect(f, got, r[0])
			if err != nil || int64(n) != r[1] || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
				t.Fatalf("[%d,+%d): %d bytes, %v, or other ones", r[0], r[1], n, err)
			}
		}
		for _, r := range [][2]int64{{size - 10, 20}, {size, 1}, {size + 5000, 1}, {size - 5000, 9000}} {
			got := make([]byte, r[1])
			n, err := ReadDirect(f, got, r[0])
			if err != io.EOF || int64(n) != max(0, size-r[0]) || !bytes.Equal(got[:n], want[min(r[0], size):]) {
				t.Fatalf("[%d,+%d) over the end: %d bytes, %v", r[0], r[1], n, err)
			}
		}
	})
}

func TestContractDirectWrites(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		want := make([]byte, 3*directMax+5*directAlign)
		for i := range want {
			want[i] = byte(i * 7 >> 3)
		}
		// What the cache has of the range, of a hole here, must not be read any more.
		put(t, f, int64(len(want)), "behind")
		get(t, f, 0, len(want))
		for at := 0; at < len(want); {
			end := min(len(want), at+directMax+3*directAlign)
			var bufs [][]byte
			for b := at; b < end; b += 60000 {
				bufs = append(bufs, want[b:min(end, b+60000)])
			}
			must(t, WriteDirect(f, bufs, int64(at)))
			at = end
		}
		must(t, f.Sync())
		if get(t, f, 0, len(want)+10) != string(want)+"behind" {
			t.Fatal("other bytes than written")
		}
		got := make([]byte, len(want))
		if n, err := ReadDirect(f, got, 0); n != len(want) || err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the disk has other bytes: %d, %v", n, err)
		}
		must(t, f.Close())
		wantKind(t, WriteDirect(f, [][]byte{want[:directAlign]}, 0), fault.Invalid)
	})
}

// A file system without O_DIRECT takes direct writes too.
func TestDirectWriteWithoutSupport(t *testing.T) {
	fs, err := NewOS(t.TempDir())
	must(t, err)
	f := create(t, fs, "a").(*osFile)
	f.directOnce.Do(func() { f.direct = -1 })
	must(t, f.WriteDirectAt([][]byte{bytes.Repeat([]byte("x"), directAlign)}, 0))
	if get(t, f, 0, directAlign+1) != string(bytes.Repeat([]byte("x"), directAlign)) {
		t.Fatal("other bytes than written")
	}
}

func TestContractSizes(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		put(t, f, 0, "hello")
		must(t, f.Truncate(2))
		must(t, f.Truncate(4))
		if s := get(t, f, 0, 10); s != "he\x00\x00" {
			t.Fatalf("after shrinking and growing: %q", s)
		}
		if n, err := f.Size(); n != 4 || err != nil {
			t.Fatalf("size %d %v", n, err)
		}
	})
}

func TestContractHoles(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		f := create(t, fs, "a")
		put(t, f, 0, string(bytes.Repeat([]byte("x"), 5*4096)))
		must(t, f.PunchHole(4096, 2*4096))
		got := get(t, f, 0, 5*4096+1)
		want := string(bytes.Repeat([]byte("x"), 4096)) + string(make([]byte, 2*4096)) +
			string(bytes.Repeat([]byte("x"), 2*4096))
		if got != want {
			t.Fatal("other bytes than the hole leaves")
		}
		wantKind(t, f.PunchHole(0, 0), fault.Invalid)
	})
}

func TestContractNames(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		_, err := fs.Open("a")
		wantKind(t, err, fault.NotFound)
		wantKind(t, fs.Remove("a"), fault.NotFound)
		wantKind(t, fs.Rename("a", "b"), fault.NotFound)
		_, err = fs.List("d")
		wantKind(t, err, fault.NotFound)
		_, err = fs.Create("d/a")
		wantKind(t, err, fault.NotFound)
		must(t, fs.MkdirAll("d/e"))
		must(t, fs.MkdirAll("d/e"))
		f := create(t, fs, "d/a")
		put(t, f, 0, "one")
		_, err = fs.Create("d/a")
		wantKind(t, err, fault.Exists)
		g := create(t, fs, "d/b")
		put(t, g, 0, "two")
		must(t, fs.Rename("d/a", "d/b"))
		must(t, fs.SyncDir("d"))
		must(t, fs.SyncDir("."))
		h, err := fs.Open("d/b")
		must(t, err)
		if s := get(t, h, 0, 9); s != "one" {
			t.Fatalf("renamed file has %q", s)
		}
		if s := get(t, g, 0, 9); s != "two" {
			t.Fatalf("replaced file has %q for those who have it open", s)
		}
		must(t, h.Close())
		names, err := fs.List("d")
		if err != nil || !slices.Equal(names, []string{"b", "e"}) {
			t.Fatalf("listed %v %v", names, err)
		}
		names, err = fs.List(".")
		if err != nil || !slices.Equal(names, []string{"d"}) {
			t.Fatalf("listed %v %v", names, err)
		}
		must(t, fs.Remove("d/b"))
		if ok, err := Exists(fs, "d/b"); ok || err != nil {
			t.Fatalf("removed file exists: %v %v", ok, err)
		}
	})
}

func TestContractRefusesEscapes(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		for _, name := range []string{"../x", "/etc/passwd", "a/../../x", ".."} {
			_, err := fs.Create(name)
			wantKind(t, err, fault.Invalid)
			_, err = fs.Open(name)
			wantKind(t, err, fault.Invalid)
			wantKind(t, fs.Remove(name), fault.Invalid)
			wantKind(t, fs.Rename(name, "x"), fault.Invalid)
			wantKind(t, fs.Rename("x", name), fault.Invalid)
			_, err = fs.List(name)
			wantKind(t, err, fault.Invalid)
			wantKind(t, fs.MkdirAll(name), fault.Invalid)
			wantKind(t, fs.SyncDir(name), fault.Invalid)
			_, err = fs.Lock(name)
			wantKind(t, err, fault.Invalid)
		}
	})
}

func TestOSRefusesLinksOut(t *testing.T) {
	fs := newOS(t)
	must(t, os.Symlink("/etc", filepath.Join(fs.Dir(), "out")))
	if _, err := fs.Open("out/passwd"); err == nil {
		t.Fatal("a symbolic link led out of the directory")
	}
}

func TestContractLock(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		unlock, err := fs.Lock("LOCK")
		must(t, err)
		_, err = fs.Lock("LOCK")
		wantKind(t, err, fault.Busy)
		unlock()
		unlock()
		unlock, err = fs.Lock("LOCK")
		must(t, err)
		unlock()
	})
}

func TestContractFree(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		free, total, err := fs.Free()
		if err != nil || free <= 0 || total < free {
			t.Fatalf("free %d of %d: %v", free, total, err)
		}
	})
}

func TestContractWriteFileAtomic(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS) {
		must(t, fs.MkdirAll("d"))
		for i := range 3 {
			want := fmt.Sprint("content ", i)
			must(t, WriteFileAtomic(fs, "d/f", []byte(want)))
			got, err := ReadFile(fs, "d/f", 100)
			if err != nil || string(got) != want {
				t.Fatalf("read %q %v", got, err)
			}
		}
		_, err := ReadFile(fs, "d/f", 3)
		wantKind(t, err, fault.Corrupt)
		names, _ := fs.List("d")
		if !slices.Equal(names, []string{"f"}) {
			t.Fatalf("left over: %v", names)
		}
	})
}

// TestOSCloseWaits closes a file under readers: the descriptor's number must
// not serve a read of another file.
func TestOSCloseWaits(t *testing.T) {
	fs := newOS(t)
	f := create(t, fs, "a")
	put(t, f, 0, "aaaa")
	done := make(chan error)
	started := make(chan struct{})
	go func() {
		b := make([]byte, 4)
		for i := 0; ; i++ {
			n, err := f.ReadAt(b, 0)
			if i == 0 {
				close(started)
			}
			if err != nil {
				done <- err
				return
			}
			if string(b[:n]) != "aaaa" {
				done <- fmt.Errorf("read %q of another file", b)
				return
			}
		}
	}()
	<-started
	must(t, f.Close())
	g := create(t, fs, "b")
	put(t, g, 0, "bbbb")
	wantKind(t, <-done, fault.Invalid)
}
