// Package ident holds the identities of things: 16 random bytes for a pool,
// node, brick, volume or mutable block; 32 hash bytes for an extent. Each is a
// type of its own so that one cannot be passed for another.
package ident

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// ID is a 16-byte identity of a thing of kind K. The zero value means "none".
type ID[K any] [16]byte

type (
	poolKind   struct{}
	nodeKind   struct{}
	brickKind  struct{}
	volumeKind struct{}
	groupKind  struct{}
)

type (
	PoolID   = ID[poolKind]
	NodeID   = ID[nodeKind] // first 16 bytes of SHA-256 of the node's public key
	BrickID  = ID[brickKind]
	VolumeID = ID[volumeKind]
	// GroupID names one mutable block. A volume's map block has the volume's
	// bytes; the pool block has the pool's.
	GroupID = ID[groupKind]
)

// New draws a random identity.
func New[K any]() ID[K] {
	var id ID[K]
	if _, err := rand.Read(id[:]); err != nil {
		panic("ident: no randomness: " + err.Error())
	}
	return id
}

func NewPool() PoolID     { return New[poolKind]() }
func NewBrick() BrickID   { return New[brickKind]() }
func NewVolume() VolumeID { return New[volumeKind]() }

// MapBlock names the map block of a volume.
func MapBlock(v VolumeID) GroupID { return GroupID(v) }

// PoolBlock names the mutable block that holds the pool's state.
func PoolBlock(p PoolID) GroupID { return GroupID(p) }

func (id ID[K]) String() string { return hex.EncodeToString(id[:]) }

// Short is the first eight hex digits, for logs and tables.
func (id ID[K]) Short() string { return hex.EncodeToString(id[:4]) }

func (id ID[K]) IsZero() bool { return id == ID[K]{} }

func (id ID[K]) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *ID[K]) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("an id has %d hex digits, not %d", 2*len(id), len(b))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// Compare orders identities by their bytes.
func (id ID[K]) Compare(o ID[K]) int {
	for i := range id {
		if id[i] != o[i] {
			if id[i] < o[i] {
				return -1
			}
			return 1
		}
	}
	return 0
}

// Addr is the address of an extent: SHA-256 of its encoded bytes.
type Addr [32]byte

// hashPiece is how much is hashed at a time. The loop over one call's bytes has no place at
// which the runtime could stop it, and whoever stops the world waits for it.
const hashPiece = 32 << 10

// AddrOf is the address of encoded bytes.
func AddrOf(data []byte) (a Addr) {
	if len(data) <= hashPiece {
		return sha256.Sum256(data)
	}
	h := sha256.New()
	for len(data) > hashPiece {
		h.Write(data[:hashPiece])
		data = data[hashPiece:]
	}
	h.Write(data)
	h.Sum(a[:0])
	return a
}

func (a Addr) String() string { return hex.EncodeToString(a[:]) }
func (a Addr) Short() string  { return hex.EncodeToString(a[:4]) }
func (a Addr) IsZero() bool   { return a == Addr{} }

func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a *Addr) UnmarshalText(b []byte) error {
	if len(b) != 2*len(a) {
		return fmt.Errorf("an address has %d hex digits, not %d", 2*len(a), len(b))
	}
	_, err := hex.Decode(a[:], b)
	return err
}
