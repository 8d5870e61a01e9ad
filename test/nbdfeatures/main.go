// Command nbdfeatures asks NBD servers over the wire for every feature of the
// protocol document and prints a table in Markdown: the one in docs/NBD.md.
//
//	nbdfeatures [-gabion bin/gabion] [-write docs/NBD.md]
//
// Servers: nbdkit with a file, qemu-nbd with a qcow2 image that has a dirty
// bitmap, and a node of gabion with a volume that has a snapshot. A server that
// is not installed has no column.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

func main() {
	binary := flag.String("gabion", "bin/gabion", "the binary to ask")
	write := flag.String("write", "", "a page to put the table into, between its marks")
	flag.Parse()
	if err := run(*binary, *write); err != nil {
		fmt.Fprintln(os.Stderr, "nbdfeatures:", err)
		os.Exit(1)
	}
}

func run(binary, page string) error {
	dir, err := os.MkdirTemp("/var/tmp", "nbdfeatures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var names []string
	var columns [][]string
	for _, k := range kinds {
		s, err := k.start(dir, binary)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		if s == nil {
			fmt.Fprintln(os.Stderr, k.name, "is not installed")
			continue
		}
		names = append(names, s.title)
		columns = append(columns, s.ask())
		s.stop()
	}
	table := tableOf(names, columns)
	if page == "" {
		_, err := os.Stdout.Write(table)
		return err
	}
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, _, after, err := cut(b)
	if err != nil {
		return err
	}
	return os.WriteFile(page, bytes.Join([][]byte{before, table, after}, nil), 0o644)
}

// The marks around the table in the page.
var begin, end = []byte("<!-- nbdfeatures -->\n\n"), []byte("\n<!-- /nbdfeatures -->")

// cut finds the table in a page.
func cut(page []byte) (before, table, after []byte, err error) {
	i := bytes.Index(page, begin)
	j := bytes.Index(page, end)
	if i < 0 || j < i {
		return nil, nil, nil, fmt.Errorf("the page has no marks %q and %q", begin, end)
	}
	i += len(begin)
	return page[:i], page[i:j], page[j:], nil
}

func tableOf(names []string, columns [][]string) []byte {
	var b bytes.Buffer
	row := func(first string, cell func(i int) string) {
		b.WriteString("| " + first)
		for i := range names {
			b.WriteString(" | " + cell(i))
		}
		b.WriteString(" |\n")
	}
	row("feature", func(i int) string { return names[i] })
	row("---", func(int) string { return "---" })
	for k, f := range features {
		row(f.name, func(i int) string { return columns[i][k] })
	}
	return b.Bytes()
}

// version is the last word of the first line that a program says about itself
// and that looks like one.
func version(program string, args ...string) string {
	out, _ := exec.Command(program, args...).Output()
	first, _, _ := strings.Cut(string(out), "\n")
	for _, w := range strings.Fields(first) {
		if w[0] >= '0' && w[0] <= '9' {
			return w
		}
	}
	return ""
}
