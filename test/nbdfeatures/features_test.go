package main

import (
	"os"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/test/cluster"
)

// The page must say of gabion what gabion says of itself.
func TestPageIsTrueOfGabion(t *testing.T) {
	page, err := os.ReadFile("../../docs/NBD.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _, err := cut(page)
	if err != nil {
		t.Fatal(err)
	}
	cells := func(line string) []string {
		c := strings.Split(strings.Trim(line, "|"), "|")
		for i := range c {
			c[i] = strings.TrimSpace(c[i])
		}
		return c
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	head := cells(lines[0])
	column := len(head) - 1
	if head[column] != "gabion" || len(lines) != len(features)+2 {
		t.Fatalf("%d rows under %q; make the table anew: go run ./test/nbdfeatures -write docs/NBD.md", len(lines), head)
	}
	s, err := startGabion(t.TempDir(), cluster.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	for i, got := range s.ask() {
		c := cells(lines[i+2])
		if c[0] != features[i].name || c[column] != got {
			t.Errorf("%s: %q, the page has %q for %s", features[i].name, got, c[column], c[0])
		}
		if strings.HasPrefix(got, "offered, fails") {
			t.Errorf("%s: %s", features[i].name, got)
		}
	}
}
