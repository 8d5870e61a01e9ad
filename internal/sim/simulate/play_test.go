//go:build sim || mutate

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/gabion-storage/gabion/internal/sim/whole"
)

// seedMax bounds one seed in real time.
const seedMax = 10 * time.Minute

// play runs one seed in a process of its own. env is added to its environment.
func play(bin string, seed uint64, env string, args ...string) (r whole.Result, said string) {
	ctx, cancel := context.WithTimeout(context.Background(), seedMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"-3", "-seed", fmt.Sprint(seed)}, args...)...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=gcstoptheworld=2", env)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // so that it tells what it is at
	cmd.WaitDelay = time.Minute
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	three, out, err := os.Pipe()
	if err != nil {
		return whole.Result{Seed: seed, Violation: err.Error()}, ""
	}
	cmd.ExtraFiles = []*os.File{out}
	if err = cmd.Start(); err != nil {
		return whole.Result{Seed: seed, Violation: err.Error()}, ""
	}
	out.Close()
	text, _ := io.ReadAll(three)
	three.Close()
	err = cmd.Wait()
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	last := lines[len(lines)-1]
	if json.Unmarshal([]byte(last), &r) != nil {
		why := fmt.Sprintf("the simulator died: %v\n%s", err, plain(stderr.Bytes()))
		if ctx.Err() != nil {
			why = fmt.Sprintf("no end within %v of real time; at work:\n%s", seedMax, atWork(stderr.Bytes()))
		}
		return whole.Result{Seed: seed, Violation: why}, string(text)
	}
	return r, strings.TrimSuffix(string(text), last+"\n")
}

// waiting is how the runtime names a goroutine that waits.
var waiting = regexp.MustCompile(`^goroutine \d+ .*\[(select|chan|sync|sleep|IO|semacquire|idle|force gc|GC|finalizer|cleanup|GOMAXPROCS)`)

// atWork is what the runtime says of goroutines that do not wait. Under a false clock
// that stands still, something runs in a circle.
func atWork(b []byte) string {
	var busy []string
	for g := range strings.SplitSeq(string(frame.ReplaceAll(b, nil)), "\n\n") {
		if strings.HasPrefix(g, "goroutine ") && !waiting.MatchString(g) {
			busy = append(busy, g)
		}
	}
	s := strings.Join(busy, "\n\n")
	return s[:min(len(s), 6000)]
}

// frame is what the runtime puts before each piece of output under a false clock.
var frame = regexp.MustCompile(`(?s)\x00\x00PB.{12}`)

func plain(b []byte) string {
	s := string(frame.ReplaceAll(b, nil))
	return s[:min(len(s), 6000)]
}
