package lint

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// allowed says which packages of this module each package may import. A
// package that is missing here is an error: a new package is a decision. The
// order is the order of the layers; nothing may import what stands below it.
var allowed = []struct {
	pkg   string
	from  []string
	cause string // of an arrow that the layers alone would not give
}{
	{"internal/mutant", nil, "deliberate defects; everybody may have some"},
	{"internal/fault", nil, ""},
	{"internal/ident", nil, ""},
	{"internal/vfs", []string{"internal/fault"}, ""},
	{"internal/gentle", nil, ""},
	{"internal/lend", nil, ""},
	{"internal/pki", []string{"internal/fault", "internal/ident"}, ""},
	{"internal/link", []string{"internal/fault", "internal/gentle", "internal/ident", "internal/lend", "internal/pki"}, "links show certificates"},
	{"internal/control", []string{"internal/fault", "internal/ident"}, ""},
	{"overlay/placement", []string{"internal/fault", "internal/ident"}, ""},
	{"overlay", []string{"internal/ident", "overlay/placement"}, ""},
	{"overlay/kouncil", []string{"internal/fault", "internal/ident", "internal/link", "overlay", "overlay/placement"}, ""},
	{"quorum/paxos", []string{"internal/fault", "internal/ident"}, ""},
	{"quorum", []string{"internal/fault", "internal/ident", "internal/link", "quorum/paxos"}, ""},
	{"dht/extent", []string{"internal/fault", "internal/ident"}, ""},
	{"dht/brick", []string{"internal/fault", "internal/ident", "internal/lend", "internal/vfs"}, ""},
	{"dht", []string{"internal/fault", "internal/ident", "internal/lend", "internal/link", "overlay", "dht/brick", "dht/extent"}, ""},
	{"pool", []string{"internal/fault", "internal/ident", "internal/link", "overlay", "overlay/placement", "quorum"},
		"the pool's state is a mutable block"},
	{"target", nil, ""},
	{"target/edge", []string{"internal/fault"}, ""},
	{"target/nbd/proto", []string{"internal/fault"}, ""},
	{"target/nbd", []string{"internal/fault", "internal/ident", "target", "target/edge", "target/nbd/proto"}, ""},
	{"target/iscsi/scsi", []string{"internal/fault", "internal/ident", "target"}, ""},
	{"target/iscsi/pdu", []string{"internal/fault"}, ""},
	{"target/iscsi/login", []string{"internal/fault", "target/iscsi/pdu"}, ""},
	{"target/iscsi", []string{"internal/fault", "target/edge", "target/iscsi/pdu", "target/iscsi/login", "target/iscsi/scsi"}, ""},
	{"attach/client", []string{"internal/fault", "target", "target/nbd/proto"}, "a client of the protocol"},
	{"attach/fuse", []string{"internal/fault", "target"}, ""},
	{"attach/nbdkernel", []string{"internal/fault", "target", "target/nbd", "target/nbd/proto"}, "the kernel's sockets lead to our own server"},
	{"attach", []string{"internal/fault", "internal/vfs", "internal/control", "attach/client", "attach/fuse", "attach/nbdkernel"}, "the local node knows the others"},
	{"blockdev/extentmap", []string{"internal/fault", "internal/ident"}, ""},
	{"blockdev/tail", []string{"internal/fault", "internal/ident", "blockdev/extentmap"}, "the tail holds pointers of the map"},
	{"blockdev", []string{"internal/fault", "internal/ident", "internal/lend", "internal/link", "overlay", "dht/brick", "dht/extent", "dht", "quorum",
		"pool", "target", "blockdev/extentmap", "blockdev/tail"}, "volumes are found in the pool's catalog; a brick's list is what reconciliation reads"},
	{"exporter", []string{"internal/fault", "internal/ident"}, ""},
	{"internal/lint", nil, ""},
	{"internal/node", []string{"*"}, "it wires"},
	{"cmd/gabion", []string{"internal/fault", "internal/ident", "internal/control", "internal/node", "attach"}, ""},
}

// free are folders of programs and helpers for tests: they may import
// anything, and nothing but tests and each other may import them.
var free = []string{
	"test/", "bench/", "deploy/", "internal/sim", "internal/mutant/catch", "quorum/quorumtest", "quorum/paxos/paxossim", "target/targettest",
}

func isFree(dir string) bool {
	return slices.ContainsFunc(free, func(p string) bool { return dir == strings.TrimSuffix(p, "/") || strings.HasPrefix(dir, p) })
}

