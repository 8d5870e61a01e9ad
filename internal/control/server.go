package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

const (
	// headerTimeout ends a connection whose request does not arrive.
	headerTimeout = 10 * time.Second
	// drainTimeout is how long Serve waits for requests under way when it ends.
	drainTimeout = 5 * time.Second
)

// Serve answers requests on dir/gabion.sock until ctx ends, and removes the
// socket. Kinds: Busy (a live process listens there), Denied and Internal (the
// socket cannot be made).
func Serve(ctx context.Context, dir string, d Daemon, log *slog.Logger) error {
	l, err := Listen(dir)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           Handler(d, log),
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			_ = srv.Close() // requests that outlast the drain are cut off
		}
	})
	err = srv.Serve(l)
	if !stop() {
		<-stopped
		return nil
	}
	_ = srv.Close()
	return fault.New(fault.Internal, "control.serve", dir, err)
}

// Handler puts d behind the paths that the package comment lists.
func Handler(d Daemon, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	handle(mux, log, "GET /v1/status", func(r *http.Request, _ *none) (any, error) {
		s, err := d.Status(r.Context())
		return tidied(s, err)
	})
	handle(mux, log, "GET /v1/status/local", func(r *http.Request, _ *none) (any, error) {
		s, err := d.LocalStatus(r.Context())
		return tidied(s, err)
	})
	handle(mux, log, "POST /v1/pool/token", func(r *http.Request, q *tokenRequest) (any, error) {
		ttl, err := q.ttl()
		if err != nil {
			return nil, err
		}
		token, err := d.PoolToken(r.Context(), ttl)
		return tokenAnswer{Token: token}, err
	})
	handle(mux, log, "GET /v1/volumes", func(r *http.Request, _ *none) (any, error) {
		vs, err := d.Volumes(r.Context())
		return tidyVolumes(vs), err
	})
	handle(mux, log, "POST /v1/volumes", func(r *http.Request, q *CreateVolume) (any, error) {
		v, err := d.CreateVolume(r.Context(), *q)
		return tidied(v, err)
	})
	handle(mux, log, "GET /v1/volumes/{name}", func(r *http.Request, _ *none) (any, error) {
		v, err := d.Volume(r.Context(), r.PathValue("name"))
		return tidied(v, err)
	})
	handle(mux, log, "DELETE /v1/volumes/{name}", func(r *http.Request, _ *none) (any, error) {
		return none{}, d.DeleteVolume(r.Context(), r.PathValue("name"))
	})
	handle(mux, log, "POST /v1/volumes/{name}/resize",
		func(r *http.Request, q *resizeRequest) (any, error) {
			v, err := d.ResizeVolume(r.Context(), r.PathValue("name"), q.SizeBytes)
			return tidied(v, err)
		})
	handle(mux, log, "POST /v1/volumes/{name}/attach",
		func(r *http.Request, q *attachRequest) (any, error) {
			v, err := d.AttachVolume(r.Context(), r.PathValue("name"), q.Takeover)
			return tidied(v, err)
		})
	handleSnapshots(mux, log, d)
	handleExports(mux, log, d)
	handleNodes(mux, log, d)
	handleBricks(mux, log, d)
	handleDoctor(mux, log, d)
	return mux
}

// tidied is a copy of what a Daemon answered, tidy: the original may be shared.
func tidied[S any, T interface {
	*S
	tidy()
}](s T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	c := *s
	T(&c).tidy()
	return &c, nil
}

// none is the body of a request or answer that has none.
type none struct{}

func (q *tokenRequest) ttl() (time.Duration, error) {
	const secondsMax = int64(10 * 365 * 24 * time.Hour / time.Second)
	if q.TTLSeconds < 0 || q.TTLSeconds > secondsMax {
		return 0, fault.Newf(fault.Invalid, "pool token", "",
			"ttl_seconds is %d; it must be between 0 and %d", q.TTLSeconds, secondsMax)
	}
	return time.Duration(q.TTLSeconds) * time.Second, nil
}

// handle registers f for pattern: decode a Q, bound the time, encode what f
// returns or its error.
func handle[Q any](mux *http.ServeMux, log *slog.Logger, pattern string,
	f func(*http.Request, *Q) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), RequestTimeout)
		defer cancel()
		q := new(Q)
		err := decodeRequest(http.MaxBytesReader(w, r.Body, RequestMax), q)
		var answer any
		if err == nil {
			answer, err = f(r.WithContext(ctx), q)
		}
		status := http.StatusOK
		if err != nil {
			status, answer = toBody(err, pattern)
		}
		log.Debug("control request", "method", r.Method, "path", r.URL.Path, "status", status)
		body, err := json.Marshal(answer)
		if err != nil {
			log.Error("control answer cannot be encoded", "path", r.URL.Path, "error", err)
			status, body = http.StatusInternalServerError, nil
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(body) // a client that left needs no answer
	})
}

// decodeRequest reads one JSON object with known fields and nothing behind it.
// No body at all leaves q as it is.
func decodeRequest(r io.Reader, q any) error {
	body, err := io.ReadAll(r)
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return fault.Newf(fault.Invalid, "control request", "",
			"the body is longer than %d bytes", tooLong.Limit)
	case err != nil:
		return fault.New(fault.Invalid, "control request", "", err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return fault.New(fault.Invalid, "control request", "", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fault.Newf(fault.Invalid, "control request", "", "there is more than one JSON value")
	}
	return nil
}
