package pool

import (
	"cmp"
	"slices"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/internal/ident"
)

// Limits of settings: they live in the pool block with everything else.
const (
	SettingsMax      = 2048
	SettingValueMax  = 4 << 10  // bytes of one value
	SettingsBytesMax = 24 << 10 // bytes of all values
)

// Setting is a named value of a volume, or of the pool if Volume is zero. What a
// value means is known to who set it. A setting ends with its volume.
type Setting struct {
	Volume ident.VolumeID `json:"volume"`
	Key    string         `json:"key"`
	// Version counts the changes, from 1.
	Version uint64 `json:"version"`
	Value   []byte `json:"value,omitempty"`
}

// SettingChange replaces a value if it has not changed since it was read.
type SettingChange struct {
	Volume ident.VolumeID `json:"volume"`
	Key    string         `json:"key"`  // has the form of a name
	Base   uint64         `json:"base"` // version that is replaced; 0: there is none
	Value  []byte         `json:"value,omitempty"`
}

// PutSetting is the command that replaces version base of a setting by value.
// Conflict: it has another version. NotFound: there is no such volume. NoSpace: a
// limit of settings.
func PutSetting(volume ident.VolumeID, key string, base uint64, value []byte) Command {
	return Command{ID: NewCommandID(), PutSetting: &SettingChange{Volume: volume, Key: key, Base: base, Value: value}}
}

func compareSettings(a, b Setting) int {
	return cmp.Or(a.Volume.Compare(b.Volume), cmp.Compare(a.Key, b.Key))
}

func (s *State) findSetting(volume ident.VolumeID, key string) (int, bool) {
	return slices.BinarySearchFunc(s.Settings, Setting{Volume: volume, Key: key}, compareSettings)
}

// Setting returns a setting; the zero Setting, of Version 0, if there is none.
func (s *State) Setting(volume ident.VolumeID, key string) Setting {
	if i, ok := s.findSetting(volume, key); ok {
		return s.Settings[i]
	}
	return Setting{Volume: volume, Key: key}
}

func putSetting(s *State, c SettingChange) error {
	const op = "pool.put-setting"
	if !nameOK(c.Key) {
		return invalid(op, shown(c.Key), "the key of a setting has the form of a name")
	}
	if !c.Volume.IsZero() {
		if _, err := volumeIndex(s, op, c.Volume); err != nil {
			return err
		}
	}
	if len(c.Value) > SettingValueMax {
		return fault.Newf(fault.NoSpace, op, c.Key, "a value of %d bytes, the limit is %d", len(c.Value), SettingValueMax)
	}
	i, found := s.findSetting(c.Volume, c.Key)
	old := s.Setting(c.Volume, c.Key)
	if old.Version != c.Base {
		return fault.Newf(fault.Conflict, op, c.Key, "it has version %d, not %d: read it again", old.Version, c.Base)
	}
	sum := len(c.Value) - len(old.Value)
	for _, x := range s.Settings {
		sum += len(x.Value)
	}
	if sum > SettingsBytesMax && len(c.Value) > len(old.Value) {
		return fault.Newf(fault.NoSpace, op, c.Key, "all settings would have %d bytes, the limit is %d", sum, SettingsBytesMax)
	}
	next := Setting{Volume: c.Volume, Key: c.Key, Version: old.Version + 1, Value: slices.Clone(c.Value)}
	if found {
		s.Settings[i] = next
		return nil
	}
	if len(s.Settings) >= SettingsMax {
		return fault.Newf(fault.NoSpace, op, c.Key, "a pool has at most %d settings", SettingsMax)
	}
	s.Settings = slices.Insert(s.Settings, i, next)
	return nil
}

// dropSettings forgets the settings of a volume that is deleted.
func dropSettings(s *State, volume ident.VolumeID) {
	s.Settings = slices.DeleteFunc(s.Settings, func(x Setting) bool { return x.Volume == volume })
}

// settingsOK tells whether a decoded list keeps the limits and its order.
func settingsOK(list []Setting) bool {
	sum := 0
	for _, x := range list {
		sum += len(x.Value)
	}
	return len(list) <= SettingsMax && sum <= SettingsBytesMax+SettingValueMax && slices.IsSortedFunc(list, compareSettings)
}
