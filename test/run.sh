#!/usr/bin/env bash
# Runs tests by stages, one go test -json after the other into one count at the end.
# usage: test/run.sh STAGE...    stages: unit race mutate sim rigs conform vm vm+sim
set -euo pipefail
cd "$(dirname "$0")/.."
module=$(go list -m)
go build -o bin/tally ./test/tally

units=$(go list ./... | grep -v "^$module/test/" | grep -v "^$module/deploy/")
tools="./test/tally ./test/ledger ./test/nbdclient"
rigs="./test/postgres ./test/failure ./test/failover ./test/partition ./test/snapshot ./test/space ./test/input ./test/idle"

mutated() { git ls-files '*_test.go' | xargs grep -lE '^func Test[A-Za-z]*Mutat' | xargs -r -n1 dirname | sort -u | sed 's|^|./|'; }

# Whole pools under faults: the corpus, and seeds that every state of the code has its own of,
# so that a failure can be had again and the next state meets fresh ones. $1 is how nice.
simulated() {
	local state; state=$(git rev-parse HEAD:blockdev HEAD:dht HEAD:internal HEAD:overlay HEAD:pool HEAD:quorum 2>/dev/null | sha256sum)
	GABION_SIM_SECONDS=${SIM_SECONDS:-600} GABION_SIM_SEEDS=${SIM_SEEDS:-400} GABION_SIM_FIRST=${SIM_FIRST:-$((16#${state:0:7} + 1))} \
		nice -n "$1" go test -json -tags sim -timeout 1h ./internal/sim/simulate
}

stage() {
	local began=$SECONDS
	# What fails is counted by tally, a build that is broken too.
	case $1 in
	unit) go test -json -timeout 5m $units $tools ;;
	race) CGO_ENABLED=1 go test -json -race -timeout 15m $units $tools ;;
	mutate) go test -json -tags mutate -timeout 5m -run Mutat $(mutated) ;;
	sim) simulated 1 ;;
	# One package at a time: they measure pauses and processor time.
	rigs) go test -json -p 1 -timeout 12m $rigs ;;
	conform) go test -json -p 1 -timeout 5m ./test/conform ./test/nbdfeatures ;;
	vm) go test -json -p 1 -timeout 60m ./test/vm ;;
	# The simulator has a clock of its own: it takes what the test machine leaves it.
	vm+sim)
		local out; out=$(mktemp)
		simulated 19 >"$out" &
		go test -json -p 1 -timeout 60m ./test/vm || true
		wait $! || true
		cat "$out"; rm "$out" ;;
	*) echo "{\"Action\":\"fail\",\"Package\":\"no such stage: $1\"}" ;;
	esac || true
	echo "stage $1 took $((SECONDS - began)) s"
}

for s in "$@"; do stage "$s"; done | bin/tally -show "^$module/(test/(failure|failover|partition|space|input|idle|vm)|internal/sim/simulate)"
