#!/usr/bin/env bash
# Runs tests by stages, one go test -json after the other into one count at the end.
# usage: test/run.sh STAGE...    stages: unit race mutate sim rigs conform vm
set -euo pipefail
cd "$(dirname "$0")/.."
module=$(go list -m)
go build -o bin/tally ./test/tally

units=$(go list ./... | grep -v "^$module/test/" | grep -v "^$module/deploy/")
tools="./test/tally ./test/ledger ./test/nbdclient"
rigs="./test/postgres ./test/failure ./test/failover ./test/partition ./test/snapshot ./test/space ./test/input ./test/idle"

mutated() { git ls-files '*_test.go' | xargs grep -lE '^func Test[A-Za-z]*Mutat' | xargs -r -n1 dirname | sort -u | sed 's|^|./|'; }

stage() {
	local began=$SECONDS
	# What fails is counted by tally, a build that is broken too.
	case $1 in
	unit) go test -json -timeout 5m $units $tools ;;
	race) CGO_ENABLED=1 go test -json -race -timeout 8m $units $tools ;;
	mutate) go test -json -tags mutate -timeout 5m -run Mutat $(mutated) ;;
	# The same seeds each time; fresh ones are for 'make sim'.
	sim) GABION_SIM_SECONDS=${SIM_SECONDS:-120} GABION_SIM_FIRST=${SIM_FIRST:-1000} go test -json -tags sim -timeout 1h ./internal/sim/simulate ;;
	# One package at a time: they measure pauses and processor time.
	rigs) go test -json -p 1 -timeout 12m $rigs ;;
	conform) go test -json -p 1 -timeout 5m ./test/conform ./test/nbdfeatures ;;
	vm) go test -json -p 1 -timeout 60m ./test/vm ;;
	*) echo "{\"Action\":\"fail\",\"Package\":\"no such stage: $1\"}" ;;
	esac || true
	echo "stage $1 took $((SECONDS - began)) s"
}

for s in "$@"; do stage "$s"; done | bin/tally -show "^$module/(test/(failure|failover|partition|space|input|idle|vm)|internal/sim/simulate)"
