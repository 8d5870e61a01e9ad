package quorum

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gabion-storage/gabion/internal/ident"
	"github.com/gabion-storage/gabion/quorum/paxos"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

var (
	gGroup  = ident.GroupID{0: 0xa1, 15: 0xa2}
	gBrick  = ident.BrickID{0: 0xb1, 15: 0xb2}
	gBallot = Ballot{Epoch: 3, Node: ident.NodeID{0: 0xc1, 15: 0xc2}, Boot: 5}
	gOlder  = Ballot{Epoch: 2, Node: ident.NodeID{0: 0xd1, 15: 0xd2}, Boot: 6}
	gConfig = Config{Version: 4, Members: []Member{
		{Node: gBallot.Node, Brick: gBrick}, {Node: gOlder.Node, Brick: ident.BrickID{0xb3}, Role: Witness}}}
	gRuns  = []paxos.Run{{From: 7, To: 9, Ballot: gBallot}, {From: 10, To: 11, Ballot: gOlder}}
	gCuts  = []paxos.Cut{{Ballot: gOlder, Slot: 6}, {Ballot: gBallot, Slot: 8}}
	gCkpt  = Checkpoint{UpTo: 6, Value: []byte("value"), Config: gConfig}
	gReq   = request{group: gGroup, brick: gBrick, ballot: gBallot, stream: 9, sync: true, commit: 12}
	gBirth = [32]byte{0: 0xe1, 31: 0xe2}
)

// samples is one of every message and record.
func samples() map[string][]byte {
	accept := gReq
	accept.kind = EntryData
	rec := func(r paxos.Record) []byte {
		r.Ballot, r.Commit = gBallot, 12
		return append(appendRecordHeader(nil, gGroup, &r), r.Body...)
	}
	return map[string][]byte{
		"accept":  append(append(appendRequest(nil, &accept), 13, 0, 0, 0, 0, 0, 0, 0), "body"...),
		"renew":   appendRuns(appendRequest(nil, &gReq), gRuns),
		"open":    appendCuts(appendRequest(nil, &gReq), gCuts),
		"sync":    appendRequest(nil, &gReq),
		"answer":  appendAnswer(nil, &answer{group: gGroup, brick: gBrick, ballot: gBallot, stream: 9, tight: true, status: paxos.Gap, received: 11, durable: 10}, false),
		"refused": appendAnswer(nil, &answer{group: gGroup, brick: gBrick, ballot: gOlder, status: paxos.Fenced, promised: gBallot}, false),
		"state": appendAnswer(nil, &answer{group: gGroup, brick: gBrick, ballot: gBallot, stream: 9, opened: true,
			received: 11, durable: 10, runs: gRuns}, true),
		"query-reply": appendQueryReply(nil, &queryReply{found: true, holding: true, brick: gBrick, promised: gBallot,
			upTo: 6, last: 11, config: gConfig}),
		"prepare": appendPrepare(nil, &prepareCall{group: gGroup, brick: gBrick, ballot: gBallot, force: true, over: gBallot}),
		"prepare-reply": appendPrepareReply(nil, &prepareReply{promised: gBallot, promise: paxos.Promise{
			Checkpoint: gCkpt, Cuts: gCuts, Commit: 8, Runs: gRuns, Configs: []paxos.ConfigAt{{Slot: 8, Config: gConfig}}}}),
		"prepare-witness": appendPrepareReply(nil, &prepareReply{promised: gBallot, promise: paxos.Promise{Checkpoint: gCkpt,
			Runs: gRuns, Since: 3, Witness: true, Full: []paxos.Run{{From: 8, To: 9}}}}),
		"prepare-removed": appendPrepareReply(nil, &prepareReply{status: paxos.Removed, promised: gBallot, left: gConfig}),
		"query-removed":   appendQueryReply(nil, &queryReply{removed: true, settled: true, feeds: true, config: gConfig}),
		"retire":          appendConfigCall(nil, &configCall{group: gGroup, brick: gBrick, ballot: gBallot, config: gConfig}),
		"inspect-reply": appendInspectReply(nil, []Survivor{{Member: Member{Brick: gBrick}, Promised: gBallot, Opened: gOlder,
			UpTo: 6, Commit: 8, Durable: 9, Last: 11, Config: gConfig}, {Witness: true}}),
		"force":           appendConfigCall(nil, &configCall{group: gGroup, brick: gBrick, ballot: gBallot, config: gConfig}),
		"install-witness": appendInstall(nil, &installCall{group: gGroup, brick: gBrick, ballot: gBallot, witness: true, checkpoint: gCkpt}),
		"stable-left":     appendStableGroup(nil, &stableGroup{tomb: &paxos.Tomb{Promised: gBallot, Config: gConfig}}),
		"stable-again": appendStableGroup(nil, &stableGroup{after: 4096, birth: gBirth,
			hard: paxos.Hard{Promised: gBallot, Cuts: gCuts, Checkpoint: gCkpt, Since: 3, Witness: true}}),
		"prepare-refused": appendPrepareReply(nil, &prepareReply{status: paxos.Busy, promised: gBallot}),
		"fetch":           appendFetch(nil, &fetchCall{group: gGroup, brick: gBrick, from: 7, to: 9}),
		"fetch-reply":     appendFetched([]byte{0}, &fetched{Entry{Slot: 7, Kind: EntryData, Body: []byte("body")}, gBallot}),
		"install":         appendInstall(nil, &installCall{group: gGroup, brick: gBrick, ballot: gBallot, checkpoint: gCkpt}),
		"install-reply":   appendInstallReply(nil, paxos.Dropped, gBallot),
		"create":          appendCreate(nil, gGroup, gConfig, []byte("value")),
		"record-accept":   rec(paxos.Record{Kind: paxos.RecordAccept, Slot: 13, Body: []byte("body")}),
		"record-config": rec(paxos.Record{Kind: paxos.RecordAccept, Slot: 13, EntryKind: EntryConfig,
			Body: paxos.AppendConfig(nil, gConfig)}),
		"record-checkpoint": rec(paxos.Record{Kind: paxos.RecordAccept, Slot: 13, EntryKind: EntryCheckpoint,
			Body: paxos.AppendCheckpointBody(nil, 12, []byte("value"))}),
		"record-renew":   rec(paxos.Record{Kind: paxos.RecordRenew, Runs: gRuns}),
		"record-move":    rec(paxos.Record{Kind: paxos.RecordMove, Slot: 8, EntryBallot: gOlder, Body: []byte("body")}),
		"record-commit":  rec(paxos.Record{Kind: paxos.RecordCommit}),
		"record-open":    rec(paxos.Record{Kind: paxos.RecordOpen, Cuts: gCuts}),
		"stable-group":   appendStableGroup(nil, &stableGroup{hard: paxos.Hard{Promised: gBallot, Cuts: gCuts, Checkpoint: gCkpt}, birth: gBirth}),
		"stable-dropped": appendStableGroup(nil, &stableGroup{dropped: true}),
		"stable-list":    appendStableList(nil, []ident.GroupID{gGroup, {1}}),
	}
}

