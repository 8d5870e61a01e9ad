package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gabion-storage/gabion/test/cluster"
)

// job is one fio job on the whole volume.
type job struct {
	name   string
	bs, rw string
	depth  int
	fsync  int  // a flush after so many writes; 0: none
	fill   bool // once over the volume instead of by time
}

var jobs = []job{
	{name: "4k randwrite qd1 fsync=1", bs: "4k", rw: "randwrite", depth: 1, fsync: 1},
	{name: "4k randwrite qd1", bs: "4k", rw: "randwrite", depth: 1},
	{name: "4k randwrite qd32", bs: "4k", rw: "randwrite", depth: 32},
	{name: "4k randwrite qd32 fsync=8", bs: "4k", rw: "randwrite", depth: 32, fsync: 8},
	{name: "4k randread qd32", bs: "4k", rw: "randread", depth: 32},
	{name: "1M write qd4", bs: "1M", rw: "write", depth: 4},
	{name: "1M read qd4", bs: "1M", rw: "read", depth: 4},
}

// result of one job on one server. Times are in microseconds.
type result struct {
	iops, cpu        float64 // cpu: of all processes of the server, per operation
	p50, p99         float64
	syncP50, syncP99 float64
}

// fioOutput is what bench reads of fio --output-format=json.
type fioOutput struct {
	Jobs []struct {
		Error int `json:"error"`
		Read  fioSide
		Write fioSide
		Sync  struct {
			Lat fioLatency `json:"lat_ns"`
		}
	}
}

type fioSide struct {
	IOPS  float64    `json:"iops"`
	Total float64    `json:"total_ios"`
	Clat  fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Percentile map[string]float64 `json:"percentile"` // nanoseconds by "50.000000"
}

func (l fioLatency) us(p string) float64 { return l.Percentile[p+".000000"] / 1e3 }

func measure(o options, s *server, j job) (result, error) {
	args := []string{"--name=bench", "--ioengine=nbd", "--uri=" + s.uri, "--bs=" + j.bs, "--rw=" + j.rw,
		"--iodepth=" + strconv.Itoa(j.depth), "--size=" + o.size, "--randrepeat=0", "--norandommap",
		"--refill_buffers", "--output-format=json"}
	if !j.fill {
		args = append(args, "--time_based", "--runtime="+strconv.Itoa(o.seconds))
	}
	if j.fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(j.fsync))
	}
	before := s.cpu()
	out, err := exec.Command("fio", args...).CombinedOutput()
	used := s.cpu() - before
	var f fioOutput
	start := bytes.IndexByte(out, '{')
	if err == nil && start < 0 {
		err = fmt.Errorf("no result")
	}
	if err == nil {
		err = json.Unmarshal(out[start:], &f)
	}
	if err == nil && (len(f.Jobs) != 1 || f.Jobs[0].Error != 0) {
		err = fmt.Errorf("fio met an error")
	}
	if err != nil {
		return result{}, fmt.Errorf("fio on %s, %s: %w: %s%s", s.name, j.name, err, out, s.log())
	}
	side := f.Jobs[0].Write
	if strings.HasSuffix(j.rw, "read") {
		side = f.Jobs[0].Read
	}
	sync := f.Jobs[0].Sync.Lat
	return result{iops: side.IOPS, cpu: used.Seconds() * 1e6 / max(1, side.Total),
		p50: side.Clat.us("50"), p99: side.Clat.us("99"), syncP50: sync.us("50"), syncP99: sync.us("99")}, nil
}

// cpu is the processor time that all processes of the server have used.
func (s *server) cpu() (sum time.Duration) {
	for _, pid := range s.pids {
		d, _ := cluster.CPU(pid)
		sum += d
	}
	return sum
}

func median(rs []result, of func(result) float64) float64 {
	var v []float64
	for _, r := range rs {
		v = append(v, of(r))
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// ratios are the IOPS of each round by those of base in the same round, as median
// and, when there are more rounds than one, least and most.
func ratios(rs, base []result) string {
	var v []result
	for i := range min(len(rs), len(base)) {
		if base[i].iops > 0 {
			v = append(v, result{iops: rs[i].iops / base[i].iops})
		}
	}
	if len(v) == 0 {
		return "-"
	}
	of := func(r result) float64 { return r.iops }
	text := fmt.Sprintf("%.2f", median(v, of))
	if len(v) > 1 {
		least, most := v[0].iops, v[0].iops
		for _, r := range v {
			least, most = min(least, r.iops), max(most, r.iops)
		}
		text += fmt.Sprintf(" (%.2f-%.2f)", least, most)
	}
	return text
}

// report is a table for each job, in Markdown. Ratios are of rounds, not of
// medians: what else the machine does is the same for both then.
func report(ss []*server, results map[string]map[string][]result) string {
	var b strings.Builder
	for _, j := range jobs {
		if results[j.name] == nil {
			continue
		}
		fmt.Fprintf(&b, "\n| %s | IOPS | of nbdkit-file | of before | CPU us/op | p50 us | p99 us | flush p50 us | flush p99 us |\n", j.name)
		b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|---:|\n")
		for _, s := range ss {
			rs := results[j.name][s.name]
			m := func(of func(result) float64) float64 { return median(rs, of) }
			before := "-"
			if _, shape, ok := strings.Cut(s.name, "gabion-"); ok {
				before = ratios(rs, results[j.name]["before-"+shape])
			}
			fmt.Fprintf(&b, "| %s | %.0f | %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", s.name,
				m(func(r result) float64 { return r.iops }), ratios(rs, results[j.name]["nbdkit-file"]), before,
				m(func(r result) float64 { return r.cpu }), m(func(r result) float64 { return r.p50 }),
				m(func(r result) float64 { return r.p99 }), m(func(r result) float64 { return r.syncP50 }),
				m(func(r result) float64 { return r.syncP99 }))
		}
	}
	return b.String()
}
