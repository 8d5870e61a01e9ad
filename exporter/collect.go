package exporter

import (
	"cmp"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// collector turns what the sources answer into metrics at each scrape.
type collector struct {
	src    Sources
	build  *prometheus.Desc
	nodes  *prometheus.Desc
	drop   *prometheus.Desc
	single []single
	volume []perVolume
	brick  []perBrick
}

// single is a metric without labels of its own; value reports false if the
// source is absent.
type single struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*snapshot) (float64, bool)
	label []string
}

type perVolume struct {
	desc     *prometheus.Desc
	heldOnly bool
	value    func(*Volume) float64
}

type perBrick struct {
	desc  *prometheus.Desc
	value func(*Brick) float64
}

// snapshot is what the sources answered in one scrape.
type snapshot struct {
	sessions *int
	iscsi    *int
	link     *Link
	dht      *DHT
}

func newCollector(src Sources) *collector {
	c := &collector{
		src:   src,
		build: desc("gabion_build_info", "The build that runs; always 1.", "version", "commit", "go"),
		nodes: desc("gabion_overlay_nodes", "Nodes of the pool, by state as this node sees it.", "state"),
		drop:  desc("gabion_exporter_volumes_dropped", "Volumes without series of their own, for there are too many."),
	}
	c.single = singles()
	c.volume = volumeMetrics()
	c.brick = brickMetrics()
	return c
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func singles() []single {
	linkBytes := desc("gabion_link_bytes_total", "Bytes on the links between nodes.", "direction")
	counter, gauge := prometheus.CounterValue, prometheus.GaugeValue
	link := func(f func(*Link) float64) func(*snapshot) (float64, bool) {
		return func(s *snapshot) (float64, bool) {
			if s.link == nil {
				return 0, false
			}
			return f(s.link), true
		}
	}
	dht := func(f func(*DHT) uint64) func(*snapshot) (float64, bool) {
		return func(s *snapshot) (float64, bool) {
			if s.dht == nil {
				return 0, false
			}
			return float64(f(s.dht)), true
		}
	}
	return []single{
		{desc("gabion_nbd_sessions", "NBD sessions that are open."), gauge, func(s *snapshot) (float64, bool) {
			if s.sessions == nil {
				return 0, false
			}
			return float64(*s.sessions), true
		}, nil},
		{desc("gabion_iscsi_sessions", "iSCSI sessions that are open, discovery excepted."), gauge, func(s *snapshot) (float64, bool) {
			if s.iscsi == nil {
				return 0, false
			}
			return float64(*s.iscsi), true
		}, nil},
		{linkBytes, counter, link(func(l *Link) float64 { return float64(l.SentBytes) }), []string{"sent"}},
		{linkBytes, counter, link(func(l *Link) float64 { return float64(l.ReceivedBytes) }), []string{"received"}},
		{desc("gabion_link_peers", "Nodes that are connected."), gauge,
			link(func(l *Link) float64 { return float64(l.Peers) }), nil},
		{desc("gabion_dht_puts_total", "Extents stored, one for each copy asked for."), counter,
			dht(func(d *DHT) uint64 { return d.Puts }), nil},
		{desc("gabion_dht_gets_total", "Reads of extents."), counter,
			dht(func(d *DHT) uint64 { return d.Gets }), nil},
		{desc("gabion_dht_corrupt_total", "Copies that did not match their checksum or address."), counter,
			dht(func(d *DHT) uint64 { return d.Corrupt }), nil},
		{desc("gabion_dht_hedged_total", "Reads that asked a second holder because the first was slow."), counter,
			dht(func(d *DHT) uint64 { return d.Hedged }), nil},
		{desc("gabion_dht_hedges_won_total", "Hedged reads that the second holder answered first."), counter,
			dht(func(d *DHT) uint64 { return d.HedgesWon }), nil},
		{desc("gabion_dht_probes_total", "Reads that only ask whether a slow brick still is."), counter,
			dht(func(d *DHT) uint64 { return d.Probes }), nil},
		{desc("gabion_dht_repaired_total", "Damaged copies on this node that were replaced."), counter,
			dht(func(d *DHT) uint64 { return d.Repaired }), nil},
		{desc("gabion_dht_repairs_failed_total", "Damaged copies on this node that could not be replaced."), counter,
			dht(func(d *DHT) uint64 { return d.RepairsFailed }), nil},
		{desc("gabion_dht_missed_total", "Copies that successful puts left out."), counter,
			dht(func(d *DHT) uint64 { return d.Missed }), nil},
	}
}

func volumeMetrics() []perVolume {
	vol := func(name, help string) *prometheus.Desc { return desc(name, help, "volume") }
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return []perVolume{
		{vol("gabion_blockdev_size_bytes", "Size of the volume."), false,
			func(v *Volume) float64 { return float64(v.SizeBytes) }},
		{vol("gabion_blockdev_replicas_wanted", "Copies that the volume shall have."), false,
			func(v *Volume) float64 { return float64(v.ReplicasWanted) }},
		{vol("gabion_blockdev_replicas_present", "Copies in reach and up to date."), false,
			func(v *Volume) float64 { return float64(v.ReplicasPresent) }},
		{vol("gabion_blockdev_held", "1 if this node is the holder of the volume."), false,
			func(v *Volume) float64 { return flag(v.Held) }},
		{vol("gabion_blockdev_used_bytes", "Bytes that one copy occupies."), true,
			func(v *Volume) float64 { return float64(v.UsedBytes) }},
		{vol("gabion_blockdev_epoch", "Attachments of the volume up to the present one."), true,
			func(v *Volume) float64 { return float64(v.Epoch) }},
		{vol("gabion_blockdev_log_bytes", "Log tail since the last checkpoint."), true,
			func(v *Volume) float64 { return float64(v.LogBytes) }},
		{vol("gabion_blockdev_checkpoint_age_seconds", "Time since the last checkpoint."), true,
			func(v *Volume) float64 { return v.CheckpointAgeSeconds }},
		{vol("gabion_quorum_members_lagging", "Members of the map block that are connected but far behind."), true,
			func(v *Volume) float64 { return float64(v.MembersLagging) }},
	}
}

func brickMetrics() []perBrick {
	brick := func(name, help string) *prometheus.Desc { return desc(name, help, "brick", "path") }
	return []perBrick{
		{brick("gabion_brick_used_bytes", "Bytes that gabion stores on the brick."),
			func(b *Brick) float64 { return float64(b.UsedBytes) }},
		{brick("gabion_brick_free_bytes", "Free bytes of the disk."),
			func(b *Brick) float64 { return float64(b.FreeBytes) }},
		{brick("gabion_brick_size_bytes", "Size of the disk."),
			func(b *Brick) float64 { return float64(b.TotalBytes) }},
		{brick("gabion_brick_journal_live_bytes", "Part of the journal that is still needed."),
			func(b *Brick) float64 { return float64(b.JournalLiveBytes) }},
		{brick("gabion_brick_scrub_last_seconds", "Unix time at which the last whole scrub ended; 0 if none did."),
			func(b *Brick) float64 { return float64(b.ScrubLastUnixSeconds) }},
		{brick("gabion_brick_scrub_damaged", "Damaged places that the running or else the last scrub found."),
			func(b *Brick) float64 { return float64(b.ScrubDamaged) }},
		{brick("gabion_brick_scrub_repaired", "Of them, those that were repaired."),
			func(b *Brick) float64 { return float64(b.ScrubRepaired) }},
		{brick("gabion_brick_broken", "1 if the brick is set aside: its disk failed, stalled or lied."),
			func(b *Brick) float64 {
				if b.Broken {
					return 1
				}
				return 0
			}},
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.build
	ch <- c.nodes
	ch <- c.drop
	for _, m := range c.single {
		ch <- m.desc
	}
	for _, m := range c.volume {
		ch <- m.desc
	}
	for _, m := range c.brick {
		ch <- m.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	emit := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	const gauge = prometheus.GaugeValue
	emit(c.build, gauge, 1, c.src.Version, c.src.Commit, runtime.Version())
	if c.src.Nodes != nil {
		for state, n := range c.src.Nodes() {
			emit(c.nodes, gauge, float64(n), state)
		}
	}
	snap := c.snapshot()
	for _, m := range c.single {
		if v, ok := m.value(&snap); ok {
			emit(m.desc, m.kind, v, m.label...)
		}
	}
	if c.src.Bricks != nil {
		for _, b := range c.src.Bricks() {
			path := strings.ToValidUTF8(b.Path, "?") // a path may be anything, a label may not
			for _, m := range c.brick {
				emit(m.desc, gauge, m.value(&b), b.ID.Short(), path)
			}
		}
	}
	if c.src.Volumes != nil {
		vs := slices.Clone(c.src.Volumes())
		slices.SortFunc(vs, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
		kept := vs[:min(len(vs), VolumesMax)]
		emit(c.drop, gauge, float64(len(vs)-len(kept)))
		for _, v := range kept {
			for _, m := range c.volume {
				if v.Held || !m.heldOnly {
					emit(m.desc, gauge, m.value(&v), v.Name)
				}
			}
		}
	}
}

func (c *collector) snapshot() snapshot {
	var s snapshot
	if c.src.Sessions != nil {
		n := c.src.Sessions()
		s.sessions = &n
	}
	if c.src.ISCSISessions != nil {
		n := c.src.ISCSISessions()
		s.iscsi = &n
	}
	if c.src.Link != nil {
		l := c.src.Link()
		s.link = &l
	}
	if c.src.DHT != nil {
		d := c.src.DHT()
		s.dht = &d
	}
	return s
}
