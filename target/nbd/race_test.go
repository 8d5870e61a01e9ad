//go:build race

package nbd_test

// raceEnabled: the race detector allocates on its own.
const raceEnabled = true
