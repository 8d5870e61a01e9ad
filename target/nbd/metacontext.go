package nbd

import (
	"context"
	"slices"
	"strings"

	"github.com/gabion-storage/gabion/target"
	"github.com/gabion-storage/gabion/target/nbd/proto"
)

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
//
// What an export's snapshots are is known for sure by its session alone. A
// listing must not attach a volume, and goes by the read-only exports
// NAME@SNAPSHOT beside it. A client that selects the changes since a snapshot
// means to read them, so that the session is opened here and kept for its GO.
func (h *handshake) metaContext(o proto.Option, data []byte) error {
	set := o == proto.OptSetMetaContext
	if set {
		h.agreed.about, h.agreed.contexts = "", nil // also if this fails
	}
	if h.agreed.style == proto.Simple {
		h.refuse(o, proto.RepErrInvalid, "metadata contexts need structured replies or extended headers first")
		return nil
	}
	q, err := proto.DecodeMetaQuery(data)
	if err != nil {
		h.malformed(o, err)
		return nil
	}
	if h.hidden(o, q.Export) {
		return nil
	}
	var snapshots []string
	err = h.ours(func(ctx context.Context) (err error) {
		if _, err = h.srv.cfg.Exports.Stat(ctx, q.Export); err != nil {
			return err
		}
		switch {
		case !set:
			snapshots, err = h.listed(ctx, q.Export)
		case slices.ContainsFunc(q.Queries, proto.NamesSnapshot):
			snapshots, err = h.confirmed(ctx, q.Export)
		}
		return err
	})
	if err != nil {
		h.fail(o, err)
		return nil
	}
	found := proto.Matching(proto.Available(snapshots), q.Queries, !set)
	if set && len(found) > proto.ContextsMax {
		h.refuse(o, proto.RepErrTooBig, "too many metadata contexts at once")
		return nil
	}
	for i, c := range found {
		id := uint32(0) // reserved in a listing
		if set {
			id = uint32(i)
		}
		h.out = proto.AppendMetaContext(h.out, o, id, c.Name)
	}
	if set {
		h.agreed.about, h.agreed.contexts = q.Export, found
	}
	h.ack(o)
	return nil
}

// listed are the snapshots of export name as far as others can see them.
func (h *handshake) listed(ctx context.Context, name string) ([]string, error) {
	exports, err := h.srv.cfg.Exports.List(ctx)
	if err != nil {
		return nil, err
	}
	var snapshots []string
	for _, e := range exports {
		if s, ok := strings.CutPrefix(e.Name, name+"@"); ok {
			snapshots = append(snapshots, s)
		}
	}
	return snapshots, nil
}

// confirmed are the snapshots that a session of export name knows.
func (h *handshake) confirmed(ctx context.Context, name string) ([]string, error) {
	if h.agreed.early.session == nil || h.agreed.early.export != name {
		h.agreed.early.close()
		var err error
		if h.agreed.early, err = h.open(ctx, name); err != nil {
			return nil, err
		}
	}
	if m, ok := h.agreed.early.session.(target.Mapper); ok {
		return m.Snapshots(), nil
	}
	return nil, nil
}
