package paxos

import (
	"bytes"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
)

func FuzzDecodeConfig(f *testing.F) {
	c := Config{Version: 7, Members: []Member{{Node: ident.NodeID{1}, Brick: ident.BrickID{2}},
		{Node: ident.NodeID{3}, Brick: ident.BrickID{4}, Role: Learner}}}
	f.Add(AppendConfig(nil, c))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, rest, err := DecodeConfig(b)
		if err != nil {
			return
		}
		if again := append(AppendConfig(nil, c), rest...); !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x", b, again)
		}
	})
}

func FuzzDecodeCheckpointBody(f *testing.F) {
	f.Add(AppendCheckpointBody(nil, 9, []byte("value")))
	f.Fuzz(func(t *testing.T, b []byte) {
		upTo, value, err := DecodeCheckpointBody(b)
		if err != nil {
			return
		}
		if again := AppendCheckpointBody(nil, upTo, value); !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x", b, again)
		}
	})
}

func FuzzDecodeBallot(f *testing.F) {
	f.Add(AppendBallot(nil, Ballot{Epoch: 1, Node: ident.NodeID{2}, Boot: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < BallotSize {
			return
		}
		if again := AppendBallot(nil, DecodeBallot(b)); !bytes.Equal(again, b[:BallotSize]) {
			t.Fatalf("%x came back as %x", b, again)
		}
	})
}
