//go:build mutate

package client_test

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant/catch"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "attach/client") }
