//go:build tools

// Package tools pins the linter in a module of its own, so that gabion's module
// names only what gabion is built from.
package tools

import _ "honnef.co/go/tools/cmd/staticcheck"
