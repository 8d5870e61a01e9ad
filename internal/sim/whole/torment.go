package whole

import (
	mrand "math/rand"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

// kind is a kind of fault. do does it to the pool and returns at once; what it
// does is undone by a goroutine of w.background after a while.
type kind struct {
	name   string
	weight int
	do     func(w *World, rng *rand.Rand)
}

// kinds are the faults that a run draws from.
var kinds = []kind{
	{"takeover", 12, takeover},
	{"burst", 3, burst},
	{"duel", 8, duel},
	{"cut-off", 6, cutOff},
	{"aim", 16, takeAim},
	{"kill", 10, kill},
	{"power", 10, power},
	{"power-all", 2, powerAll},
	{"power-most", 2, powerMost},
	{"isolate", 8, isolate},
	{"cut", 8, cut},
	{"partition", 4, partition},
	{"drop", 8, drop},
	{"delay", 4, delay},
	{"pause", 8, pause},
	{"disk-slow", 6, diskSlow},
	{"disk-hung", 3, diskHung},
	{"disk-full", 4, diskFull},
	{"disk-sync-error", 2, diskSyncError},
	{"disk-cold", 3, diskCold},
	{"disk-rot", 4, diskRot},
	{"disk-lost-write", 3, diskLost},
	{"disk-misdirected-write", 3, diskMisdirected},
	{"join", 1, join},
	{"drain", 1, drain},
	{"wipe", 1, wipe},
	{"force", 3, force},
}

// Kinds lists the names of all faults.
func Kinds() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// torment draws faults, some seconds apart, for as long as the run says. Each
// run uses some of the kinds only: faults that come together seldom find things
// that all faults at once hide.
func (w *World) torment(rng *rand.Rand, in []kind) {
	total := 0
	for i := range in {
		in[i].weight *= []int{1, 1, 1, 5}[rng.IntN(4)]
		total += in[i].weight
	}
	mean := w.mood.pace
	for end := time.Now().Add(w.opt.For); time.Now().Before(end); {
		if !w.sleep(time.Duration(rng.ExpFloat64() * float64(mean))) {
			return
		}
		if total == 0 {
			continue
		}
		at := rng.IntN(total)
		for _, k := range in {
			if at -= k.weight; at < 0 {
				k.do(w, rng)
				break
			}
		}
	}
}

// lies are the kinds that damage data silently.
var lies = []string{"disk-rot", "disk-lost-write", "disk-misdirected-write"}

// choose draws the kinds of a run. A disk that lies and one that is lost could
// together take both copies that a majority of three was.
func (w *World) choose(rng *rand.Rand) (in []kind) {
	lie := rng.IntN(2) == 0
	for _, k := range kinds {
		coin := rng
		if k.name == "force" { // so that the other kinds are those that the seed always drew
			coin = w.stream(forForce)
		}
		use := (coin.IntN(5) < 3 || k.name == "takeover") && !slices.Contains(w.opt.Without, k.name)
		switch {
		case k.name == "force":
			use = use && !lie
		case k.name == "wipe":
			use = use && !lie
		case slices.Contains(lies, k.name):
			use = use && lie
		}
		if len(w.opt.Only) > 0 {
			use = slices.Contains(w.opt.Only, k.name)
		}
		if use {
			in = append(in, k)
		}
	}
	return in
}

// spell is for how long a fault stays: mostly short, at times beyond every
// timer.
func spell(rng *rand.Rand) time.Duration {
	switch rng.IntN(6) {
	case 0:
		return time.Duration(rng.IntN(50)) * time.Millisecond
	case 1:
		return time.Duration(3+rng.IntN(20)) * time.Second
	default:
		return time.Duration(rng.IntN(4000)) * time.Millisecond
	}
}

// undo plans the end of a fault; healing brings it forward.
func (w *World) undo(d time.Duration, f func()) {
	w.background.Go(func() {
		w.mu.Lock()
		calmed := w.calmed
		w.mu.Unlock()
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-calmed:
		}
		f()
	})
}

// pick picks a machine, in some runs mostly one that holds a volume.
func (w *World) pick(rng *rand.Rand) *machine {
	i, v := rng.IntN(len(w.machines)), w.volume(rng)
	if rng.Float64() < w.mood.focus {
		i = v.home
	}
	return w.machines[i]
}

