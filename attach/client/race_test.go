//go:build race

package client_test

// raceEnabled: the race detector allocates on its own.
const raceEnabled = true
