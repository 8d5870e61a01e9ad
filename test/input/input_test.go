// Package input gives a pool what no pool should have to expect: each must end
// in an error that tells what is wrong, never in a panic, a hang or a loss.
package input

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// refused demands that a command failed as it should: with the exit code, one
// or two lines, no stack, and the words that a person needs.
func refused(t *testing.T, what string, r cluster.Result, code int, words ...string) {
	t.Helper()
	text := strings.TrimSpace(r.Err)
	switch {
	case r.Code != code:
		t.Errorf("%s: exit %d, want %d: %s%s", what, r.Code, code, r.Out, text)
	case strings.Contains(text, "panic") || strings.Contains(text, "goroutine "):
		t.Errorf("%s: %s", what, text)
	case text == "":
		t.Errorf("%s: no word about it", what)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			t.Errorf("%s: %q is not in: %s", what, w, text)
		}
	}
}

func TestBadCommands(t *testing.T) {
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	c.CreateVolume(t, n, "good", "64M", "--replicas", "1")
	for _, x := range []struct {
		args  string
		code  int
		words []string
	}{
		{"volume create bad/name --size 1G", 1, []string{"name"}},
		{"volume create .. --size 1G", 1, []string{"name"}},
		{"volume create -- -x --size 1G", 2, nil},
		{"volume create " + strings.Repeat("x", 300) + " --size 1G", 1, []string{"name"}},
		{"volume create bl\u00e4nk --size 1G", 1, []string{"name"}},
		{"volume create good --size 1G", 1, []string{"good"}},
		{"volume create v --size 0", -2, nil},
		{"volume create v --size -1G", 2, []string{"size"}},
		{"volume create v --size 100", 1, []string{"1 MiB"}},
		{"volume create v --size 8E", -2, []string{"size"}},
		{"volume create v --size 99999999999999999999G", 2, []string{"size"}},
		{"volume create v --size 1G --block-size 1000", -2, []string{"block"}},
		{"volume create v --size 1G --replicas 0", -2, nil},
		{"volume create v --size 1G --replicas 99", -2, []string{"replicas"}},
		{"volume resize good --size 1M", 1, []string{"size"}},
		{"volume resize absent --size 1G", 1, []string{"absent"}},
		{"volume show absent", 1, []string{"absent"}},
		{"volume attach absent", 1, []string{"absent"}},
		{"volume delete absent --yes", 1, []string{"absent"}},
	} {
		r := n.CLI(strings.Fields(x.args)...)
		if x.code == -2 && (r.Code == 1 || r.Code == 2) {
			x.code = r.Code // either side may be the one that knows the rule
		}
		refused(t, x.args, r, x.code, x.words...)
	}
	// Without --yes nothing is deleted.
	if r := n.CLI("volume", "delete", "good"); r.Code == 0 {
		t.Error("a volume was deleted without --yes")
	}
	if _, err := n.Do("volume", "show", "good"); err != nil {
		t.Error(err)
	}
	refused(t, "no node there", cluster.Run(c.Binary, nil, "--dir", filepath.Join(c.Dir, "nowhere"), "status"), 1, "no gabion node")
	if _, err := nbdclient.Dial(n.Info.NBD, "absent"); err == nil {
		t.Error("an absent export was opened")
	} else if refusal := new(nbdclient.Refused); !errors.As(err, &refusal) {
		t.Errorf("an absent export: %v", err)
	}
	// A volume in use is not deleted under its client.
	client := n.Dial(t, "good")
	refused(t, "delete in use", n.CLI("volume", "delete", "good", "--yes"), 1, "good")
	if err := client.Flush(); err != nil {
		t.Error(err)
	}
}

