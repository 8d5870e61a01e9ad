package whole

import (
	"math/rand/v2"
	"time"
)

// mood is how one run differs from others besides the kinds of its faults. What
// is rare in one run is all that happens in another, which meets what a mixture
// of everything hides.
type mood struct {
	think time.Duration // that a client waits between its bursts, on average
	pace  time.Duration // between faults, on average
	hot   int           // blocks that short operations meet in
	long  int           // of a hundred operations on data, so many are long
	focus float64       // how likely a fault meets a machine that holds a volume
	eager bool          // long writes go to extents at once
}

func drawMood(rng *rand.Rand) mood {
	return mood{
		think: []time.Duration{60, 100, 250, 250}[rng.IntN(4)] * time.Millisecond,
		pace:  []time.Duration{300, 1000, 2000, 4000, 8000}[rng.IntN(5)] * time.Millisecond,
		hot:   []int{4, 8, hotBlocks, hotBlocks}[rng.IntN(4)],
		long:  []int{1, 5, 5, 30}[rng.IntN(4)],
		focus: []float64{0, 0.5}[rng.IntN(2)],
		eager: rng.IntN(3) == 0,
	}
}
