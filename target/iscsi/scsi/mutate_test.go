//go:build mutate

package scsi

import (
	"testing"

	"github.com/gabion-storage/gabion/internal/mutant/catch"
)

func TestMutationsAreCaught(t *testing.T) { catch.All(t, "target/iscsi/scsi") }
