package targettest

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/gabion-storage/gabion/internal/fault"
	"github.com/gabion-storage/gabion/target"
)

// Exports is a target.Exports over sessions that exist already: every Open of a
// name returns the same one. The zero value exports nothing.
type Exports struct {
	mu      sync.Mutex
	devices map[string]target.Session
	errors  map[string]error
	gone    map[string]chan struct{}
	opened  int
}

// Add exports s under name.
func (e *Exports) Add(name string, s target.Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.devices == nil {
		e.devices = map[string]target.Session{}
		e.errors = map[string]error{}
		e.gone = map[string]chan struct{}{}
	}
	e.devices[name] = s
	e.gone[name] = make(chan struct{})
}

// Refuse makes Open of name fail with err, or succeed again with nil.
func (e *Exports) Refuse(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.errors[name] = err
}

// Lose ends the attachment of name, as fencing does. A later Open begins a new one.
func (e *Exports) Lose(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.gone[name])
	e.gone[name] = make(chan struct{})
}

// Opened tells how many sessions were opened.
func (e *Exports) Opened() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opened
}

func (e *Exports) List(context.Context) ([]target.Export, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []target.Export
	for _, name := range slices.Sorted(maps.Keys(e.devices)) {
		list = append(list, e.describe(name))
	}
	return list, nil
}

func (e *Exports) Stat(_ context.Context, name string) (target.Export, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.devices[name] == nil {
		return target.Export{}, fault.Newf(fault.NotFound, "export stat", name, "there is no such volume")
	}
	return e.describe(name), nil
}

func (e *Exports) describe(name string) target.Export {
	d := e.devices[name]
	return target.Export{Name: name, Description: "volume " + name + " of a test",
		Size: d.Size(), BlockSize: d.BlockSize(), ReadOnly: d.ReadOnly()}
}

func (e *Exports) Open(_ context.Context, name, _ string) (target.Session, <-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.devices[name] == nil {
		return nil, nil, fault.Newf(fault.NotFound, "export open", name, "there is no such volume")
	}
	if err := e.errors[name]; err != nil {
		return nil, nil, err
	}
	e.opened++
	return e.devices[name], e.gone[name], nil
}
