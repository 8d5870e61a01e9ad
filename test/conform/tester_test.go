//go:build nbdtester

package conform

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/test/cluster"
)

// testerRow is one test of the NBD project's suite that asks something of a server.
type testerRow struct {
	name   string // in the project's own suite
	asks   string // what it does, for the table
	size   string // of a volume of its own
	export string // what follows the volume's name: "@SNAPSHOT"
	tls    bool   // at the node that requires TLS
	args   []string
	fails  string // why gabion cannot pass
}

const tooHuge = "its requests have up to 48 MiB, and gabion takes 32 MiB, which is what the document lets a client count on"

// testerRows are all of the suite but what tests nbd-server's configuration or nbd-client. $LOG is
// the folder with the project's recorded sessions, $CERT that with the pool's certificate for a client.
var testerRows = []testerRow{
	{name: "cfg1", asks: "reads of 1 KiB, many in flight", size: "4M"},
	{name: "cfgmulti", asks: "the same of a read-only export", size: "4M", export: "@s"},
	{name: "cfgsize", asks: "`-o`: reads of 1 MiB, of 1 MiB and 14 bytes, of twice that", size: "4M", args: []string{"-o"},
		fails: "1 MiB and 14 bytes are no whole blocks: `EINVAL`, and the client waits for data behind it"},
	{name: "write", asks: "`-w`: writes of 1 KiB", size: "4M", args: []string{"-w"}},
	{name: "flush", asks: "`-w -f`: writes with flushes and FUA", size: "4M", args: []string{"-w", "-f"}},
	{name: "rowrite", asks: "`-w -F`: writes to a read-only export are refused", size: "4M", export: "@s", args: []string{"-w", "-F"}},
	{name: "unix", asks: "`-u`: reads over a unix socket", size: "4M", args: []string{"-u", "$SOCKET"}},
	{name: "handshake", asks: "`-h`: an unknown option, then `ABORT`", size: "4M", args: []string{"-h"}},
	{name: "integrity", asks: "`-i`: a recorded session, each read compared", size: "50M", args: []string{"-i", "-t", "$LOG/integrity-test.tr"}},
	{name: "integrityhuge", asks: "`-i`: the same with huge requests", size: "50M", args: []string{"-i", "-t", "$LOG/integrityhuge-test.tr"}, fails: tooHuge},
	{name: "tls", asks: "integrity over TLS with a client's certificate", size: "50M", tls: true,
		args: []string{"-i", "-t", "$LOG/integrity-test.tr", "-C", "$CERT/client-cert.pem", "-K", "$CERT/client-key.pem", "-A", "$CERT/ca-cert.pem"}},
	{name: "tlshuge", asks: "integrityhuge over TLS", size: "50M", tls: true,
		args: []string{"-i", "-t", "$LOG/integrityhuge-test.tr", "-C", "$CERT/client-cert.pem", "-K", "$CERT/client-key.pem", "-A", "$CERT/ca-cert.pem", "-H", "localhost"}, fails: tooHuge},
	{name: "tlswrongcert", asks: "`-F`: a client with a certificate of its own making is refused", size: "4M", tls: true,
		args: []string{"-C", "$LOG/certs/selfsigned-cert.pem", "-K", "$LOG/certs/selfsigned-key.pem", "-F"}},
}

// The marks around the table in docs/NBD.md.
var testerBegin, testerEnd = []byte("<!-- nbdtester -->\n\n"), []byte("\n<!-- /nbdtester -->")

// TestNBDTester runs the NBD project's own test client against three nodes, every volume with three
// copies. No binary package of Debian has the client, so this is run by hand; NBDTESTER
// is the folder of the project's build that holds the client, its recorded sessions and its certificates:
//
//	NBDTESTER=…/tests/run go test -tags nbdtester -run TestNBDTester -v ./test/conform
//
// GABION_WRITE=1 puts the results into docs/NBD.md; without, the page must have them.
func TestNBDTester(t *testing.T) {
	dir := os.Getenv("NBDTESTER")
	if dir == "" {
		t.Fatal("NBDTESTER is not set: the folder tests/run of a build of the NBD project")
	}
	t.Setenv("NBD_TEST_SILENT", "1")
	c := cluster.New(t, 3)
	cert := filepath.Join(t.TempDir(), "cert")
	if _, err := c.Nodes[0].Do("node", "nbd-client", "tester", "--out", cert); err != nil {
		t.Fatal(err)
	}
	plain, secure := c.Nodes[0], c.Nodes[1]
	socket := filepath.Join(c.Dir, "nbd.sock")
	for n, args := range map[*cluster.Node][]string{
		plain:  {"--nbd", plain.Info.NBD + ",unix:" + socket},
		secure: {"--nbd-tls", "required", "--nbd-ca", filepath.Join(cert, "ca-cert.pem")},
	} {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		n.Args = args
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := plain.Await(cluster.StartTimeout, cluster.Members(3)); err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("$LOG", dir, "$CERT", cert, "$SOCKET", socket)
	table := "| test | what it asks | gabion |\n|---|---|---|\n"
	for _, r := range testerRows {
		c.CreateVolume(t, plain, r.name, r.size, "--replicas", "3")
		if _, snap, ok := strings.Cut(r.export, "@"); ok {
			if _, err := plain.Do("volume", "snapshot", "create", r.name, snap); err != nil {
				t.Fatal(err)
			}
		}
		node := plain
		if r.tls {
			node = secure
		}
		args := []string{"-N", r.name + r.export}
		for _, a := range r.args {
			args = append(args, replace.Replace(a))
		}
		if _, port, _ := net.SplitHostPort(node.Info.NBD); !strings.Contains(strings.Join(r.args, " "), "$SOCKET") {
			args = append(args, "127.0.0.1", port)
		}
		result, limit := "passes", "100"
		if r.fails != "" {
			limit = "5" // one of them never ends
		}
		_, err := try("timeout", append([]string{limit, filepath.Join(dir, "nbd-tester-client")}, args...)...)
		switch {
		case err == nil && r.fails != "":
			t.Errorf("%s passes; the table says that it cannot", r.name)
		case err != nil && r.fails != "":
			result = "fails: " + r.fails
		case err != nil:
			result = "fails"
			t.Errorf("%s: %v", r.name, err)
		}
		table += fmt.Sprintf("| %s | %s | %s |\n", r.name, r.asks, result)
		t.Logf("%s: %s", r.name, result)
	}
	writeTester(t, table)
}

// writeTester compares the page's table with this one, or puts this one there.
func writeTester(t *testing.T, table string) {
	const page = "../../docs/NBD.md"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(b, testerBegin)
	old, after, ok2 := bytes.Cut(rest, testerEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks %q and %q", page, testerBegin, testerEnd)
	}
	if string(old) == table || t.Failed() {
		return
	}
	if os.Getenv("GABION_WRITE") == "" {
		t.Fatalf("%s has another table; GABION_WRITE=1 writes it. Now:\n%s", page, table)
	}
	if err := os.WriteFile(page, bytes.Join([][]byte{before, testerBegin, []byte(table), testerEnd, after}, nil), 0o644); err != nil {
		t.Fatal(err)
	}
}