// any picks a machine that no other fault has, and reserves it.
func (w *World) any(rng *rand.Rand) *machine {
	m := w.pick(rng)
	if !m.take() {
		return nil
	}
	return m
}

func kill(w *World, rng *rand.Rand) {
	if m := w.any(rng); m != nil {
		w.count("kill", "%s", m.name)
		w.crash(m, false, spell(rng))
	}
}

func power(w *World, rng *rand.Rand) {
	if m := w.any(rng); m != nil {
		w.count("power", "%s", m.name)
		w.crash(m, true, spell(rng))
	}
}

// powerAll is a power cut of the whole pool.
func powerAll(w *World, rng *rand.Rand) {
	var all []*machine
	for _, m := range w.machines {
		if m.take() {
			all = append(all, m)
		}
	}
	w.count("power-all", "%d machines", len(all))
	w.lose("power of all")
	for _, m := range all {
		m.stop(true)
		w.undo(spell(rng), func() { m.revive(); m.release() })
	}
}

// takeover moves a volume.
func takeover(w *World, rng *rand.Rand) { w.move(w.volume(rng), rng.IntN(len(w.machines))) }

func isolate(w *World, rng *rand.Rand) {
	m := w.pick(rng)
	w.count("isolate", "%s", m.name)
	w.isolate(m, spell(rng))
}

func (w *World) isolate(m *machine, stay time.Duration) {
	w.net.Isolate(m.id)
	w.undo(stay, func() { w.net.Rejoin(m.id) })
}

// cut cuts one direction between two machines.
func cut(w *World, rng *rand.Rand) {
	a, b := pair(w, rng)
	w.count("cut", "%s to %s", a.name, b.name)
	w.net.Cut(a.id, b.id)
	w.undo(spell(rng), func() { w.net.Heal(a.id, b.id) })
}

func pair(w *World, rng *rand.Rand) (a, b *machine) {
	i := rng.Perm(len(w.machines))
	return w.machines[i[0]], w.machines[i[1]]
}

// partition cuts the pool in two.
func partition(w *World, rng *rand.Rand) {
	side := map[ident.NodeID]bool{}
	for _, m := range w.machines {
		side[m.id] = rng.IntN(2) == 0
	}
	each := func(f func(a, b ident.NodeID)) {
		for _, a := range w.machines {
			for _, b := range w.machines {
				if side[a.id] != side[b.id] {
					f(a.id, b.id)
				}
			}
		}
	}
	w.count("partition", "%v", side)
	each(w.net.Cut)
	w.undo(spell(rng), func() { each(w.net.Heal) })
}

// drop loses what is under way between two machines, and the connection.
func drop(w *World, rng *rand.Rand) {
	a, b := pair(w, rng)
	w.count("drop", "%s and %s", a.name, b.name)
	w.net.Drop(a.id, b.id)
}

// delay makes the network slow for a while.
func delay(w *World, rng *rand.Rand) {
	w.count("delay", "the network")
	w.net.SetDelay(0, time.Duration(1+rng.IntN(300))*time.Millisecond)
	w.undo(spell(rng), func() { w.net.SetDelay(20*time.Microsecond, time.Millisecond) })
}

// pause stops a machine as a debugger, a hypervisor or SIGSTOP does: nothing
// that it sends, writes or answers gets out before it goes on, while the time
// passes its timers.
func pause(w *World, rng *rand.Rand) {
	m := w.any(rng)
	if m == nil {
		return
	}
	w.count("pause", "%s", m.name)
	w.pause(m, spell(rng))
}

func (w *World) pause(m *machine, stay time.Duration) {
	f := make(chan struct{})
	m.mu.Lock()
	m.frozen = f
	m.mu.Unlock()
	w.net.Isolate(m.id)
	w.undo(stay, func() {
		w.net.Rejoin(m.id)
		m.mu.Lock()
		m.frozen = nil
		m.mu.Unlock()
		close(f)
		m.release()
	})
}

func diskSlow(w *World, rng *rand.Rand) {
	m := w.pick(rng)
	w.count("disk-slow", "%s", m.name)
	wait := time.Duration(5+rng.IntN(300)) * time.Millisecond
	ops := []string{"", "sync", "write", "read"}
	w.undo(spell(rng), m.inject(vfs.Fault{Op: ops[rng.IntN(len(ops))], Name: part(rng), Wait: func(string, string) { time.Sleep(wait) }}))
}

