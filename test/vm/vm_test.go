// Package vm drives the test machine of deploy/vm: a stock kernel as client,
// and power cuts of the whole pool.
package vm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// Generous: the machine is emulated, and others use the processor too.
const (
	kernelTimeout   = 8 * time.Minute
	iscsiTimeout    = 10 * time.Minute
	bootTimeout     = 5 * time.Minute
	failoverTimeout = 20 * time.Minute
	roundTimeout    = 5 * time.Minute
)

// rig is a test machine with one disk; the disk and out survive its death.
type rig struct {
	top, out, disk string
	env            []string
	init           string // the first process, if not the script's shell
}

func newRig(t *testing.T, tags string, env ...string) *rig {
	t.Helper()
	cluster.Need(t, true, "qemu-system-x86_64", "nbd-client", "mkfs.ext4", "mkfs.xfs", "jq")
	binary, err := cluster.Build(tags)
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{filepath.Join(top, "deploy/vm/build.sh")},
		{filepath.Join(top, "deploy/vm/database.sh")},
		{"go", "build", "-o", filepath.Join(top, "bin/ledgerload"), "./test/ledger/ledgerload"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = top
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, b)
		}
	}
	dir := cluster.WorkDir(t)
	r := &rig{top: top, out: filepath.Join(dir, "out"), disk: filepath.Join(dir, "disk.img")}
	r.env = append([]string{"GABION=" + binary}, env...)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(r.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(6 << 30); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the machine's log:\n%s", r.tail(60))
		}
	})
	return r
}

