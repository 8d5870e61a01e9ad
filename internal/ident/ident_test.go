package ident

import (
	"crypto/sha256"
	"testing"
)

func TestAddrOfIsSHA256(t *testing.T) {
	data := make([]byte, 5*hashPiece)
	for i := range data {
		data[i] = byte(i ^ i>>8)
	}
	for _, n := range []int{0, 1, 4096, hashPiece - 1, hashPiece, hashPiece + 1, 2 * hashPiece, len(data) - 7, len(data)} {
		if got := AddrOf(data[:n]); got != Addr(sha256.Sum256(data[:n])) {
			t.Errorf("%d bytes: %s", n, got)
		}
	}
}