// reencode decodes b as what name says and encodes it again.
func reencode(name string, b []byte) ([]byte, error) {
	var r request
	switch name {
	case "accept":
		var m paxos.Accept
		if err := decodeAccept(b, &r, &m); err != nil {
			return nil, err
		}
		out := appendRequest(nil, &r)
		for i := range 8 {
			out = append(out, byte(m.Slot>>(8*i)))
		}
		return append(out, m.Body...), nil
	case "renew":
		var m paxos.Renew
		err := decodeRenew(b, &r, &m)
		return appendRuns(appendRequest(nil, &r), m.Runs), err
	case "open":
		cuts, err := decodeOpen(b, &r)
		return appendCuts(appendRequest(nil, &r), cuts), err
	case "sync":
		err := decodeBare(b, &r)
		return appendRequest(nil, &r), err
	case "answer", "refused", "state":
		var a answer
		err := decodeAnswer(b, &a, name == "state")
		return appendAnswer(nil, &a, name == "state"), err
	case "query-reply", "query-removed":
		q, err := decodeQueryReply(b)
		return appendQueryReply(nil, &q), err
	case "prepare":
		m, err := decodePrepare(b)
		return appendPrepare(nil, &m), err
	case "retire":
		m, err := decodeRetire(b)
		return appendConfigCall(nil, &m), err
	case "inspect-reply":
		ss, err := decodeInspectReply(b)
		return appendInspectReply(nil, ss), err
	case "force":
		m, err := decodeForce(b)
		return appendConfigCall(nil, &m), err
	case "prepare-reply", "prepare-refused", "prepare-witness", "prepare-removed":
		m, err := decodePrepareReply(b)
		return appendPrepareReply(nil, &m), err
	case "fetch":
		m, err := decodeFetch(b)
		return appendFetch(nil, &m), err
	case "fetch-reply":
		s, fs, err := decodeFetchReply(b)
		out := []byte{byte(s)}
		for i := range fs {
			out = appendFetched(out, &fs[i])
		}
		return out, err
	case "install", "install-witness":
		m, err := decodeInstall(b)
		return appendInstall(nil, &m), err
	case "install-reply":
		s, p, err := decodeInstallReply(b)
		return appendInstallReply(nil, s, p), err
	case "create":
		g, c, v, err := decodeCreate(b)
		return appendCreate(nil, g, c, v), err
	case "stable-group", "stable-dropped", "stable-left", "stable-again":
		g, err := decodeStableGroup(b)
		return appendStableGroup(nil, &g), err
	case "stable-list":
		ids, err := decodeStableList(b)
		return appendStableList(nil, ids), err
	}
	g, rec, err := decodeRecord(b)
	return append(appendRecordHeader(nil, g, &rec), rec.Body...), err
}

