package conform

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/test/cluster"
)

// TestTLS has a node require TLS, with certificates of the pool for itself and
// for clients, and rules about who may do what, on TCP and a unix socket.
func TestTLS(t *testing.T) {
	cluster.Need(t, false, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "nbd-client")
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	for _, v := range []string{"db", "other"} {
		c.CreateVolume(t, n, v, "64M", "--replicas", "1")
	}
	dir := t.TempDir()
	certs := map[string]string{}
	for _, who := range []string{"dbhost", "backup", "stranger"} {
		certs[who] = filepath.Join(dir, who)
		if _, err := n.Do("node", "nbd-client", who, "--out", certs[who]); err != nil {
			t.Fatal(err)
		}
	}
	if r := n.CLI("node", "nbd-client", "dbhost", "--out", certs["dbhost"]); r.Code == 0 {
		t.Error("a client's files were overwritten")
	}
	rules, socket := filepath.Join(dir, "allow"), filepath.Join(dir, "nbd.sock")
	if err := os.WriteFile(rules, []byte("dbhost db write\nbackup * read\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	addr := n.Info.NBD
	n.Args = []string{"--nbd", addr + ",unix:" + socket, "--nbd-tls", "required", "--nbd-allow", rules}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	uri := func(who, export string) string {
		return "nbds://" + n.Info.NBD + "/" + export + "?tls-certificates=" + certs[who]
	}
	has := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in:\n%s", w, out)
			}
		}
	}
	has(tool(t, "nbdinfo", uri("dbhost", "db")), "with TLS", "is_read_only: false")
	has(tool(t, "nbdinfo", uri("backup", "other")), "is_read_only: true")
	has(tool(t, "nbdinfo", "nbds+unix:///db?socket="+socket+"&tls-hostname=localhost&tls-certificates="+certs["dbhost"]), "with TLS")
	for what, uri := range map[string]string{
		"a client without TLS":               "nbd://" + n.Info.NBD + "/db",
		"a client without TLS on the socket": "nbd+unix:///db?socket=" + socket,
		"another's volume":                   uri("dbhost", "other"),
		"a stranger":                         uri("stranger", "db"),
	} {
		if out, err := try("nbdinfo", uri); err == nil {
			t.Errorf("%s is served: %s", what, out)
		}
	}
	if out, err := try("nbdinfo", "--list", "nbd://"+n.Info.NBD); err == nil || strings.Contains(out, "other") {
		t.Errorf("a list without TLS: %s", out)
	}
	if out := tool(t, "nbdinfo", "--list", uri("dbhost", "")); strings.Contains(out, `"other"`) || !strings.Contains(out, `"db"`) {
		t.Errorf("a list for dbhost: %s", out)
	}
	host, port, _ := net.SplitHostPort(n.Info.NBD)
	qemu := func(who, export string) []string {
		return []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + certs[who], "--image-opts",
			"driver=nbd,host=" + host + ",port=" + port + ",export=" + export + ",tls-creds=t,tls-hostname=localhost"}
	}
	tool(t, "qemu-io", append([]string{"-c", "write -P 0x5a 1M 1M", "-c", "flush", "-c", "read -P 0x5a 1M 1M"}, qemu("dbhost", "db")...)...)
	has(tool(t, "qemu-io", append([]string{"-r", "-c", "read -P 0x5a 1M 1M"}, qemu("backup", "db")...)...), "read 1048576/1048576")
	if out, err := try("qemu-io", append([]string{"-c", "write -P 1 0 4k"}, qemu("backup", "db")...)...); err == nil && !strings.Contains(out, "rror") && !strings.Contains(out, "denied") {
		t.Errorf("a client that may read wrote: %s", out)
	}
	tool(t, "nbdcopy", uri("backup", "db"), filepath.Join(dir, "copy"))

	// nbd-client speaks nothing newer than TLS 1.2.
	out := tool(t, "nbd-client", "-l", host, port, "-certfile", filepath.Join(certs["dbhost"], "client-cert.pem"),
		"-keyfile", filepath.Join(certs["dbhost"], "client-key.pem"), "-cacertfile", filepath.Join(certs["dbhost"], "ca-cert.pem"), "-tlshostname", "localhost")
	if !strings.Contains(out, "db: ") || strings.Contains(out, "other: ") {
		t.Errorf("a list for nbd-client as dbhost: %s", out)
	}
}
