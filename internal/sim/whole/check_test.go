package whole

import (
	"log/slog"
	"testing"
)

// written is a history of one block: n writes one after the other, each read back;
// the read after write wrong shows nothing of it.
func written(n, wrong int) *volume {
	v := &volume{name: "v"}
	for i := range n {
		at, id := int64(10*i), uint32(i+1)
		w := row{kind: opWrite, call: at, ret: at + 3, mask: 1, id: id}
		r := row{kind: opRead, call: at + 5, ret: at + 8, mask: 1}
		if i != wrong {
			r.got[0] = id
		}
		v.hist.blocks[0] = append(v.hist.blocks[0], w, r)
	}
	return v
}

// A history too tangled to be judged is judged in its beginning, and counted.
func TestTangledHistoriesAreJudgedInTheirBeginning(t *testing.T) {
	defer func(n int) { stepsMax = n }(stepsMax)
	for _, c := range []struct {
		steps, wrong     int
		undecided        int
		violated, judged bool
	}{
		{steps: 1 << 20, wrong: -1, judged: true},
		{steps: 1 << 20, wrong: 60, violated: true},
		{steps: 60, wrong: -1, undecided: 1, judged: true},
		{steps: 60, wrong: 2, violated: true},
		{steps: 60, wrong: 60, undecided: 1, judged: true}, // what is not looked at is not seen
		{steps: 0, wrong: -1, undecided: 1},
	} {
		stepsMax = c.steps
		w, v := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}, written(64, c.wrong)
		w.check(v)
		if (w.violation != "") != c.violated || v.hist.undecided != c.undecided || !c.violated && (v.hist.checked > 0) != c.judged {
			t.Errorf("%+v: %d undecided, %d checked, violation %q", c, v.hist.undecided, v.hist.checked, w.violation)
		}
	}
}
