// Command flusher is a client that writes 4 KiB somewhere and flushes it, again and again, at a rate,
// and sleeps in between: unlike fio's, whose waits for the next turn can keep a core busy.
//
//	flusher -node HOST:PORT -volume NAME [-rate 500] [-for 3s] [-log FILE]
//
// SIGTERM ends it before. It prints the 50th and 99th percentile of the flushes in milliseconds, and flushes per second. With -log it
// appends each of them, in nanoseconds, one to a line.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gabion-storage/gabion/attach/client"
)

func main() {
	node := flag.String("node", "", "host:port of the NBD server")
	volume := flag.String("volume", "", "name of the volume")
	rate := flag.Int("rate", 500, "flushes per second; 0: each follows the one before")
	length := flag.Duration("for", 3*time.Second, "how long")
	log := flag.String("log", "", "file to append all latencies to")
	flag.Parse()
	if err := run(*node, *volume, *log, *rate, *length); err != nil {
		fmt.Fprintln(os.Stderr, "flusher:", err)
		os.Exit(1)
	}
}

func run(node, volume, log string, rate int, length time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := time.Now()
	e, err := client.Open(ctx, client.Config{Volume: volume, ID: [16]byte{'f', 'l', 'u', 's', 'h', 'e', 'r'}, Start: uint32(now.Unix()),
		Force: true, Nodes: func() []client.Node { return []client.Node{{Addr: node}} }})
	if err != nil {
		return err
	}
	defer e.Close()
	running, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	running, cancel = context.WithTimeout(running, length)
	defer cancel()
	begin := time.Now()
	took, err := flushes(running, e, rate)
	length = time.Since(begin)
	if err != nil {
		return err
	}
	if log != "" {
		if err := record(log, took); err != nil {
			return err
		}
	}
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(float64(len(took)-1)*q)].Seconds() * 1e3 }
	fmt.Printf("%.3f\t%.3f\t%.1f\n", at(0.5), at(0.99), float64(len(took))/length.Seconds())
	return nil
}

// flushes writes and flushes until ctx ends, and tells how long each flush took.
func flushes(ctx context.Context, e *client.Engine, rate int) (took []time.Duration, err error) {
	block := make([]byte, 4096)
	noise := rand.NewChaCha8([32]byte{1})
	done := make(chan error, 1)
	wait := func(submit func(func(error))) error {
		submit(func(err error) { done <- err })
		e.Kick()
		return <-done
	}
	begin := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		if rate > 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		}
		_, _ = noise.Read(block)
		off := rand.Int64N(e.Size()/4096) * 4096
		if err := wait(func(done func(error)) { e.Write(block, off, false, done) }); err != nil {
			return nil, err
		}
		before := time.Now()
		if err := wait(e.Flush); err != nil {
			return nil, err
		}
		took = append(took, time.Since(before))
	}
	if len(took) == 0 {
		return nil, errors.New("no flush before the end")
	}
	return took, nil
}

func record(name string, took []time.Duration) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, d := range took {
		fmt.Fprintln(w, d.Nanoseconds())
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
