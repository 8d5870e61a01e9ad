package exporter

import "github.com/gabion-storage/gabion/internal/ident"

// Sources are the parts of a node that are asked at each scrape. A nil one is
// a part that this node does not have: its metrics are absent. Each must answer
// at once and from memory, and may be called concurrently.
type Sources struct {
	// Version and Commit identify the build.
	Version, Commit string
	// Health lists what keeps this node from serving, one sentence each; none
	// means healthy. A degraded volume is not a reason: it works.
	Health func() []string
	// Sessions counts the NBD sessions that are open.
	Sessions func() int
	// ISCSISessions counts the iSCSI sessions that are open, discovery excepted.
	ISCSISessions func() int
	// Volumes are those that this node holds or may be asked about.
	Volumes func() []Volume
	// Bricks are the disks of this node.
	Bricks func() []Brick
	// Link counts since the start of the process.
	Link func() Link
	// DHT counts since the start of the process.
	DHT func() DHT
	// Nodes counts the nodes of the pool by state (alive, suspect, down).
	Nodes func() map[string]int
}

// Volume is one volume, as this node sees it.
type Volume struct {
	Name                            string
	SizeBytes, UsedBytes            int64
	ReplicasWanted, ReplicasPresent int
	// Held tells whether this node is the holder. The fields below are only
	// exported if so: nobody else knows them.
	Held                 bool
	Epoch                uint64
	LogBytes             int64
	CheckpointAgeSeconds float64
	// MembersLagging counts the members of the map block that are connected
	// but too far behind to count for an acknowledgement soon.
	MembersLagging int
}

// Brick is one disk of this node.
type Brick struct {
	ID                               ident.BrickID
	Path                             string
	UsedBytes, FreeBytes, TotalBytes int64
	JournalLiveBytes                 int64
	// Broken: it is set aside.
	Broken bool
	// ScrubLastUnixSeconds is when the last whole scrub ended, 0 if none did.
	// Damaged and Repaired are what the scrub that runs, or else the last one,
	// has found.
	ScrubLastUnixSeconds        int64
	ScrubDamaged, ScrubRepaired int64
}

// Link counts the bytes of the links between nodes, frames included.
type Link struct {
	SentBytes, ReceivedBytes uint64
	// Peers counts the nodes that are connected.
	Peers int
}

// DHT counts extents.
type DHT struct {
	Puts, Gets uint64
	// Corrupt counts copies whose bytes did not match their address or
	// checksum. Another copy was read instead if there was one.
	Corrupt uint64
	// Hedged counts reads that asked a second holder because the first was slow,
	// HedgesWon those that the second one answered, Probes reads that only saw
	// whether a slow brick still is.
	Hedged, HedgesWon, Probes uint64
	// Repaired and RepairsFailed count damaged copies on this node, Missed the
	// copies that successful puts left out.
	Repaired, RepairsFailed, Missed uint64
}
