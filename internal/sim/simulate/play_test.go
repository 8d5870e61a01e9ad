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
		return whole.Result{Seed: seed, Violation: fmt.Sprintf("the simulator died: %v\n%s", err, plain(stderr.Bytes()))}, string(text)
	}
	return r, strings.TrimSuffix(string(text), last+"\n")
}

// frame is what the runtime puts before each piece of output under a false clock.
var frame = regexp.MustCompile(`(?s)\x00\x00PB.{12}`)

func plain(b []byte) string {
	s := string(frame.ReplaceAll(b, nil))
	return s[:min(len(s), 6000)]
}
