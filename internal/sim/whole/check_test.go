package whole

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum"
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

// Only an answer promises that a write with FUA is durable.
func TestUnansweredWriteMayBeLostThoughItWasSeen(t *testing.T) {
	for name, c := range map[string]struct {
		ret      int64
		violated bool
	}{"answered": {13, true}, "not answered": {never, false}} {
		v := &volume{name: "v"}
		v.hist.blocks[0] = []row{
			{kind: opWrite, call: 10, ret: c.ret, mask: 1, id: 1, fua: true, epoch: 1},
			{kind: opRead, call: 11, ret: 14, mask: 1, got: [sectors]uint32{1}, epoch: 1},
			{kind: opRead, call: 30, ret: 31, mask: 1, epoch: 2},
		}
		v.hist.lost(20, "power of all")
		w := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}
		if w.check(v); (w.violation != "") != c.violated {
			t.Errorf("%s: violation %q", name, w.violation)
		}
	}
}

// recovered is a volume of one block with three writes in epoch 1, each with a slot of its
// own and read back, that was recovered by force from a survivor with all up to slot
// kept, and shows write shown then, in epoch 1<<32.
func recovered(kept, last uint64, shown uint32) *volume {
	v := &volume{name: "v"}
	at := int64(0)
	row := func(kind opKind, epoch, slot uint64, id uint32) {
		r := row{kind: kind, call: at, ret: at + 3, mask: 1, epoch: epoch, lo: slot, hi: slot}
		if at += 10; kind == opWrite {
			r.id = id
		} else {
			r.got[0] = id
		}
		v.hist.blocks[0] = append(v.hist.blocks[0], r)
	}
	for id := uint32(1); id <= 3; id++ {
		row(opWrite, 1, uint64(id), id)
		row(opRead, 1, uint64(id), id)
	}
	v.hist.forced = &forcing{at: at, epoch: 1 << 32, opened: 1, openedMax: 1, kept: kept, last: last}
	row(opRead, 1<<32, 4, shown)
	row(opWrite, 1<<32, 5, 5)
	row(opRead, 1<<32, 5, 5)
	return v
}

// What a survivor got by a checkpoint is there whatever epoch it is from, though the
// survivor never met that epoch.
func TestForcedRecoveryKeepsWhatACheckpointBrought(t *testing.T) {
	for upTo := range uint64(4) {
		for shown := range uint32(5) {
			w, v := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}, recovered(upTo, upTo, shown)
			v.hist.forced.opened, v.hist.forced.openedMax, v.hist.forced.upTo = 0, 0, upTo
			if w.check(v); (shown == uint32(upTo)) != (w.violation == "") {
				t.Errorf("checkpoint up to slot %d, %d shown: %q", upTo, shown, w.violation)
			}
		}
	}
}

// Another voter of the new configuration may have a newer log, with which the next opener goes on.
func TestForcedRecoveryMayKeepWhatAnotherVoterHad(t *testing.T) {
	for shown := range uint32(5) {
		w, v := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}, recovered(1, 1, shown)
		v.hist.forced.opened, v.hist.forced.openedMax, v.hist.forced.upTo = 0, 0, 1
		v.hist.forced.beside(quorum.Survivor{Opened: quorum.Ballot{Epoch: 1}, Last: 2})
		if w.check(v); (shown == 1 || shown == 2) != (w.violation == "") {
			t.Errorf("%d shown: %q", shown, w.violation)
		}
	}
}

// The configuration in force is one that its members know, not one that its proposer
// never got chosen; with too few members to ask it is the newest.
func TestConfigurationInForce(t *testing.T) {
	node := func(i byte) ident.NodeID { return ident.NodeID{i} }
	config := func(version uint64, voters ...byte) quorum.Config {
		c := quorum.Config{Version: version}
		for _, v := range voters {
			c.Members = append(c.Members, quorum.Member{Node: node(v), Role: quorum.Voter})
		}
		return c
	}
	old, proposed := config(7, 1, 2, 3), config(8, 1, 2, 4)
	for _, c := range []struct {
		known map[ident.NodeID]quorum.Config
		want  uint64
	}{
		{known: map[ident.NodeID]quorum.Config{node(1): old, node(2): old, node(3): old, node(4): proposed}, want: 7},
		{known: map[ident.NodeID]quorum.Config{node(1): old, node(2): proposed, node(3): old, node(4): proposed}, want: 8},
		{known: map[ident.NodeID]quorum.Config{node(2): config(9, 2), node(1): old, node(3): old}, want: 9},
		{known: map[ident.NodeID]quorum.Config{node(3): old, node(4): proposed}, want: 8},
	} {
		if got := inForce(c.known); got.Version != c.want {
			t.Errorf("%v: version %d, want %d", c.known, got.Version, c.want)
		}
	}
}

// What the survivor had is there after a forced recovery, nothing older; what it had not
// is gone for ever; between them either may be.
func TestForcedRecoveryKeepsWhatTheSurvivorHad(t *testing.T) {
	for _, c := range []struct {
		kept, last uint64
		shown      []uint32 // that are right
	}{
		{kept: 3, last: 3, shown: []uint32{3}}, // nothing is missing, nothing may be lost
		{kept: 2, last: 2, shown: []uint32{2}},
		{kept: 0, last: 0, shown: []uint32{0}},
		{kept: 1, last: 2, shown: []uint32{1, 2}},
		{kept: 1, last: 9, shown: []uint32{1, 2, 3}},
	} {
		for shown := range uint32(5) {
			w := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}
			w.check(recovered(c.kept, c.last, shown))
			if right := slices.Contains(c.shown, shown); right != (w.violation == "") {
				t.Errorf("slots %d to %d kept, %d shown: %q", c.kept, c.last, shown, w.violation)
			}
		}
	}
	w, v := &World{log: slog.New(slog.DiscardHandler), stopped: make(chan struct{})}, recovered(2, 2, 2)
	v.hist.blocks[0][3].got[0] = 1 // an old read that was wrong stays wrong
	if w.check(v); w.violation == "" || v.hist.givenUp() != 1 {
		t.Errorf("%d given up, violation %q", v.hist.givenUp(), w.violation)
	}
}
