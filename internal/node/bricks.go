package node

import (
	"context"
	"slices"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/overlay"
)

// asideBrick is a brick that is not used, and why, as node.json keeps it: not on
// the brick, whose disk cannot be trusted.
type asideBrick struct {
	ID       ident.BrickID `json:"id"` // zero if its identity cannot be read
	Path     string        `json:"path"`
	Reason   string        `json:"reason"`
	Since    int64         `json:"since"` // unix seconds
	Capacity int64         `json:"capacity,omitempty"`
	// Forgotten: the pool does not know it any more. It stays here so that the
	// directory is not opened as that brick again.
	Forgotten bool `json:"forgotten,omitempty"`
}

// damaging tells whether an error at the opening of a brick is about its disk, and
// not about how the node was started.
func damaging(err error) bool {
	switch fault.KindOf(err) {
	case fault.Corrupt, fault.Internal, fault.Timeout, fault.Unavailable, fault.ReadOnly:
		return true
	}
	return false
}

// asideAt returns why the brick at path is not to be opened, nil if it is. Another
// brick than the one that was set aside, or none yet, is a new one, and the old one
// is gone.
func (n *Node) asideAt(path string, id ident.BrickID, found bool, err error) *asideBrick {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	for i := range n.dir.mem.Aside {
		a := &n.dir.mem.Aside[i]
		if a.Path != path {
			continue
		}
		if err != nil || found && (a.ID == id || a.ID.IsZero()) {
			return a
		}
		n.cfg.Log.Info("another brick takes the place of the one that was set aside", "brick", path, "old", a.ID.Short())
		n.dir.mem.Aside = slices.Delete(n.dir.mem.Aside, i, i+1)
		return nil
	}
	return nil
}

// keepAside records durably that a brick is not used.
func (n *Node) keepAside(a asideBrick) error {
	n.cfg.Log.Error("brick is set aside; see gabion brick list", "brick", a.Path, "id", a.ID.Short(), "reason", a.Reason)
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	for i := range n.dir.mem.Aside {
		if n.dir.mem.Aside[i].Path == a.Path {
			return nil // the first reason is the one that matters
		}
	}
	n.dir.mem.Aside = append(n.dir.mem.Aside, a)
	return n.dir.save()
}

// saveDir writes node.json.
func (n *Node) saveDir() error {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	return n.dir.save()
}

// brickBroke sets a brick aside: a disk that failed, stalled or lied is not
// trusted again. The node goes on with its others, or without any.
func (n *Node) brickBroke(path string, err error) {
	a := asideBrick{Path: path, Reason: err.Error(), Since: time.Now().Unix()}
	for _, b := range n.openedBricks() {
		if b.path == path {
			a.ID, a.Capacity = b.b.ID(), b.b.Capacity()
		}
	}
	if err := n.keepAside(a); err != nil {
		n.cfg.Log.Error("the brick is set aside, but that could not be written down", "brick", path, "error", err)
	}
	if core := n.core.Load(); core != nil {
		core.BrickBroke(a.ID)
	}
}

// openedBricks are the bricks that this process opened.
func (n *Node) openedBricks() []openBrick {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	return slices.Clone(n.bricks)
}

// asideList is what is set aside and not forgotten.
func (n *Node) asideList() []asideBrick {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	var out []asideBrick
	for _, a := range n.dir.mem.Aside {
		if !a.Forgotten {
			out = append(out, a)
		}
	}
	return out
}

// brickInfos is what the pool is to know of this node's bricks.
func (n *Node) brickInfos() []overlay.BrickInfo {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	var out []overlay.BrickInfo
	known := map[ident.BrickID]bool{{}: true}
	for _, a := range n.dir.mem.Aside {
		if !known[a.ID] && !a.Forgotten {
			out = append(out, overlay.BrickInfo{ID: a.ID, Capacity: a.Capacity, Leaving: true})
		}
		known[a.ID] = true
	}
	for _, b := range n.bricks {
		if !known[b.b.ID()] {
			out = append(out, infoOf(b.b))
		}
	}
	return out
}

// findAside returns the place of a brick of this node that is set aside. mu is
// held. id is what a person typed: all of it, or its beginning.
func (n *Node) findAside(op, id string) (int, error) {
	found := -1
	for i, a := range n.dir.mem.Aside {
		if a.Forgotten || !(a.Path == id || len(id) >= 4 && len(id) <= 32 && a.ID.String()[:len(id)] == id) {
			continue
		}
		if found >= 0 {
			return 0, fault.Newf(fault.Invalid, op, id, "more than one brick begins like that; give more of its id")
		}
		found = i
	}
	if found >= 0 {
		return found, nil
	}
	for _, b := range n.bricks {
		if b.path == id || b.b.ID().String() == id || b.b.ID().Short() == id {
			return 0, fault.Newf(fault.Conflict, op, id, "this brick works; only one that is set aside can be forgotten or readmitted")
		}
	}
	return 0, fault.Newf(fault.NotFound, op, id, "no brick of this node that is set aside has this id; gabion brick list shows them, with their nodes")
}

// ForgetBrick implements control.Daemon.
func (n *Node) ForgetBrick(_ context.Context, id string) error {
	n.asideMu.Lock()
	i, err := n.findAside("brick forget", id)
	if err == nil {
		n.dir.mem.Aside[i].Forgotten = true
		err = n.dir.save()
	}
	n.asideMu.Unlock()
	if err == nil {
		n.Core.Reannounce()
	}
	return err
}

// BrickAside is the state of a brick that is set aside.
const BrickAside = "aside"

// describeBricks tells about the bricks of this node, those set aside included.
func (n *Node) describeBricks() []control.Brick {
	aside := map[ident.BrickID]asideBrick{}
	var out []control.Brick
	for _, a := range n.asideList() {
		aside[a.ID] = a
	}
	for _, b := range n.openedBricks() {
		u := b.b.Usage()
		d := control.Brick{
			Node: n.name, ID: b.b.ID(), Path: b.path, UsedBytes: u.ExtentStored, FreeBytes: u.Free,
			TotalBytes: u.Total, JournalBytes: u.JournalLive, State: u.State,
		}
		if err := b.b.Broken(); err != nil {
			d.State, d.Reason, d.FreeBytes = BrickAside, err.Error(), 0
		} else {
			d.Scrub = n.ScrubOf(d.ID)
		}
		if a, ok := aside[d.ID]; ok {
			d.Reason, d.SinceUnixSeconds = a.Reason, a.Since
			delete(aside, d.ID)
		} else if d.State == BrickAside && n.isForgotten(d.ID) {
			continue
		}
		out = append(out, d)
	}
	for _, a := range aside {
		out = append(out, control.Brick{Node: n.name, ID: a.ID, Path: a.Path, TotalBytes: a.Capacity, State: BrickAside,
			Reason: a.Reason, SinceUnixSeconds: a.Since})
	}
	return out
}

func (n *Node) isForgotten(id ident.BrickID) bool {
	n.asideMu.Lock()
	defer n.asideMu.Unlock()
	return slices.ContainsFunc(n.dir.mem.Aside, func(a asideBrick) bool { return a.ID == id && a.Forgotten })
}
