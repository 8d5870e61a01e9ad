package scsi

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write what commands answer into testdata, to be read before it is believed")

// TestCommandsAnswerByteForByte runs the scripts of testdata: each has a block
// size, and commands in hex with what they answered when a person compared it
// with the standard. A line "> CDB [| data-out]" is followed by "= result".
// Data-out may have repetitions, as in 512*ff.
func TestCommandsAnswerByteForByte(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatal("no scripts: ", err)
	}
	used := map[string]bool{}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) { runScript(t, name, used) })
	}
	for i := range opcodes {
		if !used[opcodes[i].name] {
			t.Errorf("no script has %s", opcodes[i].name)
		}
	}
}

func runScript(t *testing.T, name string, used map[string]bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var r *rig
	var out []string
	nexuses := map[string]*Nexus{}
	for i, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		if strings.HasPrefix(line, "= ") {
			continue
		}
		out = append(out, line)
		var size int64
		var block int
		if _, err := fmt.Sscanf(line, "device %d %d", &size, &block); err == nil {
			r = newRig(t, size, block)
			nexuses = map[string]*Nexus{">": r.n}
			continue
		}
		if !strings.HasPrefix(line, ">") {
			continue
		}
		who, rest, _ := strings.Cut(line, " ")
		if nexuses[who] == nil {
			nexuses[who] = r.nexus(len(who) - 1)
		}
		cdb, data, _ := strings.Cut(rest, "|")
		cdb, _, _ = strings.Cut(cdb, "#")
		data, _, _ = strings.Cut(data, "#")
		c := r.on(nexuses[who], cdb, dataOf(t, data))
		used[Name(bytesOf(t, cdb))] = true
		got := "= " + shorten(result(c))
		out = append(out, got)
		if want := following(string(b), i); want != got && !*rewrite {
			t.Errorf("line %d: %s\n got %s\nwant %s", i+1, line, got, want)
		}
	}
	if *rewrite {
		if err := os.WriteFile(name, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func following(text string, i int) string {
	lines := strings.Split(text, "\n")
	if i+1 < len(lines) {
		return lines[i+1]
	}
	return ""
}

// dataOf reads hex with repetitions.
func dataOf(t testing.TB, s string) []byte {
	var p []byte
	for _, f := range strings.Fields(s) {
		var n int
		var h string
		if count, err := fmt.Sscanf(strings.Replace(f, "*", " ", 1), "%d %s", &n, &h); err == nil && count == 2 && strings.Contains(f, "*") {
			p = append(p, bytesOf(t, strings.Repeat(h, n))...)
			continue
		}
		p = append(p, bytesOf(t, f)...)
	}
	return p
}

// shorten writes long runs of one byte as repetitions, at even positions.
func shorten(s string) string {
	word, hex, _ := strings.Cut(s, " ")
	var b strings.Builder
	for i := 0; i+1 < len(hex); {
		n := 1
		for i+2*n+1 < len(hex) && hex[i+2*n:i+2*n+2] == hex[i:i+2] {
			n++
		}
		if n >= 16 {
			fmt.Fprintf(&b, " %d*%s ", n, hex[i:i+2])
		} else {
			b.WriteString(strings.Repeat(hex[i:i+2], n))
		}
		i += 2 * n
	}
	return strings.TrimRight(word+" "+strings.TrimSpace(b.String()), " ")
}
