package main

import (
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

func count(events ...event) *tally {
	t := &tally{out: io.Discard, show: regexp.MustCompile("^$"), output: map[string]*strings.Builder{}, ran: map[string]int{}}
	for _, e := range events {
		t.add(e)
	}
	return t
}

func TestTallyFails(t *testing.T) {
	pass := event{Action: "pass", Package: "p", Test: "T"}
	for _, x := range []struct {
		name   string
		ci     bool
		events []event
		code   int
	}{
		{"pass", true, []event{pass, {Action: "pass", Package: "p"}}, 0},
		{"nothing", false, nil, 1},
		{"failed test", false, []event{pass, {Action: "fail", Package: "p", Test: "U"}}, 1},
		{"failed package", false, []event{pass, {Action: "fail", Package: "q"}}, 1},
		{"skip", false, []event{pass, {Action: "skip", Package: "p", Test: "S"}}, 0},
		{"skip in CI", true, []event{pass, {Action: "skip", Package: "p", Test: "S"}}, 1},
		{"package without tests in CI", true, []event{pass, {Action: "skip", Package: "q"}}, 0},
	} {
		if code := count(x.events...).end(time.Second, x.ci); code != x.code {
			t.Errorf("%s: exit %d, want %d", x.name, code, x.code)
		}
	}
}

func TestTallyShowsFailuresOnly(t *testing.T) {
	var out strings.Builder
	tl := count()
	tl.out = &out
	for _, e := range []event{
		{Action: "output", Package: "p", Test: "Good", Output: "quiet\n"},
		{Action: "output", Package: "p", Test: "Bad", Output: "loud\n"},
		{Action: "pass", Package: "p", Test: "Good"},
		{Action: "fail", Package: "p", Test: "Bad"},
		{Action: "output", Package: "p", Test: "Dead", Output: "panic\n"},
		{Action: "fail", Package: "p"},
	} {
		tl.add(e)
	}
	if got := out.String(); !strings.Contains(got, "loud") || !strings.Contains(got, "panic") || strings.Contains(got, "quiet") {
		t.Errorf("%q", got)
	}
}