// TestLayoutsAreFixed compares every message and record with its bytes in
// testdata: what is on the wire or on a disk must stay readable.
func TestLayoutsAreFixed(t *testing.T) {
	for name, b := range samples() {
		file := filepath.Join("testdata", name+".hex")
		text := hex.Dump(b)
		if *rewrite {
			if err := os.MkdirAll("testdata", 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(golden) {
			t.Errorf("%s is now\n%swas\n%s", name, text, golden)
		}
		again, err := reencode(name, b)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s does not come back: %v\n%s%s", name, err, text, hex.Dump(again))
		}
	}
}

func TestDecodedFieldsAreWhatWasEncoded(t *testing.T) {
	m, err := decodePrepareReply(samples()["prepare-reply"])
	want := paxos.Promise{Checkpoint: gCkpt, Cuts: gCuts, Commit: 8, Runs: gRuns,
		Configs: []paxos.ConfigAt{{Slot: 8, Config: gConfig}}}
	if err != nil || m.status != paxos.OK || m.promised != gBallot || !reflect.DeepEqual(m.promise, want) {
		t.Fatalf("%+v %v", m, err)
	}
	var r request
	var a paxos.Accept
	if err := decodeAccept(samples()["accept"], &r, &a); err != nil || r != gReq || a.Slot != 13 || string(a.Body) != "body" || !a.Sync || a.Commit != 12 || a.Stream != 9 {
		t.Fatalf("%+v %+v %v", r, a, err)
	}
}

// TestTruncatedMessagesAreRefused cuts every fixed-length part short.
func TestTruncatedMessagesAreRefused(t *testing.T) {
	for name, b := range samples() {
		open := strings.HasPrefix(name, "accept") || name == "create" || name == "record-accept" || name == "record-move" ||
			name == "record-checkpoint" || name == "fetch-reply" // end with a body
		for n := range b {
			again, err := reencode(name, b[:n])
			if err == nil && !(open && bytes.Equal(again, b[:n])) {
				t.Errorf("%s cut to %d of %d bytes decodes", name, n, len(b))
			}
		}
		if again, err := reencode(name, append(bytes.Clone(b), 0)); err == nil && !open {
			t.Errorf("%s with a byte more decodes to %x", name, again)
		}
	}
}

func TestLongRunsAndBodiesAreRefused(t *testing.T) {
	b := append(appendRequest(nil, &gReq), 0xff, 0xff, 0xff, 0x7f)
	if _, err := reencode("renew", b); err == nil {
		t.Error("2^31 runs")
	}
	if _, err := reencode("open", b); err == nil {
		t.Error("2^31 cuts")
	}
	if _, err := reencode("accept", append(samples()["accept"], make([]byte, BodyMax)...)); err == nil {
		t.Error("a body longer than BodyMax")
	}
}

// FuzzDecode feeds every decoder; what decodes must come back as it was, but for
// bits that are ignored on purpose (none so far).
func FuzzDecode(f *testing.F) {
	for name, b := range samples() {
		f.Add(name, b)
	}
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		if _, ok := samples()[name]; !ok {
			return
		}
		again, err := reencode(name, b)
		if err != nil {
			return
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%s: %x came back as %x", name, b, again)
		}
	})
}
