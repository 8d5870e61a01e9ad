// Command simulate plays seeds of internal/sim/whole and prints a JSON line for
// each to file descriptor 3, or to standard output without -3. internal/sim
// builds it with the tag faketime, with which the clock of the program jumps
// over the times at which everything waits, and runs it.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/gabion-storage/gabion/internal/lend"
	"github.com/gabion-storage/gabion/internal/sim/whole"
)

// memoryMax is where the collector begins by itself nevertheless, in bytes.
const memoryMax = 3 << 30

func main() {
	var opt whole.Options
	seed := flag.Uint64("seed", 1, "the seed")
	flag.IntVar(&opt.Nodes, "nodes", 0, "nodes of the pool; 0: drawn from the seed")
	flag.DurationVar(&opt.For, "for", 0, "simulated time under faults; 0: the default")
	without := flag.String("without", "", "kinds of faults to leave out, with commas between")
	only := flag.String("only", "", "kinds of faults that come, with commas between")
	verbose := flag.Bool("v", false, "write what the nodes log to the result's file as well")
	three := flag.Bool("3", false, "write to file descriptor 3")
	flag.Parse()
	if runtime.GOMAXPROCS(0) != 1 { // from the start: one thread, so that one seed is one schedule
		fmt.Fprintln(os.Stderr, "set GOMAXPROCS=1 in the environment")
		os.Exit(2)
	}
	out := os.Stdout
	if *three {
		out = os.NewFile(3, "result")
	}
	opt.Seed = *seed
	if *without != "" {
		opt.Without = strings.Split(*without, ",")
	}
	var said bytes.Buffer // kept until the end: a system call would let the runtime reschedule
	if *only != "" {
		opt.Only = strings.Split(*only, ",")
	}
	if *verbose {
		opt.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	// Garbage is collected when the simulation says so: by itself the collector
	// begins when so much was allocated, and what runs beside it runs in another order.
	// Nor may what is allocated draw random numbers.
	runtime.MemProfileRate = 0
	lend.Poison = true // whoever still reads what it gave back reads that
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryMax)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(*seed >> (8 * i))
	}
	rand.Reader = mrand.NewChaCha8(key) // names and keys are drawn from the seed too
	r := whole.Run(opt)
	if _, err := out.Write(said.Bytes()); err != nil {
		os.Exit(1)
	}
	if !report(out, r) {
		os.Exit(1)
	}
}

func report(out io.Writer, r whole.Result) bool {
	b, err := json.Marshal(r)
	if err != nil {
		b = fmt.Appendf(nil, `{"violation":%q}`, err.Error())
	}
	_, err = out.Write(append(b, '\n'))
	return err == nil && r.Violation == ""
}
