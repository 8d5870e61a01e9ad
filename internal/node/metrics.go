package node

import (
	"github.com/gabion-storage/gabion/exporter"
	"github.com/gabion-storage/gabion/overlay"
)

// sources is what a scrape asks. Before the node is built there is nothing to tell.
func (n *Node) sources() exporter.Sources {
	return exporter.Sources{
		Version: n.cfg.Version,
		Health:  n.unhealthy,
		Sessions: func() int {
			if n.nbd == nil {
				return 0
			}
			sum := 0
			for _, c := range n.nbd.Stats().Sessions {
				sum += c
			}
			return sum
		},
		ISCSISessions: func() int {
			if n.iscsi == nil {
				return 0
			}
			sum := 0
			for target, c := range n.iscsi.Stats().Sessions {
				if target != "" {
					sum += c
				}
			}
			return sum
		},
		Volumes: n.volumeMetrics,
		Bricks:  n.brickMetrics,
		Link: func() exporter.Link {
			s := n.mesh.Stats()
			return exporter.Link{SentBytes: s.SentBytes, ReceivedBytes: s.ReceivedBytes, Peers: n.peersUp()}
		},
		DHT: func() exporter.DHT {
			var out exporter.DHT
			st := n.Extents.Stats()
			for _, h := range st.Holders {
				out.Puts += h.Puts
				out.Gets += h.Reads
				out.Corrupt += h.ReadsCorrupt
			}
			out.Hedged, out.HedgesWon, out.Probes = st.Hedges, st.HedgesWon, st.Probes
			out.Repaired, out.RepairsFailed, out.Missed = st.Repaired, st.RepairsFailed, st.MissedPuts
			return out
		},
		Nodes: func() map[string]int {
			out := map[string]int{}
			for _, x := range n.View.Nodes() {
				out[x.State.String()]++
			}
			for _, s := range []overlay.State{overlay.Alive, overlay.Suspect, overlay.Down} {
				out[s.String()] += 0
			}
			return out
		},
	}
}

// peersUp counts the nodes that this one is connected to.
func (n *Node) peersUp() int {
	up := 0
	for _, x := range n.View.Nodes() {
		if x.ID != n.Self && n.mesh.Connected(x.ID) {
			up++
		}
	}
	return up
}

func (n *Node) unhealthy() []string {
	if n.Core == nil {
		return []string{"the node is starting"}
	}
	var out []string
	for _, b := range n.describeBricks() {
		if b.State == BrickAside {
			out = append(out, "brick "+b.Path+" is set aside: "+b.Reason)
		}
	}
	if n.View.Isolated() {
		out = append(out, "more than a third of the nodes are out of reach")
	}
	return out
}

func (n *Node) volumeMetrics() []exporter.Volume {
	var out []exporter.Volume
	for v := range n.Manager.Attached() {
		s := v.Status()
		out = append(out, exporter.Volume{
			Name: s.Name, SizeBytes: v.Size(), UsedBytes: s.StoredBytes, ReplicasWanted: s.Replicas, ReplicasPresent: s.Present,
			Held: true, Epoch: s.Epoch, LogBytes: s.TailBytes, CheckpointAgeSeconds: s.CheckpointAge.Seconds(), MembersLagging: s.Lagging,
		})
	}
	return out
}

func (n *Node) brickMetrics() []exporter.Brick {
	var out []exporter.Brick
	for _, b := range n.describeBricks() {
		x := exporter.Brick{
			ID: b.ID, Path: b.Path, UsedBytes: b.UsedBytes, FreeBytes: b.FreeBytes, TotalBytes: b.TotalBytes,
			JournalLiveBytes: b.JournalBytes, Broken: b.State == BrickAside,
		}
		if b.Scrub != nil {
			x.ScrubLastUnixSeconds, x.ScrubDamaged, x.ScrubRepaired = b.Scrub.LastUnixSeconds, b.Scrub.Damaged, b.Scrub.Repaired
		}
		out = append(out, x)
	}
	return out
}
