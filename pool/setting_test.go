package pool

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

func TestSettingIsReplacedOnlyByWhoHasReadIt(t *testing.T) {
	s := testState(t)
	v := ident.VolumeID{1}
	must(t, s, PutSetting(v, "export", 0, []byte("a")))
	if got := s.Setting(v, "export"); got.Version != 1 || string(got.Value) != "a" {
		t.Fatalf("%+v", got)
	}
	for _, base := range []uint64{0, 2} {
		if err := Apply(s, PutSetting(v, "export", base, []byte("b"))); !fault.Is(err, fault.Conflict) {
			t.Errorf("base %d: %v", base, err)
		}
	}
	old := s.Clone()
	must(t, s, PutSetting(v, "export", 1, nil))
	if got := s.Setting(v, "export"); got.Version != 2 || len(got.Value) != 0 {
		t.Errorf("%+v", got)
	}
	if got := old.Setting(v, "export"); got.Version != 1 || string(got.Value) != "a" {
		t.Errorf("an older state changed: %+v", got)
	}
	if got := s.Setting(ident.VolumeID{}, "export"); got.Version != 0 {
		t.Errorf("the pool has the volume's: %+v", got)
	}
	again, err := DecodeState(EncodeState(s))
	if err != nil || again.Setting(v, "export").Version != 2 {
		t.Errorf("%v", err)
	}
}

func TestSettingsEndWithTheirVolume(t *testing.T) {
	s := testState(t)
	w := testVol("x", 3)
	must(t, s, Command{CreateVolume: &w})
	for _, id := range []ident.VolumeID{{}, {1}, {3}} {
		must(t, s, PutSetting(id, "export", 0, []byte("x")))
		must(t, s, PutSetting(id, "a", 0, []byte("x")))
	}
	must(t, s, DeleteVolume(ident.VolumeID{1}))
	if len(s.Settings) != 4 || s.Setting(ident.VolumeID{1}, "a").Version != 0 || s.Setting(ident.VolumeID{3}, "a").Version != 1 {
		t.Errorf("%+v", s.Settings)
	}
	if err := Apply(s, PutSetting(ident.VolumeID{1}, "a", 0, nil)); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestSettingsAreBounded(t *testing.T) {
	s := testState(t)
	v := ident.VolumeID{1}
	if err := Apply(s, PutSetting(v, "Export", 0, nil)); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := Apply(s, PutSetting(v, "a", 0, make([]byte, SettingValueMax+1))); !fault.Is(err, fault.NoSpace) {
		t.Error(err)
	}
	full := bytes.Repeat([]byte{1}, SettingValueMax)
	for i := range SettingsBytesMax / SettingValueMax {
		must(t, s, PutSetting(v, fmt.Sprint("k", i), 0, full))
	}
	if err := Apply(s, PutSetting(v, "more", 0, []byte{1})); !fault.Is(err, fault.NoSpace) {
		t.Error(err)
	}
	must(t, s, PutSetting(v, "k0", 1, full[1:])) // shrinking is always possible
	must(t, s, PutSetting(v, "more", 0, []byte{1}))
	s.Settings = append(s.Settings, Setting{Key: "a"})
	if _, err := DecodeState(EncodeState(s)); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a list out of order: %v", err)
	}
}