func (r *rig) tail(lines int) string {
	b, _ := os.ReadFile(filepath.Join(r.out, "log"))
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// machine is one boot.
type machine struct {
	rig    *rig
	cmd    *exec.Cmd
	exited chan struct{}
}

// boot starts the machine with a script of deploy/vm/guest.
func (r *rig) boot(t *testing.T, script string, args ...string) *machine {
	t.Helper()
	// The guest's environment goes in as commands before the script.
	var b strings.Builder
	for _, e := range r.env {
		k, v, _ := strings.Cut(e, "=")
		fmt.Fprintf(&b, "export %s='%s'\n", k, v)
	}
	fmt.Fprintf(&b, ". %s/deploy/vm/guest/%s\n", r.top, script)
	wrapper := filepath.Join(filepath.Dir(r.out), "boot.sh")
	if err := os.WriteFile(wrapper, []byte(b.String()), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(r.out, "phase"))
	cmd := exec.Command(filepath.Join(r.top, "deploy/vm/run.sh"), append([]string{r.out, wrapper}, args...)...)
	cmd.Env = append(os.Environ(), "VM_EXEC=1", "VM_DISKS="+r.disk, "VM_INIT="+r.init)
	errs, err := os.Create(filepath.Join(filepath.Dir(r.out), "qemu"))
	if err != nil {
		t.Fatal(err)
	}
	defer errs.Close()
	cmd.Stderr = errs
	if err := cluster.StartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	m := &machine{rig: r, cmd: cmd, exited: make(chan struct{})}
	go func() { cmd.Wait(); close(m.exited) }()
	t.Cleanup(m.cut)
	return m
}

// cut takes the power away: the process is killed, the guest's memory is gone.
func (m *machine) cut() {
	m.cmd.Process.Kill()
	<-m.exited
}

// reach waits until the guest has come to a phase; false when it ended before.
func (m *machine) reach(t *testing.T, phase string) bool {
	t.Helper()
	for end := time.Now().Add(bootTimeout); ; {
		b, _ := os.ReadFile(filepath.Join(m.rig.out, "phase"))
		if strings.Contains(string(b), phase+"\n") {
			return true
		}
		select {
		case <-m.exited:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			m.cut()
			t.Errorf("the machine did not come to %q within %v", phase, bootTimeout)
			return false
		}
	}
}

// end waits for the script's exit code.
func (m *machine) end(t *testing.T, timeout time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	select {
	case <-m.exited:
	case <-ctx.Done():
		m.cut()
		t.Fatalf("the machine did not end within %v", timeout)
	}
	b, err := os.ReadFile(filepath.Join(m.rig.out, "rc"))
	if err != nil {
		console, _ := os.ReadFile(filepath.Join(m.rig.out, "console"))
		qemu, _ := os.ReadFile(filepath.Join(filepath.Dir(m.rig.out), "qemu"))
		t.Fatalf("the machine died: %s%s", qemu, console)
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// A stock kernel attaches volumes, puts file systems and PostgreSQL on them,
// and finds everything again through another node.
func TestKernelClient(t *testing.T) {
	r := newRig(t, "")
	if code := r.boot(t, "kernel.sh").end(t, kernelTimeout); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.tell(t, "at ", "PASSED")
}

// tell prints the lines of the machine's log that contain one of the words.
func (r *rig) tell(t *testing.T, words ...string) {
	t.Helper()
	for _, l := range strings.Split(r.tail(1<<20), "\n") {
		for _, w := range words {
			if strings.Contains(l, w) {
				t.Log(l)
			}
		}
	}
}

func cuts() int {
	if n, err := strconv.Atoi(os.Getenv("VM_CUTS")); err == nil && n > 0 {
		return n
	}
	return 3
}

// random is what the moments of the cuts are drawn from; VM_SEED repeats them
// as far as a real machine can.
func random(t *testing.T) *rand.Rand {
	seed, err := strconv.ParseUint(os.Getenv("VM_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64() % 1e6
	}
	t.Logf("VM_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func upTo(rnd *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(d)))
}

// The power of all nodes is cut at random moments, most of them under load,
// every third while the pool recovers from the last cut. Each time it comes
// back by itself, with every flush and commit whose acknowledgement had left
// the machine, and with clean file systems and databases.
func TestPowerCut(t *testing.T) {
	r := newRig(t, "", "RIG_DATABASE=1")
	rnd := random(t)
	step, round, recovering := "first", 1, false
	for cut := range cuts() {
		m := r.boot(t, "powercut.sh", strconv.Itoa(round), step)
		goal, within := fmt.Sprintf("loading %d", round), 10*time.Second
		if recovering = cut%3 == 2; recovering {
			goal, within = fmt.Sprintf("starting %d", round), 12*time.Second
		}
		if !m.reach(t, goal) {
			t.Fatalf("the machine ended before the cut, exit %d", m.end(t, time.Second))
		}
		moment := upTo(rnd, within)
		select {
		case <-time.After(moment):
		case <-m.exited:
			t.Fatal("the load ended by itself")
		}
		m.cut()
		t.Logf("cut %d: %v after %q", cut+1, moment.Round(time.Millisecond), goal)
		step = "again"
		if !recovering || r.wrote(round) {
			round++
		}
	}
	m := r.boot(t, "powercut.sh", strconv.Itoa(round), "last")
	if code := m.end(t, bootTimeout); code != 0 {
		t.Fatalf("after the last cut: exit %d", code)
	}
	r.tell(t, "at ", "verified:", "PASSED")
}

// wrote tells whether the round began to load before it was cut.
func (r *rig) wrote(round int) bool {
	for _, name := range []string{"ledger", "pg"} {
		if _, err := os.Stat(filepath.Join(r.out, fmt.Sprintf("%s.%d", name, round))); err == nil {
			return true
		}
	}
	return false
}

// The rig must see a liar: a build that answers flushes without syncing its
// disks is found out within a few cuts.
func TestPowerCutSeesSkippedFsync(t *testing.T) {
	r := newRig(t, "mutate", "RIG_DATABASE=0", "GABION_MUTATE=skip-fsync")
	rnd := random(t)
	const most = 4
	step := "first"
	for cut := 1; cut <= most; cut++ {
		m := r.boot(t, "powercut.sh", strconv.Itoa(cut), step)
		if !m.reach(t, fmt.Sprintf("loading %d", cut)) {
			code := m.end(t, time.Minute)
			log := r.tail(200)
			// Either acknowledged writes are gone, or a node sees that its disk
			// lacks what it must have and refuses to serve from it.
			for _, proof := range []string{"LOST", "corrupt", "torn", "not in time: node", "not in time: all nodes"} {
				if step == "again" && strings.Contains(log, proof) {
					t.Logf("found out after cut %d: exit %d, %s", cut-1, code, proof)
					return
				}
			}
			t.Fatalf("exit %d for another reason", code)
		}
		select {
		case <-time.After(2*time.Second + upTo(rnd, 4*time.Second)):
		case <-m.exited:
			t.Fatal("the load ended by itself")
		}
		m.cut()
		step = "again"
	}
	t.Fatalf("%d cuts and nothing was missed", most)
}

// A stock kernel's nbd driver under 'gabion attach': nodes die, hang and are
// restarted under a mounted file system with a database, and the attaching
// process dies too. VM_FAILOVERS says how often.
func TestFailover(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("VM_FAILOVERS"))
	if err != nil || rounds < 1 {
		rounds = 1
	}
	r := newRig(t, "", "RIG_ROUNDS="+strconv.Itoa(rounds), "RIG_DATABASE=1")
	if code := r.boot(t, "attach.sh").end(t, failoverTimeout+time.Duration(rounds-1)*roundTimeout); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.tell(t, "at ", "issued", "verified", "PASSED")
}

// A stock kernel's iSCSI initiator: discovery, mutual CHAP, digests, what
// sg3-utils ask for, and dm-multipath over two nodes under file systems while the
// node that holds the volume is killed: no error, and nothing answered is lost.
func TestISCSI(t *testing.T) {
	cluster.Need(t, true, "iscsid", "iscsiadm", "dmsetup", "sg_persist", "fio")
	r := newRig(t, "")
	if code := r.boot(t, "iscsi.sh").end(t, iscsiTimeout); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.tell(t, "at ", "verified", "PASSED")
}
