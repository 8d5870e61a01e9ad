package whole

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"
)

// Faults at random times seldom meet the moments at which a pool is weak: some
// milliseconds around an answer, a promise or a checkpoint. An aim is a fault
// that waits for such a moment.

// moment is something that happens on a machine.
type moment string

const (
	atWrite moment = "write" // a plain write was answered
	atFlush moment = "flush" // a flush was answered, or a write that is one
	atOpen  moment = "open"  // a session was opened
	atVote  moment = "vote"  // promises and configurations become durable
	atPack  moment = "pack"  // bytes of an extent are written
	atStore moment = "store" // extents are synced
	atIndex moment = "index" // where extents are becomes durable
	atPunch moment = "punch" // a hole is made where an extent was
)

var moments = []moment{atWrite, atFlush, atOpen, atOpen, atVote, atVote, atPack, atStore, atIndex, atPunch}

// role is whom an act of an aim meets.
type role int

const (
	itself role = iota // the machine of the moment
	holder             // where clients of the volume turn to
	rival              // where the newest takeover is to go
	others             // all but the machine of the moment
	third              // one that is neither holder nor rival
	roles
)

// act is what happens at the moment of an aim, or soon after.
type act struct {
	wait time.Duration
	who  role
	what string
	lot  int // decides between several machines
	stay time.Duration
}

// aim waits for a moment, lets some pass, and acts.
type aim struct {
	at   moment
	v    *volume
	skip int
	acts []act
	end  time.Time
}

// aimPatience is for how long an aim waits for its moment.
const aimPatience = 20 * time.Second

// soon is a time around that of one message.
func soon(rng *rand.Rand) time.Duration {
	switch rng.IntN(3) {
	case 0:
		return 0
	case 1:
		return time.Duration(rng.IntN(3000)) * time.Microsecond
	}
	return time.Duration(rng.IntN(200)) * time.Millisecond
}

// brief is a time after which a machine is back before others have given up.
func brief(rng *rand.Rand) time.Duration { return time.Duration(rng.IntN(100)) * time.Millisecond }

func (w *World) volume(rng *rand.Rand) *volume { return w.volumes[rng.IntN(len(w.volumes))] }

// takeAim draws an aim with one to three acts.
func takeAim(w *World, rng *rand.Rand) {
	a := &aim{at: moments[rng.IntN(len(moments))], v: w.volume(rng), skip: rng.IntN(1 + rng.IntN(20))}
	can := []string{"isolate", "pause"}
	for _, k := range w.kinds {
		switch k.name {
		case "kill", "power":
			can = append(can, k.name, k.name, k.name)
		case "takeover", "wipe":
			can = append(can, k.name)
		}
	}
	for range 1 + rng.IntN(3) {
		x := act{wait: soon(rng), who: role(rng.IntN(int(roles))), what: can[rng.IntN(len(can))], lot: rng.IntN(1 << 20), stay: spell(rng)}
		if rng.IntN(2) == 0 {
			x.stay = brief(rng)
		}
		a.acts = append(a.acts, x)
	}
	w.arm(a)
}

func (w *World) arm(a *aim) {
	a.end = time.Now().Add(aimPatience)
	w.mu.Lock()
	w.aims = append(w.aims, a)
	w.mu.Unlock()
}

// came tells that a moment has come on a machine; v is nil if it is the disk's.
func (w *World) came(at moment, v *volume, m *machine) {
	var hit []*aim
	w.mu.Lock()
	kept := w.aims[:0]
	for _, a := range w.aims {
		switch {
		case w.calm || time.Now().After(a.end): // too late
		case a.at != at || v != nil && a.v != v:
			kept = append(kept, a)
		case a.skip > 0:
			a.skip--
			kept = append(kept, a)
		default:
			hit = append(hit, a)
			w.background.Add(1)
		}
	}
	w.aims = kept
	w.mu.Unlock()
	for _, a := range hit {
		go func() {
			defer w.background.Done()
			w.count("aim", "%s on %s", at, m.name)
			for _, x := range a.acts {
				if w.until(x.wait) {
					w.act(x, a.v, m)
				}
			}
		}()
	}
	if len(hit) > 0 && v == nil {
		time.Sleep(time.Microsecond) // the operation of the disk is not done yet
	}
}

// until waits; false if the faults are over.
func (w *World) until(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.calm
	case <-w.calmed:
		return false
	}
}