// start tries to run a node that must not come up, and returns how it ended.
func start(t *testing.T, c *cluster.Cluster, dir string, args ...string) cluster.Result {
	t.Helper()
	return cluster.Run(c.Binary, nil, append([]string{"--dir", dir, "node", "run", "--listen", "127.0.0.1:0",
		"--nbd", "127.0.0.1:0", "--iscsi", "127.0.0.1:0", "--http", "127.0.0.1:0", "--name", "bad"}, args...)...)
}

func TestBadStarts(t *testing.T) {
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	other := cluster.New(t, 1).Nodes[0]
	token, err := n.Do("pool", "token")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Do("pool", "token")
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() string { return filepath.Join(cluster.WorkDir(t), "bad") }

	refused(t, "a second node in one directory", start(t, c, n.Dir), 1, n.Dir)
	refused(t, "a damaged token", start(t, c, fresh(), "--join", n.Info.Listen, "--token", damaged(token)), 1, "token")
	refused(t, "half a token", start(t, c, fresh(), "--join", n.Info.Listen, "--token", token[:len(token)/2]), 1, "token")
	refused(t, "no token", start(t, c, fresh(), "--join", n.Info.Listen), 2, "--token")
	refused(t, "the token of another pool", start(t, c, fresh(), "--join", n.Info.Listen, "--token", foreign), 1, "pool")
	refused(t, "nobody there", start(t, c, fresh(), "--join", "127.0.0.1:1", "--token", token), 1, "127.0.0.1:1")
	refused(t, "not a node there", start(t, c, fresh(), "--join", n.Info.HTTP, "--token", token), 1, n.Info.HTTP)
	refused(t, "a taken port", start(t, c, fresh(), "--listen", n.Info.Listen), 1, n.Info.Listen)
	refused(t, "a taken NBD port", start(t, c, fresh(), "--nbd", n.Info.NBD), 1, n.Info.NBD)
	refused(t, "an address that is none", start(t, c, fresh(), "--listen", "nonsense"), 1, "nonsense")
	file := filepath.Join(cluster.WorkDir(t), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, "a file as directory", start(t, c, file), 1, file)
	refused(t, "a file as brick", start(t, c, fresh(), "--brick", file), 1, file)

	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	brick := brickOf(t, other.Dir)
	refused(t, "the brick of another pool", start(t, c, fresh(), "--brick", brick), 1, "pool")
	if err := other.Start(); err != nil {
		t.Errorf("the pool whose brick was tried elsewhere does not start: %v", err)
	}
	if _, err := n.Do("status"); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// damaged flips one character in the middle.
func damaged(token string) string {
	b := []byte(token)
	i := len(b) / 2
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// brickOf finds the brick inside a node's directory: the place of its journal.
func brickOf(t *testing.T, dir string) (brick string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "journal" {
			brick = filepath.Dir(path)
		}
		return nil
	})
	if brick == "" {
		t.Fatal("no brick in " + dir)
	}
	return brick
}

