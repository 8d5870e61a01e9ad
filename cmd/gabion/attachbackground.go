package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/gabion-storage/gabion/attach"
	"github.com/gabion-storage/gabion/internal/fault"
)

// reported is what a process in the background tells the one that started it,
// once, when it is ready or when it gives up.
type reported struct {
	Info  *attach.Info `json:"info,omitempty"`
	Error string       `json:"error,omitempty"`
}

// report is the pipe that it does so with; nil for a process in the foreground.
type report struct{ f *os.File }

func newReport(fd int) *report {
	if fd < 0 {
		return nil
	}
	syscall.CloseOnExec(fd)
	return &report{os.NewFile(uintptr(fd), "report")}
}

func (r *report) say(v reported) {
	if r != nil && r.f != nil {
		_ = json.NewEncoder(r.f).Encode(v) // who started this may be gone
		r.close()
	}
}

func (r *report) ready(i attach.Info) { r.say(reported{Info: &i}) }

func (r *report) failed(err error) {
	if err != nil {
		r.say(reported{Error: explain(err)})
	}
}

func (r *report) close() {
	if r != nil && r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// attachInBackground starts this program again, in a session of its own, and
// waits until it has attached the volume or failed to.
func (a *app) attachInBackground(ctx context.Context, volume string, f *attachFlags) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dirs := f.dirs()
	if err := os.MkdirAll(dirs.Run, 0o755); err != nil {
		return fault.Newf(fault.Denied, "attach", volume, "%w; attaching needs root", err)
	}
	log, err := os.OpenFile(dirs.LogFile(volume), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fault.Newf(fault.Denied, "attach", volume, "%w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	dir, err := filepath.Abs(a.stateDir())
	if err != nil {
		return err
	}
	args := []string{"attach", volume, "--foreground", "--ready-fd", "3", "--dir", dir, "--root", f.root,
		"--kind", f.kind, "--connections", strconv.Itoa(f.connections), "--io-timeout", f.ioTimeout.String()}
	if len(f.nodes) > 0 {
		args = append(args, "--node", strings.Join(f.nodes, ","))
	}
	if f.tls != "" {
		tls, err := filepath.Abs(f.tls)
		if err != nil {
			return err
		}
		args = append(args, "--tls", tls)
	}
	if f.takeover {
		args = append(args, "--takeover")
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM); r.Close() })
	defer stop()
	var got reported
	if err := json.NewDecoder(r).Decode(&got); err != nil {
		if ctx.Err() != nil {
			return fault.Newf(fault.Timeout, "attach", volume, "interrupted")
		}
		return fault.Newf(fault.Internal, "attach", volume, "the process in the background ended: %v; its log is %s", cmd.Wait(), dirs.LogFile(volume))
	}
	if got.Info == nil {
		_ = cmd.Wait()
		return errors.New(got.Error)
	}
	_ = cmd.Process.Release()
	return a.show(got.Info, func(w io.Writer) error {
		if err := writeAttached(w, *got.Info); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w, "process %d, log %s\n", got.Info.PID, dirs.LogFile(volume))
		return err
	})
}
