//go:build !mutate

package dht

// Deliberate defects that only -tags mutate can switch on; mutate_on.go says what
// they break.
func acceptUnverified() bool { return false }
func majorityOfOne() bool    { return false }
func hedgeForEver() bool     { return false }
func waitForSlow() bool      { return false }
