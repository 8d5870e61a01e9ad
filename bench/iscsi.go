package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// iscsiJob is one job of libiscsi, by way of qemu-img, which moves on by a step. What
// is read is random bytes that nothing compresses; what is written is zeros.
type iscsiJob struct {
	name         string
	bytes, depth int
	write        bool
	random       bool
}

var iscsiJobs = []iscsiJob{
	{"1M read qd4", 1 << 20, 4, false, false},
	{"4k randread qd32", 4096, 32, false, true},
	{"4k randread qd1", 4096, 1, false, true},
	{"4k randwrite qd32", 4096, 32, true, true},
	{"4k randwrite qd1", 4096, 1, true, true},
	{"1M write qd4", 1 << 20, 4, true, false},
}

// scatter is the step of a random job, in blocks: with it qemu-img visits every
// block of a volume of 2^n blocks, far from the one before.
const scatter = 40503

var benchLine = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

// runISCSI measures gabion, one node and one copy, beside tgtd on the same disk.
func runISCSI(o options) error {
	for _, tool := range []string{"qemu-img", "tgtd", "tgtadm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: test/needs.sh installs it", err)
		}
	}
	dir, err := os.MkdirTemp(o.dir, "gabion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text, err := compareISCSI(o, dir)
	if err != nil {
		return err
	}
	fmt.Print(text)
	if o.record {
		return record(o, text)
	}
	return nil
}

// compareISCSI runs all jobs on both and reports.
func compareISCSI(o options, dir string) (string, error) {
	size, err := strconv.ParseInt(strings.TrimSuffix(o.size, "G"), 10, 32)
	if err != nil {
		return "", fmt.Errorf("-iscsi takes a size in whole G, not %s", o.size)
	}
	ours, err := startGabion(o, filepath.Join(dir, "gabion"), 1)
	if err != nil {
		return "", err
	}
	defer ours.stop()
	ours.name = "gabion-1x1"
	if err := os.MkdirAll(filepath.Join(dir, "tgt"), 0o755); err != nil {
		return "", err
	}
	tgt, err := cluster.StartTgt(filepath.Join(dir, "tgt"), size<<30)
	if err != nil {
		return "", err
	}
	defer tgt.Stop()
	theirs := &server{name: "tgtd", uri: tgt.URL, pids: []int{tgt.PID}, log: func() string { return "" }}
	ours.uri = "iscsi://" + ours.iscsi + "/iqn.2026-11.storage.gabion:gabion:bench/0"
	servers := []*server{ours, theirs}
	random := filepath.Join(dir, "random")
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+random, "bs=1M", "count="+strconv.FormatInt(size<<10, 10)).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dd: %w: %s", err, out)
	}
	results := map[string]map[string][]result{}
	for round := range o.rounds {
		for _, s := range servers {
			fmt.Fprintf(os.Stderr, "filling %s\n", s.name)
			if out, err := exec.Command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t", "none", random, s.uri).CombinedOutput(); err != nil {
				return "", fmt.Errorf("qemu-img on %s: %w: %s", s.name, err, out)
			}
		}
		for _, j := range iscsiJobs {
			if !o.jobs.MatchString(j.name) {
				continue
			}
			for _, s := range servers {
				r, err := measureISCSI(o, s, j)
				if err != nil {
					return "", err
				}
				fmt.Fprintf(os.Stderr, "round %d  %-26s %-14s %9.0f IOPS %7.1f us\n", round+1, j.name, s.name, r.iops, r.cpu)
				if results[j.name] == nil {
					results[j.name] = map[string][]result{}
				}
				results[j.name][s.name] = append(results[j.name][s.name], r)
			}
		}
	}
	return reportISCSI(results), nil
}

// measureISCSI runs one job for about as long as it shall take.
func measureISCSI(o options, s *server, j iscsiJob) (result, error) {
	probe, err := qemuBench(s, j, 4*j.depth+64)
	if err != nil {
		return result{}, err
	}
	return qemuBench(s, j, max(64, int(probe.iops)*o.seconds))
}

// qemuBench has qemu-img make n requests.
func qemuBench(s *server, j iscsiJob, n int) (result, error) {
	step := j.bytes
	if j.random {
		step *= scatter
	}
	args := []string{"bench", "-f", "raw", "-t", "none", "-c", strconv.Itoa(n), "-d", strconv.Itoa(j.depth),
		"-s", strconv.Itoa(j.bytes), "-S", strconv.Itoa(step)}
	if j.write {
		args = append(args, "-w")
	}
	before := s.cpu()
	began := time.Now()
	out, err := exec.Command("qemu-img", append(args, s.uri)...).CombinedOutput()
	used := s.cpu() - before
	m := benchLine.FindSubmatch(out)
	if err != nil || m == nil {
		return result{}, fmt.Errorf("qemu-img on %s after %v: %w: %s%s", s.name, time.Since(began), err, out, s.log())
	}
	seconds, err := strconv.ParseFloat(string(m[1]), 64)
	return result{iops: float64(n) / seconds, cpu: used.Seconds() * 1e6 / float64(n)}, err
}

func reportISCSI(results map[string]map[string][]result) string {
	var b strings.Builder
	b.WriteString("\n| iSCSI | gabion-1x1 IOPS | tgtd IOPS | gabion/tgtd | gabion CPU us/op | tgtd CPU us/op |\n|---|---:|---:|---:|---:|---:|\n")
	for _, j := range iscsiJobs {
		rs := results[j.name]
		if rs == nil {
			continue
		}
		iops := func(r result) float64 { return r.iops }
		cpu := func(r result) float64 { return r.cpu }
		a, t := median(rs["gabion-1x1"], iops), median(rs["tgtd"], iops)
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.2f | %.0f | %.0f |\n", j.name, a, t, a/t, median(rs["gabion-1x1"], cpu), median(rs["tgtd"], cpu))
	}
	return b.String()
}
