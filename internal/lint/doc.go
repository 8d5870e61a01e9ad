// Package lint holds no code, only tests over the whole source: which package
// may import which, what the pure cores must do without, how long a file may
// be, which calls are banned, and what the documents must mention. Each rule is a table with a
// reason beside each exception.
package lint
