package failure

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
)

// rotBlocks is how many blocks of noise the volume holds; noise is a block that does not
// shrink, so that its bytes are found in files.
const rotBlocks = 64

func noise(b int) []byte {
	p := make([]byte, 4096)
	rand.New(rand.NewSource(int64(b) + 1)).Read(p)
	return p
}

// writeNoise writes all blocks through a node, durably.
func writeNoise(t *testing.T, n *cluster.Node) {
	t.Helper()
	c := n.Dial(t, "v")
	defer c.Close()
	for b := range rotBlocks {
		if err := c.WriteAt(noise(b), int64(b)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// readNoise demands all blocks from a node, which has to take the volume, and those of
// its snapshot.
func readNoise(t *testing.T, n *cluster.Node, what string) {
	t.Helper()
	n.Takeover(t, "v")
	for _, export := range []string{"v", "v@s"} {
		c := n.Dial(t, export)
		for b := range rotBlocks {
			p := make([]byte, 4096)
			if err := c.ReadAt(p, int64(b)*4096); err != nil {
				t.Fatalf("%s: block %d of %s: %v", what, b, export, err)
			}
			if !bytes.Equal(p, noise(b)) {
				t.Fatalf("%s: block %d of %s has other bytes than were written", what, b, export)
			}
		}
		c.Close()
	}
}

// flipAt flips a bit of a file of a running node, in the page cache and on the disk.
func flipAt(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	_, err = f.ReadAt(p, off)
	p[0] ^= 0x10
	if err == nil {
		_, err = f.WriteAt(p, off)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// flipData flips a bit in each place where files hold a block, and tells how many.
func flipData(t *testing.T, block []byte, files ...string) (n int) {
	t.Helper()
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; ; at += 4096 {
			i := bytes.Index(b[at:], block[:256])
			if i < 0 {
				break
			}
			at += i
			flipAt(t, name, int64(at)+100)
			n++
		}
	}
	return n
}

// flipUsed flips a bit in the middle of what a file has in use.
func flipUsed(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(b, "\x00"))
	flipAt(t, name, int64(used)-8)
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatal("no file ", pattern, err)
	}
	return names
}

// scrubbed flips bits and scrubs a node until that finds damage, or (flip nil) none, and
// returns its one brick then, or when it is aside.
func scrubbed(t *testing.T, n *cluster.Node, flip func() int) (found control.Brick) {
	t.Helper()
	var err error
	for range 6 { // what is damaged may go out of use meanwhile; a read may not have healed all yet
		if flip != nil && flip() == 0 {
			t.Fatal("there is nothing to damage")
		}
		if out, err := n.Do("scrub", "start"); err != nil {
			t.Fatal(err, out)
		}
		_, err = n.Await(10*time.Second, func(s *control.Status) error {
			i := slices.IndexFunc(s.Bricks, func(b control.Brick) bool { return b.Node == n.Name })
			if i < 0 {
				return errors.New("no brick")
			}
			found = s.Bricks[i]
			x := found.Scrub
			if found.State != "aside" && (x == nil || x.Running || x.LastUnixSeconds == 0 || x.Damaged > 0 != (flip != nil)) {
				return fmt.Errorf("scrub of %s: %+v", n.Name, x)
			}
			return nil
		})
		if err == nil {
			return found
		}
	}
	t.Fatal(err)
	return found
}

// A bit flips in each kind of file of a node that runs. No client ever gets what it did to
// the data; a scrub finds it and heals it from other nodes. What cannot be healed, the promises
// of a brick, takes the brick out of use, which says so; it is replaced while the node runs.
func TestBitsFlipInEachKindOfFile(t *testing.T) {
	c := cluster.New(t, 3)
	c.CreateVolume(t, c.Nodes[0], "v", "64M", "--replicas", "3")
	n := c.Nodes[2]
	brick := brickDir(t, n)
	writeNoise(t, c.Nodes[0])
	if out, err := c.Nodes[0].Do("volume", "snapshot", "create", "v", "s"); err != nil { // which folds the log
		t.Fatal(err, out)
	}
	if _, err := n.Await(redundancyTimeout, cluster.Redundant("v")); err != nil {
		t.Fatal(err)
	}
	extents := func() int { return flipData(t, noise(7), files(t, filepath.Join(brick, "extents", "*"))...) }
	journal := func() int {
		writeNoise(t, c.Nodes[0]) // an idle log is folded
		evenly(t, n, "v")
		return flipData(t, noise(9), files(t, filepath.Join(brick, "journal", "*"))...)
	}
	index := func() int {
		for _, f := range files(t, filepath.Join(brick, "index-*")) {
			flipUsed(t, f)
		}
		return 1
	}
	for _, kind := range []struct {
		name string
		flip func() int
	}{{"extents", extents}, {"journal", journal}, {"index", index}} {
		b := scrubbed(t, n, kind.flip)
		if b.State != "ok" || b.Scrub.Repaired != b.Scrub.Damaged {
			t.Fatalf("%s: %s %s, scrub %+v", kind.name, b.State, b.Reason, b.Scrub)
		}
		t.Logf("%s: %d damaged, %d repaired", kind.name, b.Scrub.Damaged, b.Scrub.Repaired)
		if b := scrubbed(t, n, nil); b.State != "ok" {
			t.Fatalf("%s: after it was healed: %s", kind.name, b.Reason)
		}
	}
	if extents() == 0 {
		t.Fatal("there is nothing to damage")
	}
	readNoise(t, n, "from damaged extents")
	if b := scrubbed(t, n, nil); b.State != "ok" {
		t.Fatal(b.Reason)
	}
	if err := errors.Join(n.Kill(), n.Start()); err != nil {
		t.Fatal(err)
	}
	readNoise(t, n, "after a restart")
	replaceForgetful(t, c, n, brick)
}

// replaceForgetful damages the promises of a node's brick: it must not vote any more. A new
// brick in its place does.
func replaceForgetful(t *testing.T, c *cluster.Cluster, n *cluster.Node, brick string) {
	t.Helper()
	stable := filepath.Join(brick, "stable.db")
	promises := func() (flipped int) {
		b, err := os.ReadFile(stable)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; ; flipped++ {
			i := bytes.Index(b[at:], []byte("g/")) // the key of a group's promises, before its value
			if i < 0 {
				return flipped
			}
			at += i + 2
			flipAt(t, stable, int64(at)+100)
		}
	}
	if b := scrubbed(t, n, promises); b.State != "aside" || !strings.Contains(b.Reason, "stable") {
		t.Fatalf("a brick that cannot know what it promised is %s: %q, scrub %+v", b.State, b.Reason, b.Scrub)
	}
	readNoise(t, c.Nodes[0], "beside a brick that is aside")
	if err := os.RemoveAll(brick); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Do("brick", "readmit", brick); err != nil {
		t.Fatal(err, out)
	}
	if _, err := n.Await(redundancyTimeout, both(brickIs(n.Name, "ok"), cluster.Redundant("v"))); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	readNoise(t, n, "from a new brick")
}

// brickDir is where the brick of a node is.
func brickDir(t *testing.T, n *cluster.Node) string {
	t.Helper()
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Bricks {
		if b.Node == n.Name {
			return b.Path
		}
	}
	t.Fatal("no brick of " + n.Name)
	return ""
}
