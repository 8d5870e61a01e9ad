// Command ledgerload is the ledger for places where no Go test runs, such as
// inside the test machine.
//
//	ledgerload load   -nbd ADDR -export NAME | -device PATH  -blocks N -round R -record FILE [-seconds S]
//	ledgerload verify -nbd ADDR -export NAME | -device PATH  -blocks N -round R -record FILE -state FILE
//
// load appends a line "durable N" to FILE each time that a flush was answered:
// writes 1..N of the round are safe. verify takes the last whole line as the
// proof, checks the disk against it and keeps in the state file what it saw.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gabion-storage/gabion/test/ledger"
	"github.com/gabion-storage/gabion/test/nbdclient"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: ledgerload load|verify -blocks N -round R -record FILE …")
	}
	fs := flag.NewFlagSet("ledgerload", flag.ExitOnError)
	addr := fs.String("nbd", "", "address of the NBD server")
	export := fs.String("export", "ledger", "name of the export")
	device := fs.String("device", "", "block device to use instead")
	blocks := fs.Int64("blocks", 4096, "blocks of 4 KiB; a power of two")
	round := fs.Uint("round", 1, "number of this round; each round has its own record")
	record := fs.String("record", "", "file for acknowledgements")
	state := fs.String("state", "", "file for what was verified")
	depth := fs.Int("depth", 8, "writes in flight")
	every := fs.Uint64("flush-every", 16, "writes between flushes")
	seconds := fs.Float64("seconds", 0, "how long; 0 until a signal")
	fs.Parse(args[1:])

	var disk ledger.Disk
	if *device != "" {
		d, err := ledger.OpenDevice(*device)
		if err != nil {
			return err
		}
		defer d.Close()
		disk = d
	} else {
		c, err := nbdclient.Dial(*addr, *export)
		if err != nil {
			return err
		}
		defer c.Close()
		disk = c
	}
	plan := ledger.Plan{Blocks: *blocks, Seed: 1}
	if args[0] == "verify" {
		return verify(plan, disk, uint32(*round), *record, *state)
	}

	f, err := os.OpenFile(*record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*seconds*float64(time.Second)))
		defer cancel()
	}
	l := ledger.Load{Plan: plan, Disk: disk, Round: uint32(*round), Depth: *depth, FlushEvery: *every,
		Durable: func(n uint64) { fmt.Fprintf(f, "durable %d\n", n) }}
	r, err := l.Run(ctx)
	fmt.Printf("issued %d answered %d durable %d longest pause %v\n",
		r.Issued, r.Answered, r.Durable, r.Pause.Round(time.Millisecond))
	return err
}

func verify(plan ledger.Plan, disk ledger.Disk, round uint32, record, stateFile string) error {
	st, err := ledger.LoadState(stateFile, plan)
	if err != nil {
		return err
	}
	sure, err := lastDurable(record)
	if err != nil {
		return err
	}
	if err := plan.Verify(disk, st, round, sure); err != nil {
		return err
	}
	fmt.Printf("ledger verified: %d blocks, round %d durable up to write %d\n", plan.Blocks, round, sure)
	return st.Save(stateFile)
}

// lastDurable reads the record; a last line without its end does not count.
func lastDurable(record string) (n uint64, err error) {
	b, err := os.ReadFile(record)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	lines := strings.Split(string(b), "\n")
	for _, l := range lines[:len(lines)-1] {
		var m uint64
		if _, e := fmt.Sscanf(l, "durable %d", &m); e != nil {
			return 0, fmt.Errorf("%s: strange line %q", record, l)
		}
		n = max(n, m)
	}
	return n, err
}
