package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gabion-storage/gabion/internal/fault"
)

// Client is the Daemon of the node that runs in a directory. Beside the errors
// of the node it returns Unavailable (no node runs there), Denied (the socket
// is another user's) and Indeterminate (the node went away while it worked on
// a request that changes something).
type Client struct {
	dir  string
	http http.Client
}

var _ Daemon = (*Client)(nil)

// NewClient makes a client of the node whose directory is dir. It connects
// when it is first asked something.
func NewClient(dir string) *Client {
	c := &Client{dir: dir}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx, dir)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
	}
	return c
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) Status(ctx context.Context) (*Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

func (c *Client) LocalStatus(ctx context.Context) (*NodeStatus, error) {
	return get[NodeStatus](ctx, c, "/v1/status/local")
}

func (c *Client) PoolToken(ctx context.Context, ttl time.Duration) (string, error) {
	if ttl < 0 || ttl%time.Second != 0 {
		return "", fault.Newf(fault.Invalid, "pool token", "",
			"the time to live is %v; it must be whole seconds and not negative", ttl)
	}
	a := new(tokenAnswer)
	err := c.do(ctx, "POST", "/v1/pool/token", tokenRequest{TTLSeconds: int64(ttl / time.Second)}, a)
	return a.Token, err
}

func (c *Client) CreateVolume(ctx context.Context, req CreateVolume) (*Volume, error) {
	return post[Volume](ctx, c, "/v1/volumes", req)
}

func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	vs, err := get[[]Volume](ctx, c, "/v1/volumes")
	if err != nil {
		return nil, err
	}
	return *vs, nil
}

func (c *Client) Volume(ctx context.Context, name string) (*Volume, error) {
	path, err := volumePath(name)
	if err != nil {
		return nil, err
	}
	return get[Volume](ctx, c, path)
}

func (c *Client) ResizeVolume(ctx context.Context, name string, sizeBytes int64) (*Volume, error) {
	path, err := volumePath(name)
	if err != nil {
		return nil, err
	}
	return post[Volume](ctx, c, path+"/resize", resizeRequest{SizeBytes: sizeBytes})
}

func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	path, err := volumePath(name)
	if err != nil {
		return err
	}
	return c.do(ctx, "DELETE", path, nil, &none{})
}

func (c *Client) AttachVolume(ctx context.Context, name string, takeover bool) (*Volume, error) {
	path, err := volumePath(name)
	if err != nil {
		return nil, err
	}
	return post[Volume](ctx, c, path+"/attach", attachRequest{Takeover: takeover})
}

// volumePath refuses the three names that a path cannot carry; all other rules
// are the node's.
func volumePath(name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", fault.Newf(fault.Invalid, "volume", name, "%q cannot be the name of a volume", name)
	}
	return "/v1/volumes/" + url.PathEscape(name), nil
}

func get[A any](ctx context.Context, c *Client, path string) (*A, error) {
	return result[A](ctx, c, http.MethodGet, path, nil)
}

func post[A any](ctx context.Context, c *Client, path string, req any) (*A, error) {
	return result[A](ctx, c, http.MethodPost, path, req)
}

func result[A any](ctx context.Context, c *Client, method, path string, req any) (*A, error) {
	a := new(A)
	if err := c.do(ctx, method, path, req, a); err != nil {
		return nil, err
	}
	return a, nil
}

// do sends one request and decodes the answer into a.
func (c *Client) do(ctx context.Context, method, path string, req, a any) error {
	var body io.Reader
	if req != nil {
		b, err := json.Marshal(req)
		if err != nil {
			return fault.New(fault.Internal, "control.client", path, err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://gabion"+path, body)
	if err != nil {
		return fault.New(fault.Invalid, "control.client", path, err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return c.sendError(ctx, method, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, AnswerMax+1))
	switch {
	case err != nil:
		return c.sendError(ctx, method, err)
	case len(b) > AnswerMax:
		return fault.Newf(fault.Internal, "control.client", path,
			"the node's answer is longer than %d bytes", AnswerMax)
	}
	return decodeAnswer(resp.StatusCode, b, a)
}

// decodeAnswer reads a as the answer of a node that may be newer than this
// program: fields that are not known here are skipped.
func decodeAnswer(status int, b []byte, a any) error {
	if status != http.StatusOK {
		var e errorBody
		if json.Unmarshal(b, &e) != nil {
			e = errorBody{} // not one of ours: the status speaks
		}
		return fromBody(status, e)
	}
	if err := json.Unmarshal(b, a); err != nil {
		return fault.New(fault.Internal, "control.client", "",
			fmt.Errorf("the node's answer is not what this version of gabion expects: %w", err))
	}
	return nil
}

// dialError marks a failure before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// sendError explains why there is no answer.
func (c *Client) sendError(ctx context.Context, method string, err error) error {
	const op = "control.client"
	path := filepath.Join(c.dir, SocketName)
	var d *dialError
	dialled := !errors.As(err, &d)
	switch {
	case !dialled && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return fault.Newf(fault.Unavailable, op, path,
			"no gabion node runs here; start one with 'gabion node run', or name its directory with --dir")
	case !dialled && errors.Is(err, fs.ErrPermission):
		return fault.Newf(fault.Denied, op, path,
			"the socket belongs to another user; run this as the user of the node")
	case ctx.Err() != nil:
		return fault.Newf(fault.Timeout, op, path, "the node did not answer in time")
	case !dialled:
		return fault.New(fault.Unavailable, op, path, d.err)
	case method == http.MethodGet:
		return fault.New(fault.Unavailable, op, path, fmt.Errorf("the node went away: %w", err))
	}
	return fault.New(fault.Indeterminate, op, path,
		fmt.Errorf("the node went away while it worked on this; look with 'gabion status': %w", err))
}
