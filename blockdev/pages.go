package blockdev

import (
	"sync"

	"github.com/gabion-storage/gabion/blockdev/extentmap"
)

// pageCache keeps decoded map pages. A pointer never changes its meaning, so
// nothing is ever invalidated; when full, the oldest gives way. Safe for
// concurrent use.
type pageCache struct {
	mu   sync.RWMutex
	max  int
	at   map[extentmap.Ptr]*pageSlot
	ring []*pageSlot
	hand int
}

type pageSlot struct {
	ptr  extentmap.Ptr
	page *extentmap.Page
}

func newPageCache(max int) *pageCache {
	return &pageCache{max: max, at: map[extentmap.Ptr]*pageSlot{}}
}

func (c *pageCache) get(p extentmap.Ptr) *extentmap.Page {
	c.mu.RLock()
	s := c.at[p]
	c.mu.RUnlock()
	if s == nil {
		return nil
	}
	return s.page
}

// add stores a page. The page is shared and read-only from now on.
func (c *pageCache) add(p extentmap.Ptr, pg *extentmap.Page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[p]; ok {
		return
	}
	s := &pageSlot{ptr: p, page: pg}
	if len(c.ring) < c.max {
		c.ring = append(c.ring, s)
		c.at[p] = s
		return
	}
	old := c.ring[c.hand]
	delete(c.at, old.ptr)
	c.ring[c.hand] = s
	c.at[p] = s
	c.hand = (c.hand + 1) % len(c.ring)
}

// bytes estimates the memory held.
func (c *pageCache) bytes() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return int64(len(c.ring)) * 6200
}
