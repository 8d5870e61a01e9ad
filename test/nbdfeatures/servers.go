package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// server is one that runs, in all the ways that are asked about. Addresses are
// host:port.
type server struct {
	title            string
	addr, export     string
	roAddr, roExport string
	tlsOn, tlsOnly   string // "" where the server has no such mode
	bitmaps          []string
	stops            []func()
}

func (s *server) stop() {
	for _, f := range s.stops {
		f()
	}
}

// kinds of servers; start returns nil when one is not installed.
var kinds = []struct {
	name  string
	start func(dir, binary string) (*server, error)
}{
	{"nbdkit", startNbdkit},
	{"qemu-nbd", startQemu},
	{"gabion", startGabion},
}

const size = "8G"

// begin runs a server that listens on a free port, which args contain as %s.
func (s *server) begin(args ...string) (string, error) {
	addr, err := cluster.FreeAddr()
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(addr)
	for i, a := range args {
		if a == "%s" {
			args[i] = port
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	if err := cluster.StartCmd(cmd); err != nil {
		return "", err
	}
	s.stops = append(s.stops, func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // nothing tells
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr, nil
		}
		if time.Now().After(until) {
			return "", err
		}
	}
}

func startNbdkit(dir, _ string) (*server, error) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		return nil, nil
	}
	s := &server{title: "nbdkit " + version("nbdkit", "--version") + " file"}
	file := filepath.Join(dir, "nbdkit")
	certs, err := certificates(dir)
	if err == nil {
		err = sparse(file)
	}
	run := func(more ...string) (addr string) {
		if err == nil {
			addr, err = s.begin(append(append([]string{"nbdkit", "-f", "-i", "127.0.0.1", "-p", "%s"}, more...), "file", file)...)
		}
		return addr
	}
	s.addr, s.roAddr = run(), run("-r")
	s.tlsOn = run("--tls=on", "--tls-certificates="+certs)
	s.tlsOnly = run("--tls=require", "--tls-certificates="+certs)
	return s, err
}

func startQemu(dir, _ string) (*server, error) {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		return nil, nil
	}
	s := &server{title: "qemu-nbd " + version("qemu-nbd", "--version"), export: "vol", roExport: "vol", bitmaps: []string{"qemu:dirty-bitmap:s"}}
	certs, err := certificates(dir)
	// One image has one writer: each way of serving has its own.
	run := func(name string, more ...string) (addr string) {
		file := filepath.Join(dir, name+".qcow2")
		for _, args := range [][]string{{"create", "-q", "-f", "qcow2", file, size}, {"bitmap", "--add", file, "s"}} {
			if err == nil {
				_, err = exec.Command("qemu-img", args...).Output()
			}
		}
		if err == nil {
			addr, err = s.begin(append(append([]string{"qemu-nbd", "-f", "qcow2", "-t", "-e", "8", "-x", "vol", "-D", "a volume",
				"-b", "127.0.0.1", "-p", "%s"}, more...), file)...)
		}
		return addr
	}
	s.addr = run("rw", "-B", "s", "--discard=unmap")
	s.roAddr = run("ro", "-r")
	s.tlsOnly = run("tls", "--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=off,dir="+certs, "--tls-creds", "t")
	return s, err
}

func startGabion(dir, binary string) (*server, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	s := &server{title: "gabion", export: "vol", roExport: "vol@s", bitmaps: []string{"gabion:dirty:s", "qemu:dirty-bitmap:s"}}
	node := func(name string, args ...string) (n *cluster.Node) {
		if err != nil {
			return nil
		}
		c := &cluster.Cluster{Dir: filepath.Join(dir, name), Binary: binary}
		n = c.Add()
		n.Args = args
		s.stops = append(s.stops, func() { c.Stop() })
		err = n.Start()
		return n
	}
	n := node("plain")
	for _, args := range [][]string{{"volume", "create", "vol", "--size", size, "--replicas", "1"}, {"volume", "snapshot", "create", "vol", "s"}} {
		if err == nil {
			_, err = n.Do(args...)
		}
	}
	on, only := node("on", "--nbd-tls", "on"), node("only", "--nbd-tls", "required")
	if err != nil {
		s.stop()
		return nil, err
	}
	s.addr, s.roAddr, s.tlsOn, s.tlsOnly = n.Info.NBD, n.Info.NBD, on.Info.NBD, only.Info.NBD
	return s, nil
}

func sparse(file string) error {
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(file, 8<<30)
}

// certificates makes the files that GnuTLS's servers look for.
func certificates(dir string) (string, error) {
	dir = filepath.Join(dir, "certs")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	ca, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	leaf := *tmpl
	leaf.SerialNumber, leaf.IsCA, leaf.BasicConstraintsValid = big.NewInt(2), false, true
	cert, err := x509.CreateCertificate(rand.Reader, &leaf, tmpl, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	for name, b := range map[string]*pem.Block{
		"ca-cert.pem": {Type: "CERTIFICATE", Bytes: ca}, "server-cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"server-key.pem": {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	return dir, nil
}
