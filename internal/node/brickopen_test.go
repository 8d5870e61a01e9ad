package node

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/exporter"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/pki"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// A disk that hangs while its brick is opened holds up neither the other bricks nor the
// start: the brick is set aside, whichever operation it is that hangs.
func TestDiskThatHangsAtTheStart(t *testing.T) {
	for _, hang := range []vfs.Fault{
		{Op: "open", Name: "brick.json"},
		{Op: "sync", Name: "journal/"},
		{Op: "write", Name: "index-"},
		{Op: "syncdir"},
	} {
		t.Run(hang.Op+" "+hang.Name, func(t *testing.T) {
			dirs := t.TempDir()
			good, bad := filepath.Join(dirs, "good"), filepath.Join(dirs, "bad")
			m := vfs.NewMem()
			release := m.Hang(hang)
			defer release()
			n := &Node{segment: 1 << 20, poolID: ident.PoolID{1}, id: &pki.Identity{Node: ident.NodeID{1}}, stallMax: 300 * time.Millisecond,
				cfg: Config{Log: slog.New(slog.DiscardHandler)}, exp: exporter.New(exporter.Sources{}),
				newFS: func(path string) (vfs.FS, error) {
					if path == bad {
						return m, nil
					}
					return vfs.NewOS(path)
				}}
			var err error
			if n.dir, err = openDir(filepath.Join(dirs, "node")); err != nil {
				t.Fatal(err)
			}
			defer n.dir.close()
			n.dir.mem.Bricks = []string{bad, good}
			done := make(chan error, 1)
			go func() { done <- n.openBricks() }()
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the start waits for a disk that hangs")
			}
			defer func() {
				for _, b := range n.openedBricks() {
					if err := b.b.Close(); err != nil {
						t.Error(err)
					}
				}
			}()
			if bs := n.openedBricks(); len(bs) != 1 || bs[0].path != good || bs[0].b.Broken() != nil {
				t.Errorf("in use are %v", bs)
			}
			aside := n.asideList()
			if len(aside) != 1 || aside[0].Path != bad || !strings.Contains(aside[0].Reason, "has not answered") {
				t.Errorf("aside are %+v", aside)
			}
		})
	}
}