// part is the part of a disk that a fault meets: mostly all of it.
func part(rng *rand.Rand) string { return []string{"", "", extentFiles, "journal/"}[rng.IntN(4)] }

func (m *machine) inject(f vfs.Fault) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk.Inject(f)
}

func diskHung(w *World, rng *rand.Rand) {
	m := w.pick(rng)
	w.count("disk-hung", "%s", m.name)
	ops := []string{"", "sync", "write", "read"}
	m.mu.Lock()
	release := m.disk.Hang(vfs.Fault{Op: ops[rng.IntN(len(ops))], Name: part(rng)})
	m.mu.Unlock()
	w.undo(spell(rng), release)
}

// diskFull lets a disk grow by little or nothing.
func diskFull(w *World, rng *rand.Rand) {
	m := w.pick(rng)
	w.count("disk-full", "%s", m.name)
	m.mu.Lock()
	disk := m.disk
	m.mu.Unlock()
	disk.SetCapacity(disk.Used() + int64(rng.IntN(64))<<12)
	w.undo(spell(rng), func() {
		m.mu.Lock()
		m.disk.SetCapacity(0)
		m.mu.Unlock()
	})
}

// diskSyncError fails a sync: what it should have made durable is gone.
func diskSyncError(w *World, rng *rand.Rand) {
	m := w.any(rng)
	if m == nil {
		return
	}
	w.count("disk-sync-error", "%s", m.name)
	w.lose("sync error of " + m.name)
	remove := m.inject(vfs.Fault{Op: "sync", Err: vfs.EIO, Times: 1})
	w.undo(spell(rng), func() {
		remove()
		if m.running() == nil { // it broke; the machine is started anew
			m.stop(true)
			m.revive()
		}
		m.release()
	})
}

// diskCold drops a page cache.
func diskCold(w *World, rng *rand.Rand) {
	m := w.pick(rng)
	w.count("disk-cold", "%s", m.name)
	m.mu.Lock()
	disk := m.disk
	m.mu.Unlock()
	disk.SetCold(true)
	w.undo(spell(rng), func() { disk.SetCold(false) })
}

// extentFiles is where silent damage is done: to a copy that has others. The
// journal is the vote of a brick, and a disk that forgets votes without a word is
// a liar that no majority of three allows for.
const extentFiles = "extents/"

// victim is the one machine of the pool whose disk damages data silently, so
// that of each extent a copy stays good.
func (w *World) victim() *machine { return w.machines[int(w.opt.Seed)%3] }

func diskRot(w *World, rng *rand.Rand) {
	m := w.victim()
	m.mu.Lock()
	name, off, err := m.disk.Rot(mrand.New(mrand.NewSource(rng.Int64())), extentFiles)
	m.mu.Unlock()
	if err == nil {
		w.count("disk-rot", "%s: %s at %d", m.name, name, off)
	}
}

func diskLost(w *World, rng *rand.Rand) {
	w.silent(rng, "disk-lost-write", vfs.Fault{Op: "write", Name: extentFiles, Lost: true, Times: 1 + rng.IntN(3)})
}

func diskMisdirected(w *World, rng *rand.Rand) {
	delta := int64(1+rng.IntN(64)) * 4096
	if rng.IntN(2) == 0 {
		delta = -delta
	}
	w.silent(rng, "disk-misdirected-write", vfs.Fault{Op: "write", Name: extentFiles, Misdirect: &vfs.Place{Delta: delta}, Times: 1})
}

// silent lets the victim's disk lie for a while and then drops its page cache,
// which uncovers the lie.
func (w *World) silent(rng *rand.Rand, kind string, f vfs.Fault) {
	m := w.victim()
	w.count(kind, "%s", m.name)
	remove := m.inject(f)
	w.undo(spell(rng), func() {
		remove()
		m.mu.Lock()
		m.disk.Evict()
		m.mu.Unlock()
	})
}

// nodesMax bounds the pools that grow.
const nodesMax = 7

// join adds a node.
func join(w *World, _ *rand.Rand) {
	if n := len(w.machines); n < nodesMax {
		w.count("join", "n%d", n+1)
		w.join(n)
	}
}
