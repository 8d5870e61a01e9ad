// Command gabion is the whole of gabion in one program: the node daemon and
// the operator's commands, which talk to the daemon of this machine.
//
// Exit codes: 0 it was done, 1 it was not, 2 the command line was wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gabion-storage/gabion/internal/fault"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code. A failure is one
// line on stderr: what, which thing, why, and the way out.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, err: stderr}
	root := a.rootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var usage *usageError
	if errors.As(err, &usage) {
		path := c.CommandPath()
		fmt.Fprintf(stderr, "%s: %s; see '%s --help'\n", path, oneLine(err.Error()), path)
		return exitUsage
	}
	fmt.Fprintf(stderr, "gabion: %s\n", oneLine(explain(err)))
	return exitFailed
}

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// wayOut is added to an error that came without a sentence for its reader.
var wayOut = map[fault.Kind]string{
	fault.Internal:      "the node's log says more",
	fault.Invalid:       "see --help for what is allowed",
	fault.NotFound:      "'gabion status' lists what there is",
	fault.Exists:        "choose another name",
	fault.Conflict:      "somebody changed it at the same time; look with 'gabion status' and repeat",
	fault.Busy:          "'gabion status' names the holder",
	fault.Fenced:        "another node has taken it over; 'gabion status' names it",
	fault.Unavailable:   "too few nodes answer; 'gabion status' lists those that do not",
	fault.Indeterminate: "it may or may not have been done; look with 'gabion status' before repeating",
	fault.Corrupt:       "stored data is damaged; the node's log says where",
	fault.NoSpace:       "delete or add: 'gabion status' shows the bricks",
	fault.Denied:        "this node or user may not do that",
	fault.Timeout:       "it may still happen; look with 'gabion status' before repeating",
	fault.ReadOnly:      "it cannot be written",
}

func explain(err error) string {
	var f *fault.Error
	if errors.As(err, &f) && f.Err == nil {
		return err.Error() + "; " + wayOut[f.Kind]
	}
	return err.Error()
}

// oneLine keeps an error on one line, whatever its causes contained.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
