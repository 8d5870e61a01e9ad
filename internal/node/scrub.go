package node

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/gabion-storage/gabion/dht/brick"
	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// ScrubSettings say how often and how fast this node verifies its bricks; zero
// means the default.
type ScrubSettings struct {
	Rate  int64         `json:"rate,omitempty"`  // bytes each second; default ScrubRateDefault
	Every time.Duration `json:"every,omitempty"` // between the beginnings of passes; default ScrubEveryDefault; negative: never
}

// Defaults of ScrubSettings: a full disk of 4 TB takes two and a half days.
const (
	ScrubRateDefault  = 20 << 20
	ScrubEveryDefault = 14 * 24 * time.Hour
)

// scrubKey is where a brick keeps how its scrub stands.
const scrubKey = "scrub"

// scrubRecord is how the scrub of a brick stands, kept on the brick itself.
type scrubRecord struct {
	// Next is when the next pass shall begin, unix seconds.
	Next int64 `json:"next"`
	// Running: a pass has begun and not ended; At is where it goes on.
	Running bool             `json:"running"`
	At      brick.ScrubPos   `json:"at"`
	Began   int64            `json:"began,omitempty"` // unix seconds
	Found   brick.ScrubCount `json:"found"`           // of the pass that runs
	Ended   int64            `json:"ended,omitempty"` // of the last whole pass, unix seconds
	Last    brick.ScrubCount `json:"last"`            // what the last whole pass found
}

// scrubs are the scrubs of all bricks of a node.
type scrubs struct {
	mu       sync.Mutex
	settings ScrubSettings
	all      []*scrubber
	changed  chan struct{} // closed and replaced when the settings change
}

// scrubber verifies one brick, a pass at a time.
type scrubber struct {
	c     *Core
	b     *brick.Brick
	start chan int64 // rate of a pass that shall begin now, 0 for the usual

	mu   sync.Mutex
	rec  scrubRecord
	rate int64 // of the pass that runs; 0: the usual
}

// startScrubs begins to look after the bricks, each on its own.
func (c *Core) startScrubs() {
	c.scrubs.settings = c.cfg.Scrub
	c.scrubs.changed = make(chan struct{})
	for _, b := range c.allBricks() {
		c.startScrub(b)
	}
}

// startScrub begins to look after a brick.
func (c *Core) startScrub(b *brick.Brick) {
	s := &scrubber{c: c, b: b, start: make(chan int64, 1)}
	c.scrubs.mu.Lock()
	c.scrubs.all = append(c.scrubs.all, s)
	c.scrubs.mu.Unlock()
	c.wg.Go(s.loop)
}

// stopScrub forgets a brick that is broken: its loop ends by itself, or with the node.
func (c *Core) stopScrub(id ident.BrickID) {
	c.scrubs.mu.Lock()
	defer c.scrubs.mu.Unlock()
	c.scrubs.all = slices.DeleteFunc(c.scrubs.all, func(s *scrubber) bool { return s.b.ID() == id })
}

