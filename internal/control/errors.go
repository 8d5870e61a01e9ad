package control

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/gabion-storage/gabion/internal/fault"
)

// kindStatus is the HTTP status of each kind of failure. Several kinds may
// share one: the body names the kind, the status is for people and proxies.
var kindStatus = map[fault.Kind]int{
	fault.Internal:      http.StatusInternalServerError,
	fault.Invalid:       http.StatusBadRequest,
	fault.NotFound:      http.StatusNotFound,
	fault.Exists:        http.StatusConflict,
	fault.Conflict:      http.StatusPreconditionFailed,
	fault.Busy:          http.StatusLocked,
	fault.Fenced:        http.StatusGone,
	fault.Unavailable:   http.StatusServiceUnavailable,
	fault.Indeterminate: http.StatusBadGateway,
	fault.Corrupt:       http.StatusUnprocessableEntity,
	fault.NoSpace:       http.StatusInsufficientStorage,
	fault.Denied:        http.StatusForbidden,
	fault.Timeout:       http.StatusGatewayTimeout,
	fault.ReadOnly:      http.StatusMethodNotAllowed,
}

func statusOf(k fault.Kind) int {
	if s, ok := kindStatus[k]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// kindOf is the way back, for an answer whose body does not name its kind.
func kindOf(status int) fault.Kind {
	for _, k := range fault.Kinds() {
		if kindStatus[k] == status {
			return k
		}
	}
	return fault.Internal
}

func kindByName(name string) (fault.Kind, bool) {
	for _, k := range fault.Kinds() {
		if k.String() == name {
			return k, true
		}
	}
	return fault.Internal, false
}

// errorBody is an error on the wire.
type errorBody struct {
	Kind    string `json:"kind"`
	Op      string `json:"op"`
	Subject string `json:"subject"`
	Message string `json:"message"`
}

// toBody keeps the parts of a fault.Error apart; any other error becomes the
// message of operation op.
func toBody(err error, op string) (int, errorBody) {
	k := fault.KindOf(err)
	b := errorBody{Kind: k.String(), Op: op, Message: err.Error()}
	var f *fault.Error
	if errors.As(err, &f) && f.Error() == err.Error() {
		b.Op, b.Subject, b.Message = f.Op, f.Subject, ""
		if f.Err != nil {
			b.Message = f.Err.Error()
		}
	}
	return statusOf(k), b
}

// fromBody rebuilds the error; status decides when the kind is not known here.
func fromBody(status int, b errorBody) error {
	k, ok := kindByName(b.Kind)
	if !ok {
		k = kindOf(status)
	}
	var cause error
	if b.Message != "" {
		cause = errors.New(b.Message)
	}
	if b.Op == "" {
		b.Op = fmt.Sprintf("control: HTTP status %d", status)
	}
	return fault.New(k, b.Op, b.Subject, cause)
}
