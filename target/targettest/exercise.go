package targettest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gabion-storage/gabion/target"
)

// Exercise is a run of random operations against one device.
type Exercise struct {
	Seed  uint64
	Steps int // operations of each client
	Depth int // operations that a client has under way at most; default 16
	// BlocksMax is the length of the longest operation, in blocks; default 8.
	BlocksMax int
	Clients   int // default 1
	// Open begins a client's use of the device. A device that is also a Cutter
	// is cut off at random, and opened anew.
	Open  func() (target.Device, error)
	Model *Model
	// MayFail allows operations to fail; they count as lost.
	MayFail bool
}

// Cutter is a device whose connection can be cut. Cut returns when nothing can
// happen any more of the operations under way; their callbacks have run, with
// errors.
type Cutter interface{ Cut() }

// Cacher is a device that can be asked to have a range at hand.
type Cacher interface {
	Cache(off, n int64, done func(error))
}

// Refuser is a device that can send requests that must be refused, and change
// nothing. done gets an error if one was not.
type Refuser interface {
	Refuse(done func(error))
}

// Run does it and fails t when a read returns what it must not.
func (x Exercise) Run(t testing.TB) {
	t.Helper()
	if x.Depth == 0 {
		x.Depth = 16
	}
	if x.BlocksMax == 0 {
		x.BlocksMax = 8
	}
	var wg sync.WaitGroup
	for i := range max(1, x.Clients) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := &client{x: x, rand: rand.New(rand.NewPCG(x.Seed, uint64(i))), slots: make(chan struct{}, x.Depth)}
			if err := c.run(); err != nil {
				t.Errorf("seed %d, client %d: %v", x.Seed, i, err)
			}
		}()
	}
	wg.Wait()
}

// client is one of an exercise's clients.
type client struct {
	x     Exercise
	rand  *rand.Rand
	dev   target.Device
	slots chan struct{} // full while Depth operations are under way

	mu     sync.Mutex
	cut    bool // failures are expected
	failed error
}

func (c *client) run() error {
	var err error
	if c.dev, err = c.x.Open(); err != nil {
		return err
	}
	defer func() {
		if s, ok := c.dev.(target.Session); ok {
			s.Close()
		}
	}()
	for range c.x.Steps {
		if cut, ok := c.dev.(Cutter); ok && c.rand.IntN(200) == 0 {
			c.set(true)
			cut.Cut()
			c.drain()
			c.set(false)
			if c.dev, err = c.x.Open(); err != nil {
				return err
			}
		}
		c.step()
		if err := c.err(); err != nil {
			break
		}
	}
	c.dev.Kick()
	c.drain()
	return c.err()
}

// drain waits until nothing is under way.
func (c *client) drain() {
	for range c.x.Depth {
		c.slots <- struct{}{}
	}
	for range c.x.Depth {
		<-c.slots
	}
}

func (c *client) set(cut bool) {
	c.mu.Lock()
	c.cut = cut
	c.mu.Unlock()
}

func (c *client) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

func (c *client) fail(err error) {
	c.mu.Lock()
	if c.failed == nil {
		c.failed = err
	}
	c.mu.Unlock()
}

// ended frees a slot after an operation and keeps an error that is not expected.
func (c *client) ended(what string, err error) {
	c.mu.Lock()
	if err != nil && !c.cut && !c.x.MayFail && c.failed == nil {
		c.failed = errors.Join(errors.New(what+" failed"), err)
	}
	c.mu.Unlock()
	<-c.slots
}

// step begins one random operation.
func (c *client) step() {
	select {
	case c.slots <- struct{}{}:
	default:
		c.dev.Kick()
		c.slots <- struct{}{}
	}
	m := c.x.Model
	block := int64(m.block)
	n := 1 + c.rand.IntN(c.x.BlocksMax)
	off := c.rand.Int64N(int64(len(m.blocks)-n+1)) * block
	size := n * m.block
	fua := c.rand.IntN(8) == 0
	change := func(what string, o *Op) func(error) {
		return func(err error) {
			if err == nil {
				o.Done(fua)
			} else {
				o.Lost()
			}
			c.ended(what, err)
		}
	}
	switch k := c.rand.IntN(23); {
	case k < 8:
		c.read(off, size)
	case k == 20:
		c.describe(off, size)
	case k == 22:
		if d, ok := c.dev.(Refuser); ok {
			d.Refuse(func(err error) { c.ended("a bad request", err) })
		} else {
			c.ended("a bad request", nil)
		}
	case k == 21:
		if d, ok := c.dev.(Cacher); ok {
			d.Cache(off, int64(size), func(err error) { c.ended("cache", err) })
		} else {
			c.ended("cache", nil)
		}
	case k < 15:
		p := make([]byte, size)
		c.dev.Write(p, off, fua, change("write", m.BeginWrite(p, off)))
	case k < 17:
		c.dev.Zero(off, int64(size), fua, change("zero", m.BeginZero(off, size, false)))
	case k < 18:
		c.dev.Trim(off, int64(size), fua, change("trim", m.BeginZero(off, size, true)))
	default:
		o := m.BeginFlush()
		c.dev.Flush(func(err error) {
			if err == nil {
				o.Flushed()
			}
			c.ended("flush", err)
		})
	}
	if c.rand.IntN(4) == 0 {
		c.dev.Kick()
	}
}

// read reads at once if the device can, otherwise on a goroutine.
func (c *client) read(off int64, n int) {
	p := make([]byte, n)
	o := c.x.Model.BeginRead(off, n)
	check := func() {
		if err := o.Check(p); err != nil {
			c.fail(err)
		}
	}
	dev := c.dev
	if dev.TryReadAt(p, off) {
		check()
		c.ended("read", nil)
		return
	}
	go func() {
		err := dev.ReadAt(context.Background(), p, off)
		if err == nil {
			check()
		} else {
			o.Forget()
		}
		c.ended("read", err)
	}()
}

// describe asks which of a range is zeros, if the device can tell.
func (c *client) describe(off int64, n int) {
	dev, ok := c.dev.(target.Mapper)
	if !ok {
		c.ended("map", nil)
		return
	}
	o := c.x.Model.BeginRead(off, n)
	limit := 1 + c.rand.IntN(4)
	go func() {
		got, err := dev.Map(context.Background(), off, int64(n), "", limit, nil)
		if err != nil {
			o.Forget()
		} else if err := o.CheckMap(got, limit); err != nil {
			c.fail(err)
		}
		c.ended("map", err)
	}()
}
