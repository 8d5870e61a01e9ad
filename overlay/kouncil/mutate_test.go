//go:build mutate

package kouncil

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant/catch"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "overlay/kouncil") }
