// Command bench measures gabion beside other NBD servers on the same disk:
// the same fio jobs, in alternating rounds, medians.
//
//	bench [-rounds 3] [-seconds 5] [-size 1G] [-jobs REGEXP] [-servers REGEXP] [-before BINARY] [-record]
//	bench -iscsi ...   one node and one copy over iSCSI, beside tgtd
//
// Servers: gabion with three nodes and three copies, gabion with one node and
// one copy, nbdkit with a file, nbdkit with memory, with -before the same of
// another build of gabion, and, when FLOOR names its
// folder, a probe of the least that replication costs. All run at once and
// only one is asked at a time; three nodes share the machine with fio.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rounds, seconds int
	size            string
	jobs, servers   *regexp.Regexp
	record, iscsi   bool
	gabion, dir     string
	before          string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the median counts")
	flag.IntVar(&o.seconds, "seconds", 5, "seconds for each job")
	flag.StringVar(&o.size, "size", "1G", "size of the volumes")
	jobs := flag.String("jobs", ".", "only jobs whose name matches")
	servers := flag.String("servers", ".", "only servers whose name matches")
	flag.BoolVar(&o.record, "record", false, "write bench/results/DATE.md")
	flag.BoolVar(&o.iscsi, "iscsi", false, "measure iSCSI beside tgtd instead of NBD")
	flag.StringVar(&o.gabion, "gabion", "bin/gabion", "the binary to measure")
	flag.StringVar(&o.before, "before", "", "another binary of gabion to measure in the same rounds, as before-3x3 and before-1x1")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "where the disks of all servers are")
	flag.Parse()
	o.jobs, o.servers = regexp.MustCompile(*jobs), regexp.MustCompile(*servers)
	do := run
	if o.iscsi {
		do = runISCSI
	}
	if err := do(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	for _, tool := range []string{"fio", "nbdkit"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: test/needs.sh installs it", err)
		}
	}
	dir, err := os.MkdirTemp(o.dir, "gabion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	var ss []*server
	defer func() {
		for _, s := range ss {
			s.stop()
		}
	}()
	for _, k := range kinds {
		if !o.servers.MatchString(k.name) {
			continue
		}
		s, err := k.start(o, filepath.Join(dir, k.name))
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if s == nil {
			continue
		}
		s.name = k.name
		ss = append(ss, s)
		fmt.Fprintf(os.Stderr, "filling %s\n", s.name)
		if _, err := measure(o, s, job{rw: "write", bs: "1M", depth: 4, fill: true}); err != nil {
			return err
		}
	}
	results := map[string]map[string][]result{}
	for round := range o.rounds {
		for _, j := range jobs {
			if !o.jobs.MatchString(j.name) {
				continue
			}
			for _, s := range ss {
				r, err := measure(o, s, j)
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "round %d  %-26s %-14s %9.0f IOPS\n", round+1, j.name, s.name, r.iops)
				if results[j.name] == nil {
					results[j.name] = map[string][]result{}
				}
				results[j.name][s.name] = append(results[j.name][s.name], r)
				select {
				case <-interrupted:
					return fmt.Errorf("interrupted")
				default:
				}
			}
		}
	}
	text := report(ss, results)
	fmt.Print(text)
	if !o.record {
		return nil
	}
	return record(o, text)
}

// record writes the result with what is needed to repeat it.
func record(o options, text string) error {
	name := filepath.Join("bench", "results", time.Now().Format("2006-01-02")+".md")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	out := func(cmd string) string {
		b, _ := exec.Command("bash", "-c", cmd).Output()
		return strings.TrimSpace(string(b))
	}
	floor := ""
	if os.Getenv("FLOOR") != "" {
		floor = "FLOOR=… "
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, `## %s

- command: %smake bench BENCH='%s'
- commit: %s
- machine: %s, %s cores, %s of memory, kernel %s; bricks and files on %s
- tools: %s, %s, %s

%s
`, time.Now().Format("2006-01-02 15:04"), floor, strings.Join(os.Args[1:], " "),
		out("git describe --always --dirty --abbrev=12"),
		out("grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs"), out("nproc"),
		out("free -g | awk '/Mem/ {print $2 \" GiB\"}'"), out("uname -r"),
		out("df -T "+o.dir+" | awk 'NR==2 {print $2 \" on \" $1}'"),
		out("fio --version"), out("nbdkit --version"), out("go version"), text)
	if err == nil {
		fmt.Fprintln(os.Stderr, "written to", name)
	}
	return err
}
