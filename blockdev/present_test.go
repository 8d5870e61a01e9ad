package blockdev

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// TestCopiesWhileLanesMove counts copies while a new lane table is followed: nothing is
// missing because it shall be elsewhere, and nothing is there because it shall be.
func TestCopiesWhileLanesMove(t *testing.T) {
	bricks := func(s string) (out []overlay.BrickRef) {
		for _, c := range s {
			out = append(out, overlay.BrickRef{Node: ident.NodeID{byte(c)}, Brick: ident.BrickID{byte(c)}})
		}
		return out
	}
	lanes := func(ss ...string) (out [][]overlay.BrickRef) {
		for _, s := range ss {
			out = append(out, bricks(s))
		}
		return out
	}
	for _, c := range []struct {
		what     string
		old, now [][]overlay.BrickRef // old: nil, nothing is known
		complete string               // under the present table
		missed   string               // something since the present table was met
		dead     string
		mended   string // something before, and was given it
		want     int
	}{
		{what: "nothing moved", old: lanes("abc", "bcd"), now: lanes("abc", "bcd"), complete: "abcd", want: 3},
		{what: "just attached", now: lanes("abc"), want: 0},
		{what: "attached, two are complete", now: lanes("abc"), complete: "ab", want: 2},
		{what: "a brick is to come in", old: lanes("abc", "bcd"), now: lanes("abe", "bcd"), want: 3},
		{what: "and has come", old: lanes("abc"), now: lanes("abe"), complete: "e", want: 3},
		{what: "all bricks are others", old: lanes("abc"), now: lanes("def"), want: 3},
		{what: "one that had a copy is dead", old: lanes("abc", "def"), now: lanes("abe", "def"), dead: "c", want: 2},
		{what: "but the new one is complete", old: lanes("abc", "def"), now: lanes("abe", "def"), complete: "e", dead: "c", want: 3},
		{what: "the new one is dead", old: lanes("abc"), now: lanes("abe"), dead: "e", want: 2}, // what was put since
		{what: "the new one missed something", old: lanes("abc"), now: lanes("abe"), missed: "e", want: 2},
		{what: "the others keep what was before", old: lanes("abc"), now: lanes("abe"), missed: "ab", want: 1},
		{what: "what was missed before was made up for", old: lanes("abc"), now: lanes("abe"), mended: "ab", want: 3},
		{what: "two of one lane are dead", old: lanes("abc", "def"), now: lanes("def", "abc"), dead: "ab", want: 1},
		{what: "there are more lanes now", old: lanes("abc"), now: lanes("abd", "bcd"), want: 3},
		{what: "more lanes, and one is dead", old: lanes("abc"), now: lanes("abd", "bcd"), dead: "a", want: 2},
		{what: "more lanes, and all have come", old: lanes("abc"), now: lanes("def", "efg"), complete: "defg", dead: "abc", want: 3},
		{what: "fewer bricks than copies", old: lanes("ab"), now: lanes("ab"), complete: "ab", want: 2},
	} {
		var m maintenance
		m.init()
		m.seen = map[overlay.BrickRef]uint64{}
		reach := map[overlay.BrickRef]bool{}
		for _, b := range bricks("abcdefg") {
			reach[b] = true
			m.lapse[b], m.seen[b] = 3, 3
		}
		if c.old != nil {
			m.base = &placing{version: 1, lanes: c.old, lapse: map[overlay.BrickRef]uint64{}}
			for _, lane := range c.old {
				for _, b := range lane {
					m.base.lapse[b], m.clean[b] = 3, 1
				}
			}
		}
		for _, b := range bricks(c.complete) {
			m.clean[b] = 2
		}
		for _, b := range bricks(c.missed) {
			m.lapse[b]++
			delete(m.clean, b)
		}
		for _, b := range bricks(c.mended) {
			m.lapse[b]++
			m.base.lapse[b] = m.lapse[b]
		}
		for _, b := range bricks(c.dead) {
			reach[b] = false
		}
		if got := m.copies(c.now, 2, reach); got != c.want {
			t.Errorf("%s: %d copies, not %d", c.what, got, c.want)
		}
	}
}