// each are the scrubs of the bricks of now.
func (s *scrubs) each() []*scrubber {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// usual returns the settings, defaults filled in, and a channel that is closed
// when they change.
func (s *scrubs) usual() (ScrubSettings, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.settings
	if set.Rate == 0 {
		set.Rate = ScrubRateDefault
	}
	if set.Every == 0 {
		set.Every = ScrubEveryDefault
	}
	return set, s.changed
}

// SetScrub changes the settings, also for passes that run.
func (c *Core) SetScrub(set ScrubSettings) {
	c.scrubs.mu.Lock()
	defer c.scrubs.mu.Unlock()
	c.scrubs.settings = set
	close(c.scrubs.changed)
	c.scrubs.changed = make(chan struct{})
}

// loop waits for the next pass. Between passes it has one timer and nothing else.
func (s *scrubber) loop() {
	if !s.load() {
		return
	}
	for s.c.ctx.Err() == nil && s.b.Broken() == nil {
		rate, ok := s.wait()
		if !ok {
			return
		}
		s.pass(rate)
	}
}

func (s *scrubber) load() bool {
	raw, err := s.b.Stable().Get(scrubKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && len(raw) > 0 {
		err = json.Unmarshal(raw, &s.rec)
	}
	if err != nil {
		s.c.cfg.Log.Warn("how the scrub stood is not known; it begins anew", "brick", s.b.ID().Short(), "error", err)
		s.rec = scrubRecord{}
	}
	return s.b.Broken() == nil
}

// save keeps the record on the brick. What is lost of it costs a pass at most.
func (s *scrubber) save() {
	s.mu.Lock()
	raw, err := json.Marshal(&s.rec)
	s.mu.Unlock()
	if err == nil {
		err = s.b.Stable().Set(scrubKey, raw)
	}
	if err != nil && s.b.Broken() == nil {
		s.c.cfg.Log.Warn("how the scrub stands was not written down", "brick", s.b.ID().Short(), "error", err)
	}
}

// wait returns when a pass shall begin or go on, with its rate; false when the
// node ends.
func (s *scrubber) wait() (rate int64, ok bool) {
	for {
		set, changed := s.c.scrubs.usual()
		var due <-chan time.Time
		if set.Every > 0 {
			t := time.NewTimer(s.left(set.Every))
			defer t.Stop()
			due = t.C
		}
		select {
		case <-s.c.ctx.Done():
			return 0, false
		case rate = <-s.start:
			return rate, true
		case <-due:
			return 0, true
		case <-changed:
		}
	}
}

// left is the time until the next pass. A pass that was interrupted goes on at once.
func (s *scrubber) left(every time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Running {
		return 0
	}
	now := time.Now()
	if s.rec.Next == 0 || s.rec.Next > now.Add(every).Unix() {
		s.rec.Next = now.Add(every).Unix() // a new brick, or passes come sooner now
	}
	return time.Until(time.Unix(s.rec.Next, 0))
}

// pass runs one pass, or the rest of one.
func (s *scrubber) pass(rate int64) {
	set, _ := s.c.scrubs.usual()
	s.mu.Lock()
	if !s.rec.Running {
		now := time.Now()
		s.rec.Running, s.rec.At, s.rec.Found, s.rec.Began = true, brick.ScrubPos{}, brick.ScrubCount{}, now.Unix()
		s.rec.Next = now.Add(max(set.Every, 0)).Unix()
	}
	s.rate = rate
	from := s.rec.At
	s.mu.Unlock()
	s.save()
	err := s.b.Scrub(s.c.ctx, brick.ScrubConfig{
		From: from, Rate: s.rateNow, Progress: s.progress,
		Extent: func(addr ident.Addr, _ error) bool {
			err := s.c.Extents.Repair(s.b.ID(), addr)
			if err != nil {
				s.c.cfg.Log.Warn("damaged copy not replaced", "extent", addr.Short(), "brick", s.b.ID().Short(), "error", err)
			}
			return err == nil
		},
		Journal: func(end brick.Pos, _ error) bool {
			err := s.c.Acceptors.Heal(s.c.ctx, s.b.ID(), int64(end))
			if err != nil {
				s.c.cfg.Log.Warn("journal not healed", "brick", s.b.ID().Short(), "error", err)
			}
			return err == nil
		},
	})
	s.mu.Lock()
	s.rate = 0
	if err == nil {
		s.rec.Running, s.rec.Ended, s.rec.Last = false, time.Now().Unix(), s.rec.Found
	}
	found := s.rec.Found
	s.mu.Unlock()
	if s.c.ctx.Err() == nil {
		s.save()
	}
	switch {
	case err == nil && found.Damaged == 0:
		s.c.cfg.Log.Info("scrub: all is well", "brick", s.b.ID().Short(), "bytes", found.Bytes)
	case err == nil:
		s.c.cfg.Log.Warn("scrub: damage was found", "brick", s.b.ID().Short(), "damaged", found.Damaged, "repaired", found.Repaired)
	case s.c.ctx.Err() == nil && s.b.Broken() == nil:
		s.c.cfg.Log.Warn("scrub ended early", "brick", s.b.ID().Short(), "error", err)
		s.c.pause(time.Minute)
	}
}

// rateNow is the rate at this moment, in bytes each second.
func (s *scrubber) rateNow() int64 {
	s.mu.Lock()
	rate := s.rate
	s.mu.Unlock()
	if rate == 0 {
		set, _ := s.c.scrubs.usual()
		rate = set.Rate
	}
	return rate
}

func (s *scrubber) progress(at brick.ScrubPos, found brick.ScrubCount) {
	s.mu.Lock()
	s.rec.At = at
	s.rec.Found.Add(found)
	s.mu.Unlock()
	s.save()
}

// describe tells an operator how the scrub stands.
func (s *scrubber) describe() *control.Scrub {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.rec
	out := &control.Scrub{Running: r.Running, LastUnixSeconds: r.Ended, NextUnixSeconds: r.Next}
	found := r.Last
	if r.Running {
		found, out.BeganUnixSeconds = r.Found, r.Began
	}
	out.VerifiedBytes, out.Damaged, out.Repaired = found.Bytes, found.Damaged, found.Repaired
	out.Lost = append(out.Lost, found.Lost...)
	return out
}

// ScrubNow begins a pass on a brick of this node, or on all that work with the
// zero id, or changes the rate of the one that runs. rate is in bytes each
// second, 0 for the usual. NotFound: no such brick is in use here.
func (c *Core) ScrubNow(id ident.BrickID, rate int64) error {
	n := 0
	for _, s := range c.scrubs.each() {
		if s.b.Broken() != nil || !id.IsZero() && s.b.ID() != id {
			continue
		}
		n++
		s.mu.Lock()
		if running := s.rec.Running; running && rate > 0 {
			s.rate = rate
		}
		running := s.rec.Running
		s.mu.Unlock()
		if !running {
			select {
			case s.start <- rate:
			default: // one is about to begin
			}
		}
	}
	if n == 0 {
		return fault.Newf(fault.NotFound, "scrub start", id.Short(), "no such brick is in use on this node")
	}
	return nil
}

// ScrubOf tells how the scrub of a brick stands, nil if there is none.
func (c *Core) ScrubOf(id ident.BrickID) *control.Scrub {
	for _, s := range c.scrubs.each() {
		if s.b.ID() == id {
			return s.describe()
		}
	}
	return nil
}

// StartScrub implements control.Daemon.
func (n *Node) StartScrub(_ context.Context, req control.StartScrub) error {
	if req.RateBytes < 0 {
		return fault.Newf(fault.Invalid, "scrub start", "", "a rate is not negative")
	}
	if req.Brick == "" {
		return n.ScrubNow(ident.BrickID{}, req.RateBytes)
	}
	for _, b := range n.openedBricks() {
		if b.path == req.Brick || b.b.ID().String() == req.Brick || b.b.ID().Short() == req.Brick {
			return n.ScrubNow(b.b.ID(), req.RateBytes)
		}
	}
	return fault.Newf(fault.NotFound, "scrub start", req.Brick, "no such brick is in use on this node; gabion brick list shows them, with their nodes")
}

// ScrubSettings implements control.Daemon.
func (n *Node) ScrubSettings(_ context.Context, req control.ScrubSettings) error {
	if req.RateBytes < 0 || req.EverySeconds < -1 {
		return fault.Newf(fault.Invalid, "scrub set", "", "a rate is not negative, and the time between passes at least a second")
	}
	n.asideMu.Lock()
	set := n.dir.mem.Scrub
	if req.RateBytes > 0 {
		set.Rate = req.RateBytes
	}
	if req.EverySeconds != 0 {
		set.Every = time.Duration(req.EverySeconds) * time.Second
	}
	n.dir.mem.Scrub = set
	err := n.dir.save()
	n.asideMu.Unlock()
	if err == nil {
		n.Core.SetScrub(set)
	}
	return err
}
