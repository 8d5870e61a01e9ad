package iscsi_test

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"

	"github.com/gabion-storage/gabion/target/iscsi/pdu"
	"github.com/gabion-storage/gabion/test/iscsiclient"
)

func TestDiscoveryListsWhatMayBeUsed(t *testing.T) {
	r, _ := memory(t, nil)
	c, err := iscsiclient.Login(r.addr, iscsiclient.Config{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.Discover()
	if err != nil || len(list) != 1 || fmt.Sprint(list[iqn+"v"]) != "["+r.addr+",1]" {
		t.Errorf("%v %v", list, err)
	}
	if err := c.Logout(); err != nil {
		t.Error(err)
	}
}

// TestDataMoveInEveryCombination writes and reads with every way of sending
// data that can be negotiated.
func TestDataMoveInEveryCombination(t *testing.T) {
	r, _ := memory(t, nil)
	rng := rand.New(rand.NewSource(1))
	for _, initial := range []string{"Yes", "No"} {
		for _, immediate := range []string{"Yes", "No"} {
			for _, digest := range []string{"None", "CRC32C"} {
				for _, sizes := range [][4]string{{"8192", "262144", "65536", "1"}, {"512", "1024", "512", "1"}, {"4096", "16384", "12288", "8"}, {"262144", "1048576", "262144", "8"}, {"700", "1500", "1000", "2"}} {
					name := fmt.Sprint(initial, immediate, digest, sizes)
					c := r.ready(iscsiclient.Config{Keys: keys("InitialR2T", initial, "ImmediateData", immediate, "HeaderDigest", digest, "DataDigest", digest,
						"MaxRecvDataSegmentLength", sizes[0], "MaxBurstLength", sizes[1], "FirstBurstLength", sizes[2], "MaxOutstandingR2T", sizes[3])})
					if (c.Params.InitialR2T != (initial == "Yes")) || c.Params.ImmediateData != (immediate == "Yes") || c.Digests.Data != (digest == "CRC32C") {
						t.Fatalf("%s: negotiated %+v", name, c.Params)
					}
					c.Params.SendMax = min(c.Params.SendMax, 8192) // several Data-Out for each burst
					for _, blocks := range []int{1, 2, 3, 24, 129, 600} {
						data := make([]byte, blocks*512)
						rng.Read(data)
						good(t, c, &iscsiclient.Command{CDB: iscsiclient.Write10(7, blocks, blocks == 3), Out: data})
						back := good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(7, blocks), In: make([]byte, len(data))})
						if back.Got != len(data) || !bytes.Equal(back.In, data) {
							t.Fatalf("%s: %d blocks came back changed", name, blocks)
						}
					}
					if err := c.Logout(); err != nil {
						t.Fatal(name, err)
					}
				}
			}
		}
	}
}

func TestResidualsTellWhatWasMissed(t *testing.T) {
	r, _ := memory(t, nil)
	c := r.ready(iscsiclient.Config{Keys: keys("InitialR2T", "No", "ImmediateData", "Yes")})
	data := bytes.Repeat([]byte{7}, 4096)
	good(t, c, &iscsiclient.Command{CDB: iscsiclient.Write10(0, 8, false), Out: data})
	for _, x := range []struct {
		blocks, length int
		want           pdu.Residual
		got            int
	}{
		{1, 512, pdu.Residual{}, 512},
		{1, 1024, pdu.Residual{Underflow: true, Count: 512}, 512},
		{2, 512, pdu.Residual{Overflow: true, Count: 512}, 512},
		{1, 200, pdu.Residual{Overflow: true, Count: 312}, 200},
	} {
		cmd := good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(0, x.blocks), In: make([]byte, x.length)})
		if cmd.Residual != x.want || cmd.Got != x.got {
			t.Errorf("read %+v: %+v, %d bytes", x, cmd.Residual, cmd.Got)
		}
	}
	nothing := &iscsiclient.Command{CDB: iscsiclient.Read10(0, 1)}
	if err := c.Do(nothing); err != nil || nothing.Status != 0 || nothing.Residual != (pdu.Residual{Overflow: true, Count: 512}) {
		t.Errorf("read of nothing: %v %v", nothing, err)
	}
	for _, x := range []struct {
		blocks, length int
		status         byte
		want           pdu.Residual
	}{
		{1, 1024, 0, pdu.Residual{Underflow: true, Count: 512}},
		{2, 512, 0, pdu.Residual{Overflow: true, Count: 512}},
		{1, 200, 2, pdu.Residual{Overflow: true, Count: 312}},
	} {
		cmd := &iscsiclient.Command{CDB: iscsiclient.Write10(100, x.blocks, false), Out: bytes.Repeat([]byte{9}, x.length)}
		if err := c.Do(cmd); err != nil || cmd.Status != x.status || cmd.Residual != x.want {
			t.Errorf("write %+v: %v %v", x, cmd, err)
		}
	}
	next := good(t, c, &iscsiclient.Command{CDB: iscsiclient.Read10(101, 1), In: make([]byte, 512)})
	if !bytes.Equal(next.In, make([]byte, 512)) {
		t.Error("the block behind a short write was overwritten")
	}
}