// whom resolves a role.
func (w *World) whom(x act, v *volume, it *machine) (out []*machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, r := w.machines[v.home], w.machines[w.rival]
	for _, m := range w.machines {
		switch x.who {
		case holder:
			if m != h {
				continue
			}
		case rival:
			if m != r {
				continue
			}
		case itself:
			if m != it {
				continue
			}
		case others:
			if m == it {
				continue
			}
		case third:
			if m == h || m == r {
				continue
			}
		}
		out = append(out, m)
	}
	if x.who == third && len(out) > 1 {
		i := x.lot % len(out)
		out = out[i : i+1]
	}
	return out
}

func (w *World) act(x act, v *volume, it *machine) {
	for _, m := range w.whom(x, v, it) {
		switch x.what {
		case "kill", "power":
			if m.take() {
				w.crash(m, x.what == "power", x.stay)
			}
		case "isolate":
			w.isolate(m, x.stay)
		case "pause":
			if m.take() {
				w.pause(m, x.stay)
			}
		case "takeover":
			w.move(v, x.lot%len(w.machines))
		case "wipe":
			w.wipe(m)
		}
	}
}

// duel lets two nodes that do not hear each other hold a volume, one after the
// other, and often stops a voter between them.
func duel(w *World, rng *rand.Rand) {
	v := w.volume(rng)
	a, b := w.machines[v.home], w.machines[rng.IntN(len(w.machines))]
	if a == b {
		return
	}
	w.count("duel", "%s: %s and %s", v.name, a.name, b.name)
	w.net.Cut(a.id, b.id)
	w.net.Cut(b.id, a.id)
	w.undo(spell(rng)+time.Second, func() {
		w.net.Heal(a.id, b.id)
		w.net.Heal(b.id, a.id)
	})
	if rng.IntN(3) > 0 {
		acts := []act{{wait: time.Duration(rng.IntN(2500)) * time.Microsecond, who: third, what: "kill", lot: rng.IntN(1 << 20), stay: brief(rng)}}
		if rng.IntN(3) > 0 {
			acts = append(acts, act{who: rival, what: []string{"isolate", "pause", "kill"}[rng.IntN(3)], stay: spell(rng)})
		}
		w.arm(&aim{at: atVote, v: v, skip: rng.IntN(4), acts: acts})
	}
	w.move(v, int(b.id[0])-1)
}

// cutOff isolates the holder of a volume, lets it go on alone for a while, and
// then stops it or moves the volume.
func cutOff(w *World, rng *rand.Rand) {
	v := w.volume(rng)
	m := w.machines[v.home]
	alone := time.Duration(rng.IntN(3000)) * time.Millisecond
	long := time.Duration(3+rng.IntN(12)) * time.Second
	crash := rng.IntN(3) > 0
	to, power := rng.IntN(len(w.machines)), rng.IntN(3) == 0
	w.count("cut-off", "%s at %s", v.name, m.name)
	w.isolate(m, alone+long)
	w.background.Go(func() {
		if !w.until(alone) {
			return
		}
		if crash && m.take() {
			w.crash(m, power, long)
		}
		w.move(v, to)
	})
}

// burst moves a volume several times, so that takeovers meet.
func burst(w *World, rng *rand.Rand) {
	v := w.volume(rng)
	for range 2 + rng.IntN(6) {
		w.move(v, rng.IntN(len(w.machines)))
		if !w.sleep(soon(rng)) {
			return
		}
	}
}

// powerMost cuts the power of all machines but one.
func powerMost(w *World, rng *rand.Rand) {
	i, stay := rng.IntN(len(w.machines)), spell(rng)
	w.count("power-most", "all but %s", w.machines[i].name)
	for k, m := range w.machines {
		if k != i && m.take() {
			w.crash(m, true, stay)
		}
	}
}

// crash stops a machine that was taken, and starts it again after a while.
func (w *World) crash(m *machine, power bool, stay time.Duration) {
	if power {
		w.lose("power of " + m.name)
	}
	m.stop(power)
	w.undo(stay, func() { m.revive(); m.release() })
}

// move moves a volume by an operator's word, whoever holds it.
func (w *World) move(v *volume, i int) {
	m := w.machines[i]
	p := m.running()
	if p == nil || m.leaving {
		return
	}
	w.count("takeover", "%s to %s", v.name, m.name)
	w.mu.Lock()
	w.rival = i
	w.mu.Unlock()
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if _, err := p.core.Manager.Attach(ctx, v.name, true); err == nil {
			v.home = i
		}
	})
}

// diskMoment tells which moment an operation of a disk is.
func diskMoment(op, name string) moment {
	extents := strings.HasPrefix(name, extentFiles)
	switch {
	case op == "write" && extents:
		return atPack
	case op == "sync" && extents:
		return atStore
	case op == "punch":
		return atPunch
	case op == "sync" && strings.HasPrefix(name, "index"):
		return atIndex
	case op == "vote":
		return atVote
	}
	return ""
}
