//go:build mutate

package pool

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant/catch"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "pool") }