// Each small file of a node's directory is damaged in turn. The node either
// does without it or says which file is bad; with the file put back it is
// well again.
func TestDamagedDirectory(t *testing.T) {
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	c.CreateVolume(t, n, "v", "64M", "--replicas", "1")
	client := n.Dial(t, "v")
	p := []byte(strings.Repeat("stone by ", 8192)[:65536])
	if err := client.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	var files []string
	filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil && fi.Size() > 0 && fi.Size() < 1<<20 {
				files = append(files, path)
			}
		}
		return nil
	})
	refusals := 0
	for _, f := range files {
		for _, damage := range []struct {
			name string
			do   func([]byte) []byte
		}{
			{"emptied", func([]byte) []byte { return nil }},
			{"garbled", func(b []byte) []byte { return []byte(strings.Repeat("\xde\xad", len(b)/2+1)[:len(b)]) }},
		} {
			good, err := os.ReadFile(f)
			if err != nil {
				continue // it went away with an earlier start
			}
			if err := os.WriteFile(f, damage.do(good), 0o600); err != nil {
				t.Fatal(err)
			}
			rel, _ := filepath.Rel(n.Dir, f)
			before := len(n.LogTail(1 << 20))
			err = n.Start()
			if err == nil {
				if err := n.Kill(); err != nil {
					t.Fatal(err)
				}
			} else {
				refusals++
				log := n.LogTail(1 << 20)[before:]
				if strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
					t.Errorf("%s %s: %s", rel, damage.name, log)
				} else if !strings.Contains(log, filepath.Base(f)) {
					t.Errorf("%s %s: the refusal does not name the file: %s", rel, damage.name, log)
				}
				n.Kill()
			}
			if err := os.WriteFile(f, good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d files damaged two ways, %d starts refused", len(files), refusals)
	if refusals == 0 {
		t.Error("no damage was ever noticed")
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	// A brick that was found damaged comes back by a person's word only.
	if out, err := n.Do("brick", "readmit", filepath.Join(n.Dir, "brick")); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	got := make([]byte, len(p))
	if err := n.Dial(t, "v").ReadAt(got, 0); err != nil || string(got) != string(p) {
		t.Fatalf("with all files put back the data is not: %v", err)
	}
}

// A pool without space refuses writes with ENOSPC, reads and trims go on, and
// trimming makes it writable again, also after a restart.
func TestFullDisk(t *testing.T) {
	cluster.Need(t, true, "mount", "umount")
	c := cluster.Empty(t)
	disk := filepath.Join(c.Dir, "disk")
	if err := os.MkdirAll(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("rig", disk, "tmpfs", 0, "size=640m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, 0) })
	t.Cleanup(func() { c.Stop() }) // before the disk goes away
	n := c.Add()
	n.Bricks = []string{filepath.Join(disk, "brick")}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Do("volume", "create", "v", "--size", "2G", "--replicas", "1"); err != nil {
		t.Fatal(err)
	}
	client := n.Dial(t, "v")
	const chunk = 1 << 20
	content := func(i int64) []byte {
		b := make([]byte, chunk)
		x := uint64(i + 1)
		for j := range b {
			x = x*6364136223846793005 + 1442695040888963407
			b[j] = byte(x >> 56)
		}
		return b
	}
	// Fill until it is refused. The refusal may come with a write or a flush.
	var safe int64
	var full error
	for i := int64(0); i < 2<<30/chunk && full == nil; i++ {
		if full = client.WriteAt(content(i), i*chunk); full == nil {
			if full = client.Flush(); full == nil {
				safe = i + 1
			}
		}
	}
	t.Logf("%d MiB went in, then: %v", safe, full)
	if !errors.Is(full, syscall.ENOSPC) {
		t.Fatalf("a full disk gives %v", full)
	}
	if safe < 100 {
		t.Errorf("only %d of 640 MiB could be used", safe)
	}
	check := func(when string, from int64) {
		t.Helper()
		got := make([]byte, chunk)
		for i := from; i < safe; i += 7 {
			if err := client.ReadAt(got, i*chunk); err != nil || string(got) != string(content(i)) {
				t.Fatalf("%s: chunk %d of %d: %v", when, i, safe, err)
			}
		}
	}
	check("while full", 0)
	if s, err := n.Status(); err != nil {
		t.Error(err)
	} else if s.Bricks[0].State == "broken" {
		t.Error("a full disk counts as broken")
	}
	client.Close()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatalf("does not start on a full disk: %v", err)
	}
	client = n.Dial(t, "v")
	check("after a restart", 0)
	half := safe / 2
	if err := client.Trim(0, int(half*chunk)); err != nil {
		t.Fatalf("trim on a full disk: %v", err)
	}
	if err := client.Flush(); err != nil {
		t.Fatalf("flush on a full disk: %v", err)
	}
	_, err := n.Await(30*time.Second, func(*control.Status) error {
		if err := client.WriteAt(content(0), 0); err != nil {
			return fmt.Errorf("no write after half was trimmed: %w", err)
		}
		return client.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	check("after the trim", half)
}