func TestArrowsPointDown(t *testing.T) {
	for _, f := range files {
		if f.test || isFree(f.dir) {
			continue
		}
		row := slices.IndexFunc(allowed, func(r struct {
			pkg   string
			from  []string
			cause string
		}) bool {
			return r.pkg == f.dir
		})
		if row < 0 {
			t.Errorf("%s: package %s is not in the table of layers", f.path, f.dir)
			continue
		}
		for _, path := range f.imports() {
			in, ok := strings.CutPrefix(path, module+"/")
			if !ok {
				continue
			}
			switch {
			case in == "internal/mutant":
			case isFree(in):
				t.Errorf("%s imports %s, which is for tests", f.path, in)
			case strings.HasPrefix(in, "cmd/"):
				t.Errorf("%s imports %s: nothing imports cmd", f.path, in)
			case !slices.Contains(allowed[row].from, in) && !slices.Contains(allowed[row].from, "*"):
				t.Errorf("%s imports %s, which the table of layers does not allow", f.path, in)
			}
		}
	}
}

// TestLayersAreOrdered keeps the table itself honest: rows only point up.
func TestLayersAreOrdered(t *testing.T) {
	seen := map[string]bool{"*": true}
	for _, r := range allowed {
		for _, p := range r.from {
			if !seen[p] {
				t.Errorf("%s may import %s, which stands below it", r.pkg, p)
			}
		}
		seen[r.pkg] = true
	}
}

// external says which packages may import a module from elsewhere, outside of
// tests; the prefix of the import path is the key.
var external = map[string][]string{
	"github.com/prometheus/client_golang": {"exporter"},
	"github.com/spf13/cobra":              {"cmd/gabion"},
	"github.com/hashicorp/raft-boltdb/v2": {"dht/brick"},
	"go.etcd.io/bbolt":                    {"dht/brick"},          // options of the store below raft-boltdb
	"github.com/klauspost/compress":       {"dht/extent", "pool"}, // the pool's state must fit into a checkpoint
	"golang.org/x/sys":                    {"internal/vfs", "internal/gentle", "internal/link", "internal/node", "overlay/kouncil", "blockdev", "attach/client", "attach", "attach/fuse", "attach/nbdkernel"},
	"github.com/hanwen/go-fuse/v2":        {"attach/fuse"},
	"github.com/vishvananda/netlink":      {"attach/nbdkernel"},
}

func TestModulesFromElsewhereStayWhereTheyBelong(t *testing.T) {
	for _, f := range files {
		if f.test || isFree(f.dir) {
			continue
		}
		for _, path := range f.imports() {
			if !strings.Contains(strings.SplitN(path, "/", 2)[0], ".") || strings.HasPrefix(path, module) {
				continue // standard library, or ours
			}
			ok := false
			for prefix, dirs := range external {
				if path == prefix || strings.HasPrefix(path, prefix+"/") {
					ok = slices.Contains(dirs, f.dir)
				}
			}
			if !ok {
				t.Errorf("%s imports %s: not allowed there", f.path, path)
			}
		}
	}
}

// cores are the pure packages: a message or tick in, effects out.
var cores = []string{
	"internal/fault", "internal/ident", "overlay/placement", "quorum/paxos", "dht/extent", "target/nbd/proto", "target/iscsi/pdu", "target/iscsi/login",
	"blockdev/extentmap", "blockdev/tail",
}

// impure are the packages of the standard library that a core has no use for.
var impure = []string{"net", "os", "time", "sync", "context", "log", "math/rand", "io/fs", "syscall", "unsafe"}

// impureBut are the exceptions: file or folder, import, reason.
var impureBut = map[[2]string]string{
	{"internal/fault", "context"}:           "deadline and cancellation errors are classified; nothing waits",
	{"blockdev/extentmap/table.go", "sync"}: "one table serves lookups while a checkpoint edits it; nothing waits under the lock",
}

func TestCoresArePure(t *testing.T) {
	for _, f := range files {
		if f.test || !slices.Contains(cores, f.dir) {
			continue
		}
		for _, path := range f.imports() {
			bad := slices.ContainsFunc(impure, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
			if bad && impureBut[[2]string{f.dir, path}] == "" && impureBut[[2]string{f.path, path}] == "" {
				t.Errorf("%s imports %s: %s is a pure core", f.path, path, f.dir)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a goroutine in a pure core", at(g))
			}
			return true
		})
	}
}
