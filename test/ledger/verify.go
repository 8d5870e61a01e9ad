package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// State remembers what a verification has seen in each block. What was seen
// once was served to a reader, and may only be replaced by a later write.
type State struct {
	Seen []Seq `json:"seen"`
}

// LoadState reads a state file; an absent one is the state of a new disk.
func LoadState(path string, p Plan) (*State, error) {
	s := &State{}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, s)
	} else if errors.Is(err, os.ErrNotExist) {
		s.Seen, err = make([]Seq, p.Blocks), nil
	}
	if err == nil && int64(len(s.Seen)) != p.Blocks {
		err = fmt.Errorf("%s is for %d blocks, not %d", path, len(s.Seen), p.Blocks)
	}
	return s, err
}

// Save replaces the state file.
func (s *State) Save(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// lossesMax bounds how many losses are listed one by one.
const lossesMax = 10

// Verify reads the whole ledger. Of the writes of round, 1..sure must be
// there; later ones may be. A block that no write up to sure touched holds
// what state has seen, or a later write of the round. The error lists the
// losses; state becomes what was read when there were none.
func (p Plan) Verify(d Disk, state *State, round uint32, sure uint64) error {
	must := make([]Seq, p.Blocks)
	for n := uint64(1); n <= sure; n++ {
		s := MakeSeq(round, n)
		must[p.Block(s)] = s
	}
	seen := make([]Seq, p.Blocks)
	var losses []error
	const chunk = 64
	buf := make([]byte, chunk*BlockSize)
	for from := int64(0); from < p.Blocks; from += chunk {
		n := min(chunk, p.Blocks-from)
		if err := d.ReadAt(buf[:n*BlockSize], (p.First+from)*BlockSize); err != nil {
			return fmt.Errorf("reading blocks %d..%d: %w", from, from+n, err)
		}
		for i := range n {
			b := from + i
			got, err := p.Read(buf[i*BlockSize:(i+1)*BlockSize], b)
			switch fresh := got.Round() == round && got.Number() > 0; {
			case err != nil:
			case must[b] != 0 && (!fresh || got < must[b]):
				err = fmt.Errorf("block %d: acknowledged write %v is lost, holds %v", b, must[b], got)
			case must[b] == 0 && !fresh && got != state.Seen[b]:
				err = fmt.Errorf("block %d: held write %v before, holds %v", b, state.Seen[b], got)
			}
			if err != nil {
				losses = append(losses, err)
			}
			seen[b] = got
		}
	}
	if n := len(losses); n > 0 {
		if n > lossesMax {
			losses = append(losses[:lossesMax], fmt.Errorf("and %d more", n-lossesMax))
		}
		return &Lost{Blocks: n, Of: p.Blocks, err: errors.Join(losses...)}
	}
	state.Seen = seen
	return nil
}

// Lost is the error of a verification that found blocks in a state that they
// cannot be in.
type Lost struct {
	Blocks int
	Of     int64
	err    error
}

func (l *Lost) Error() string { return fmt.Sprintf("LOST: %d of %d blocks\n%v", l.Blocks, l.Of, l.err) }
