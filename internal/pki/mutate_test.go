//go:build mutate

package pki

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant/catch"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "internal/pki") }
