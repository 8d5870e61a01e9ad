package conform

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/targettest"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

// crowd opens clients of one volume and knows when the node has let go of one
// that was cut off: what it had received by then may be carried out before.
type crowd struct {
	n  *cluster.Node
	mu sync.Mutex
	// open counts sessions that the node should have.
	open, dialed int
}

// settle waits until the node has the sessions that it should, under mu.
func (c *crowd) settle() error {
	want := fmt.Sprintf("\ngabion_nbd_sessions %d\n", c.open)
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // nothing tells
		r, err := http.Get("http://" + c.n.Info.HTTP + "/metrics")
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || strings.Contains(string(b), want) {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("the node does not get to %q", strings.TrimSpace(want))
		}
	}
}

func (c *crowd) dial(volume string) (target.Device, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialed++
	o := nbdclient.Options{Addr: c.n.Info.NBD, Export: volume, Style: nbdclient.Style(c.dialed % 3)}
	if o.Style != nbdclient.Simple {
		o.Contexts = []string{nbdclient.ContextAllocation}
	}
	cl, err := nbdclient.Open(o)
	if err != nil {
		return nil, err
	}
	c.open++
	return member{nbdclient.NewDevice(cl, uint64(c.dialed)), c}, c.settle()
}

// member is a device of a crowd.
type member struct {
	*nbdclient.Device
	c *crowd
}

// Cut drops the connection; requests end when the node has let go of it.
func (m member) Cut() {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.open--
	m.Over = m.settle
	m.Device.Cut()
}

func (m member) Close() {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.open--
	m.Device.Close()
	m.settle()
}

func (m member) settle() {
	if err := m.c.settle(); err != nil {
		panic(err) // the model must not go on
	}
}

// TestRandomRequests has several clients of all styles send random requests
// with all flags, good and bad, to one volume, cut off at random, and the node
// killed between rounds; a flat array knows what each answer may be.
// GABION_NBD_OPS sets the number of requests of all clients together.
func TestRandomRequests(t *testing.T) {
	const clients = 4
	ops, rounds := 12000, 2
	if v := os.Getenv("GABION_NBD_OPS"); v != "" {
		var err error
		if ops, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		rounds = 2 + ops/500000
	}
	for _, block := range []string{"512", "4096"} {
		t.Run(block, func(t *testing.T) {
			c := cluster.New(t, 1)
			n := c.Nodes[0]
			c.CreateVolume(t, n, "v", "2M", "--replicas", "1", "--block-size", block)
			size, _ := strconv.Atoi(block)
			model := targettest.NewModel(2<<20, size)
			began := time.Now()
			for round := range rounds {
				who := &crowd{n: n}
				targettest.Exercise{
					Seed: uint64(round), Steps: ops / 2 / rounds / clients, Clients: clients, Depth: 32, BlocksMax: 64, Model: model,
					Open: func() (target.Device, error) { return who.dial("v") },
				}.Run(t)
				if t.Failed() {
					return
				}
				if err := n.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := n.Start(); err != nil {
					t.Fatal(err)
				}
				p := make([]byte, 2<<20)
				d, err := (&crowd{n: n}).dial("v")
				if err != nil {
					t.Fatal(err)
				}
				if err := d.ReadAt(context.Background(), p, 0); err != nil {
					t.Fatal(err)
				}
				if err := model.Recovered(p); err != nil {
					t.Fatal(err)
				}
				d.(target.Session).Close()
			}
			t.Logf("%d requests in %v", ops/2, time.Since(began).Round(time.Millisecond))
		})
	}
}
