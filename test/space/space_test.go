// Package space measures on the disks what volumes cost and what they give
// back.
package space

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gabion-storage/gabion/internal/control"
	"github.com/gabion-storage/gabion/test/cluster"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

const (
	liveBytes = 128 << 20
	copies    = 3
	overwrite = 10
	chunk     = 64 << 10
	// amplification bounds what the bricks hold while a volume is overwritten:
	// a multiple of live data times copies.
	amplification = 2.5
	// journalSlack is two journal segments of a brick.
	journalSlack = 64 << 20
)

// Random overwriting costs a bounded multiple of the live data at any moment,
// and deleting the volume gives the space back.
func TestSpace(t *testing.T) {
	c := cluster.New(t, 3)
	n := c.Nodes[0]
	// A first volume's life brings the journals to the size that they keep.
	c.CreateVolume(t, n, "warm", "128M", "--replicas", "3")
	fill(t, n, "warm", 2, nil)
	remove(t, n, "warm")
	base, journals := settled(t, c)
	t.Logf("idle: status says %s, disks hold %s and %s of journals", mib(used(t, n)), mib(base), mib(journals))

	c.CreateVolume(t, n, "v", "128M", "--replicas", "3")
	var peakStatus, peakDisk int64
	fill(t, n, "v", overwrite, func() {
		peakStatus = max(peakStatus, used(t, n))
		data, log := onDisk(c)
		peakDisk = max(peakDisk, data-base+max(0, log-journals))
	})
	const live = liveBytes * copies
	t.Logf("overwritten %d times: %s live x copies; at most %s by status, %s more on the disks",
		overwrite, mib(live), mib(peakStatus), mib(peakDisk))
	if float64(peakStatus) > amplification*live {
		t.Errorf("bricks held %s, more than %.1f x %s", mib(peakStatus), amplification, mib(live))
	}
	if float64(peakDisk) > amplification*live {
		t.Errorf("disks held %s more, more than %.1f x %s", mib(peakDisk), amplification, mib(live))
	}
	remove(t, n, "v")
	after, journalsAfter := settled(t, c)
	t.Logf("deleted: status says %s, disks hold %s and %s of journals", mib(used(t, n)), mib(after), mib(journalsAfter))
	if after-base > live/20 {
		t.Errorf("%s of %s did not come back after the volume was deleted", mib(after-base), mib(live))
	}
	// A journal keeps written segments for reuse: as many as the load needed at
	// once, which two runs of it need not agree on to the segment.
	if journalsAfter-journals > copies*journalSlack {
		t.Errorf("the journals grew from %s to %s", mib(journals), mib(journalsAfter))
	}
}

// Trimmed ranges are given back too, while the volume lives.
func TestTrimGivesBack(t *testing.T) {
	c := cluster.New(t, 1)
	n := c.Nodes[0]
	if _, err := n.Do("volume", "create", "v", "--size", "128M", "--replicas", "1"); err != nil {
		t.Fatal(err)
	}
	fill(t, n, "v", 1, nil)
	client := n.Dial(t, "v")
	if err := client.Trim(0, liveBytes); err != nil {
		t.Fatal(err)
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	_, err := n.Await(60*time.Second, func(s *control.Status) error {
		v, err := cluster.Volume(s, "v")
		if err == nil && v.UsedBytes > liveBytes/20 {
			err = fmt.Errorf("the trimmed volume still uses %s", mib(v.UsedBytes))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// fill writes random data times over the whole volume in random order, 64 KiB
// at a time, several at once, with flushes, and calls look now and then.
func fill(t *testing.T, n *cluster.Node, volume string, times int, look func()) {
	t.Helper()
	client := n.Dial(t, volume)
	defer client.Close()
	const depth = 8
	rnd := rand.NewChaCha8([32]byte{1})
	order := rand.New(rnd)
	slots := make(chan struct{}, depth)
	var mu sync.Mutex
	var failed error
	buf := make([]byte, chunk)
	for i := range times * liveBytes / chunk {
		rnd.Read(buf)
		off := int64(order.IntN(liveBytes/chunk)) * chunk
		if i < liveBytes/chunk {
			off = int64(i) * chunk // all of it is live from the first pass on
		}
		slots <- struct{}{}
		client.Start(nbdclient.CmdWrite, 0, off, len(buf), buf, func(err error) {
			mu.Lock()
			if failed == nil {
				failed = err
			}
			mu.Unlock()
			<-slots
		})
		if i%256 == 255 {
			if err := client.Flush(); err != nil {
				t.Fatal(err)
			}
			if look != nil {
				look()
			}
		}
	}
	for range depth {
		slots <- struct{}{}
	}
	if failed == nil {
		failed = client.Flush()
	}
	if failed != nil {
		t.Fatal(failed)
	}
}

func remove(t *testing.T, n *cluster.Node, volume string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		// The export ends a moment after its client has gone.
		_, err := n.Do("volume", "delete", volume, "--yes")
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func used(t *testing.T, n *cluster.Node) int64 {
	t.Helper()
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Used(s)
}

// settled waits until what the disks hold has not changed for two seconds:
// giving back happens in the background.
func settled(t *testing.T, c *cluster.Cluster) (data, journals int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	data, journals = onDisk(c)
	for since := time.Now(); time.Since(since) < 2*time.Second; {
		select {
		case <-ctx.Done():
			t.Fatal("the disks do not come to rest")
		case <-tick.C:
		}
		d, j := onDisk(c)
		if d != data || j != journals {
			data, journals, since = d, j, time.Now()
		}
	}
	return data, journals
}

// onDisk is what the nodes' directories occupy, in bytes: allocated blocks,
// not file sizes, so that punched holes count as given back. Journals, which
// belong to a brick and not to a volume, are told apart.
func onDisk(c *cluster.Cluster) (data, journals int64) {
	for _, n := range c.Nodes {
		filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
			var st syscall.Stat_t
			if err == nil && d.Type().IsRegular() && syscall.Lstat(path, &st) == nil {
				if filepath.Base(filepath.Dir(path)) == "journal" {
					journals += st.Blocks * 512
				} else {
					data += st.Blocks * 512
				}
			}
			return nil // a file may go away while we look
		})
	}
	return data, journals
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
