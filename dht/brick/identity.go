package brick

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/internal/vfs"
)

const (
	identityFile = "brick.json"
	// creatingFile stands while a new brick is laid out: without an identity
	// beside it, what the directory holds was never used.
	creatingFile   = "CREATING"
	stableFile     = "stable.db"
	lockFile       = "LOCK"
	formatVersion  = 2
	identityMaxLen = 4096
)

// identity is the content of brick.json.
type identity struct {
	Format int           `json:"format"`
	Pool   ident.PoolID  `json:"pool"`
	Node   ident.NodeID  `json:"node"`
	Brick  ident.BrickID `json:"brick"`
	Sum    string        `json:"sum"` // CRC32C of the other fields, so that a flipped digit is noticed
}

func (id identity) sum() string {
	s := fmt.Sprintf("%d %s %s %s", id.Format, id.Pool, id.Node, id.Brick)
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(s), castagnoli))
}

func (id identity) encode() []byte {
	id.Sum = id.sum()
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		panic("brick: identity does not marshal: " + err.Error()) // fixed types only
	}
	return append(b, '\n')
}

func decodeIdentity(b []byte) (id identity, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&id); err != nil {
		return id, fault.Newf(fault.Corrupt, "brick.open", identityFile, "the identity of the brick is damaged: %w", err)
	}
	if id.Sum != id.sum() {
		return id, fault.Newf(fault.Corrupt, "brick.open", identityFile,
			"the identity of the brick is damaged: its checksum is %s, not %q", id.sum(), id.Sum)
	}
	if id.Format != formatVersion {
		return id, fault.Newf(fault.Invalid, "brick.open", identityFile,
			"disk format %d; this gabion knows %d: use the version that wrote it", id.Format, formatVersion)
	}
	return id, nil
}

// readIdentity returns the identity of the brick in fs; found is false if the
// directory holds no brick yet.
func readIdentity(fs vfs.FS) (id identity, found bool, err error) {
	b, err := vfs.ReadFile(fs, identityFile, identityMaxLen)
	if err == nil {
		id, err = decodeIdentity(b)
		return id, err == nil, err
	}
	if !fault.Is(err, fault.NotFound) {
		return id, false, err
	}
	names, err := fs.List(".")
	if err != nil {
		return id, false, err
	}
	var leftover string
	for _, n := range names {
		switch {
		case n == creatingFile:
			return id, false, nil
		case n == "journal", n == "extents", n == stableFile, strings.HasPrefix(n, "index-"):
			leftover = n
		}
	}
	if leftover != "" {
		return id, false, fault.Newf(fault.Corrupt, "brick.open", identityFile,
			"%s is there but the identity of the brick is not: restore the file, or empty the directory to begin "+
				"a new brick", leftover)
	}
	return id, false, nil
}

// Identify tells which brick lies in fs, without opening it. found is false in
// a directory that holds none. Corrupt: it holds one whose identity is damaged.
func Identify(fs vfs.FS) (id ident.BrickID, found bool, err error) {
	i, found, err := readIdentity(fs)
	return i.Brick, found, err
}

// check compares the identity with who is opening the brick.
func (id identity) check(pool ident.PoolID, node ident.NodeID) error {
	switch {
	case id.Pool != pool:
		return fault.Newf(fault.Denied, "brick.open", id.Brick.Short(),
			"the brick belongs to pool %s, this node to pool %s", id.Pool, pool)
	case id.Node != node:
		return fault.Newf(fault.Denied, "brick.open", id.Brick.Short(),
			"the brick belongs to node %s, this node is %s", id.Node, node)
	}
	return nil
}

// clearLeftovers removes what an interrupted creation left.
func clearLeftovers(fs vfs.FS) error {
	for _, dir := range []string{"journal", "extents", "."} {
		names, err := fs.List(dir)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if dir == "." && n != stableFile && !strings.HasPrefix(n, "index-") {
				continue
			}
			name := n
			if dir != "." {
				name = dir + "/" + n
			}
			if err := fs.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}
