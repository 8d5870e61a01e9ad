package control

import (
	"reflect"
	"testing"

	"github.com/gabion-storage/gabion/internal/fault"
)

func TestCallsAboutBricksReachTheDaemon(t *testing.T) {
	d := &recorder{}
	c := serve(t, t.TempDir(), d)
	ctx := t.Context()
	for _, err := range []error{
		c.StartScrub(ctx, StartScrub{Brick: "/disk/1", RateBytes: 5}),
		c.ScrubSettings(ctx, ScrubSettings{EverySeconds: -1}),
		c.ForgetBrick(ctx, "/disk/1 ü%"),
		c.ReadmitBrick(ctx, "ab12"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"scrub {Brick:/disk/1 RateBytes:5}", "scrub set {RateBytes:0 EverySeconds:-1}",
		"forget /disk/1 ü%", "readmit ab12"}
	if !reflect.DeepEqual(d.asked, want) {
		t.Fatalf("asked %q, want %q", d.asked, want)
	}
	for _, name := range []string{"", ".", ".."} {
		if err := c.ForgetBrick(ctx, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}
