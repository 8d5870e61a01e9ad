package blockdev

import (
	"sync/atomic"
	"testing"

	"github.com/gabion-storage/gabion/quorum"
)

// heldLog is a memLog whose entries stay with the holder while held is set.
type heldLog struct {
	*memLog
	held     atomic.Bool
	proposed chan struct{} // a checkpoint was proposed while held
}

func (l *heldLog) Kick() {
	if !l.held.Load() {
		l.memLog.Kick()
	}
}

func (l *heldLog) Checkpoint(upTo uint64, value []byte) (uint64, error) {
	if !l.held.Load() {
		return l.memLog.Checkpoint(upTo, value)
	}
	slot, err := l.Propose(quorum.EntryCheckpoint, nil)
	l.proposed <- struct{}{}
	return slot, err
}

// hold attaches the rig's volume through a log that can be held.
func (r *rig) hold() *heldLog {
	r.t.Helper()
	r.crashOnly()
	var rec *quorum.Recovered
	r.log, rec = r.log.reopened(true)
	l := &heldLog{memLog: r.log, proposed: make(chan struct{}, 1)}
	r.attachTo(l, rec)
	return l
}

// crashOnly ends the attachment without a word.
func (r *rig) crashOnly() {
	r.v.fail(errCrash)
	r.v.wg.Wait()
	r.log.Close()
}

// attachTo attaches the rig's volume to any log over r.log.
func (r *rig) attachTo(l Log, rec *quorum.Recovered) {
	r.t.Helper()
	v := newVolume(r.cfg)
	r.log.prog = v.pend.progress
	if err := v.open(r.t.Context(), l, rec); err != nil {
		r.t.Fatalf("attach: %v", err)
	}
	r.v = v
}

// TestAnswersComeWithTheirWatermark holds each answer until the log has told
// the watermark that it stands for, and gives it without delay then.
func TestAnswersComeWithTheirWatermark(t *testing.T) {
	for _, c := range []struct {
		name              string
		cache             WriteCache
		fua               bool
		received, durable bool // with which watermark the answer comes
	}{
		{"plain", CacheQuorum, false, true, true},
		{"fua", CacheQuorum, true, false, true},
		{"no cache", CacheNone, false, false, true},
		{"fua in the writer's cache", CacheWriter, true, false, true},
	} {
		for op, do := range map[string]func(v *Volume, fua bool, done func(error)){
			"write": func(v *Volume, fua bool, done func(error)) { v.Write(make([]byte, 4096), 0, fua, done) },
			"part":  func(v *Volume, fua bool, done func(error)) { v.Write(make([]byte, 512), 8192, fua, done) },
			"zero":  func(v *Volume, fua bool, done func(error)) { v.Zero(0, 1<<16, fua, done) },
		} {
			t.Run(c.name+"/"+op, func(t *testing.T) {
				r := newRig(t, 1<<20, func(cfg *Config) { cfg.WriteCache = c.cache })
				if err := wait(r.v, func(d func(error)) { r.v.Write(make([]byte, 4096), 8192, false, d) }); err != nil {
					t.Fatal(err) // what a partial write is merged with is in the tail
				}
				l := r.hold()
				l.held.Store(true)
				answered := false
				do(r.v, c.fua, func(err error) {
					if err != nil {
						t.Error(err)
					}
					answered = true
				})
				r.v.Kick()
				slot, durable := l.Next()-1, l.Durable()
				if answered {
					t.Fatal("answered while it was here alone")
				}
				r.v.pend.progress(slot-1, slot-1)
				if answered {
					t.Fatal("answered with the entry before it")
				}
				r.v.pend.progress(slot, durable)
				if answered != c.received {
					t.Fatalf("answered when received: %v", answered)
				}
				r.v.pend.progress(slot, slot)
				if answered != c.durable {
					t.Fatalf("answered when durable: %v", answered)
				}
			})
		}
	}
}

// TestFlushWaitsForAllBeforeIt: also for what was answered long ago.
func TestFlushWaitsForAllBeforeIt(t *testing.T) {
	r := newRig(t, 1<<20, nil)
	l := r.hold()
	l.held.Store(true)
	r.v.Write(make([]byte, 4096), 0, false, func(error) {})
	first := l.Next() - 1
	r.v.Write(make([]byte, 4096), 4096, false, func(error) {})
	last := l.Next() - 1
	flushed := false
	r.v.Flush(func(err error) { flushed = err == nil })
	for _, p := range [][2]uint64{{last, 0}, {last, first}} {
		if r.v.pend.progress(p[0], p[1]); flushed {
			t.Fatalf("flushed with received %d, durable %d of %d", p[0], p[1], last)
		}
	}
	if r.v.pend.progress(last, last); !flushed {
		t.Fatal("not flushed")
	}
	again := false
	r.v.Flush(func(err error) { again = err == nil })
	if !again {
		t.Fatal("a flush with nothing to do waits")
	}
}
